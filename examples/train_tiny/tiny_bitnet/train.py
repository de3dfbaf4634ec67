"""Training: one run from a constructed start to the last step, with checkpoints it can resume from."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from .batches import Batch, chunk_batches
from .induction import construct_induction
from .model import ModelConfig, TinyBitNet
from .scoring import held_out_rows, score


@dataclass(frozen=True)
class TrainOptions:
    steps: int = 16_000
    tokens_per_step: int = 1024
    max_length: int = 1024
    learning_rate: float = 1.5e-3
    warmup_steps: int = 60
    weight_decay: float = 0.05
    early_steps: int = 1_000_000  # of the copy-heavy mix that comes first
    decay_from: float = 0.4  # part of the run after which the learning rate falls to zero
    seed: int = 0
    evaluate_every: int = 1000
    save_every: int = 250
    device: str = "auto"
    matmul: str = "auto"  # float32 | bfloat16


def choose_device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_matmul(name: str, device: torch.device) -> torch.dtype:
    """bfloat16 holds int8 activations and ternary weights exactly, but is slow on CPUs without support."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(1024, 256, dtype=dtype, device=device)
        b = torch.ones(512, 256, dtype=dtype, device=device)
        for repeat in range(13):
            if repeat == 3:  # the first ones warm up
                start = time.perf_counter()
            (a @ b.T).sum().item()
        seconds[dtype] = time.perf_counter() - start
    return min(seconds, key=lambda dtype: seconds[dtype])


def _optimizer(model: TinyBitNet, options: TrainOptions) -> torch.optim.AdamW:
    decayed: list[Tensor] = []
    other: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (decayed if parameter.dim() == 2 and "embed" not in name else other).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": other, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95), fused=True)


def _schedule(optimizer: torch.optim.AdamW, options: TrainOptions, step: int) -> None:
    """Linear warm-up, a constant part, one linear decay to zero; no weight decay in the second half."""
    progress = step / options.steps
    factor = min((step + 1) / options.warmup_steps, 1.0, (1 - progress) / (1 - options.decay_from))
    for group in optimizer.param_groups:
        group["lr"] = options.learning_rate * factor
    optimizer.param_groups[0]["weight_decay"] = options.weight_decay if progress < 0.5 else 0.0


def _loss(model: TinyBitNet, batch: Batch, device: torch.device) -> Tensor:
    logits = model(batch.ids.to(device), batch.positions.to(device))
    losses = F.cross_entropy(logits, batch.targets.to(device), reduction="none")
    weights = batch.weights.to(device)
    return (losses * weights).sum() / weights.sum()


class Trainer:
    """The state of a run, all of which is in its checkpoint."""

    def __init__(
        self, tokenizer: Tokenizer, config: ModelConfig, options: TrainOptions, folder: Path
    ) -> None:
        self.tokenizer, self.options, self.folder = tokenizer, options, folder
        self.device = choose_device(options.device)
        torch.manual_seed(options.seed)
        self.model = TinyBitNet(config, choose_matmul(options.matmul, self.device))
        construct_induction(self.model)
        self.model.to(self.device)
        self.optimizer = _optimizer(self.model, options)
        self.step = self.chunk = self.tokens = 0
        self.seconds = 0.0

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        state = {
            "config": self.model.config.to_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "options": asdict(self.options),
            "step": self.step,
            "chunk": self.chunk,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def resume(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.chunk = state["step"], state["chunk"]
        self.tokens, self.seconds = state["tokens"], state["seconds"]

    def _batches(self) -> Iterator[Batch]:
        o = self.options
        while True:
            early = self.step < o.early_steps
            self.chunk += 1
            yield from chunk_batches(
                self.tokenizer, o.seed, self.chunk, early, o.tokens_per_step, o.max_length
            )

    def _update(self, batch: Batch) -> float:
        _schedule(self.optimizer, self.options, self.step)
        loss = _loss(self.model, batch, self.device)
        loss.backward()  # type: ignore[no-untyped-call]  # torch declares it without types
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += batch.tokens
        return loss.item()

    def run(self) -> None:
        options = self.options
        rows = held_out_rows(self.tokenizer, per_skill=24, seed=5)
        log = (self.folder / "log.jsonl").open("a", encoding="utf-8")
        bar = tqdm(total=options.steps, initial=self.step, unit="step", dynamic_ncols=True)
        average = 0.0
        batches = self._batches()
        with log, bar:
            while self.step < options.steps:
                start = time.perf_counter()
                loss = self._update(next(batches))
                self.seconds += time.perf_counter() - start
                average = loss if average == 0 else 0.98 * average + 0.02 * loss
                bar.update()
                if self.step % 20 == 0:
                    speed, millions = self.tokens / self.seconds, self.tokens / 1e6
                    bar.set_postfix_str(f"loss {average:.3f}, {millions:.2f} M tokens, {speed:.0f}/s")
                if self.step % options.evaluate_every == 0 or self.step == options.steps:
                    record = self._record(average, score(self.model, rows, self.device))
                    bar.write(json.dumps(record))
                    log.write(json.dumps(record) + "\n")
                    log.flush()
                if self.step % options.save_every == 0 or self.step == options.steps:
                    self.save()

    def _record(self, loss: float, exact: dict[str, float]) -> dict[str, Any]:
        return {
            "step": self.step,
            "minutes": round(self.seconds / 60, 2),
            "tokens": self.tokens,
            "loss": round(loss, 4),
            "exact": {skill: round(value, 2) for skill, value in exact.items()},
        }


def train(
    tokenizer: Tokenizer, config: ModelConfig, options: TrainOptions, folder: Path, resume: bool = False
) -> Path:
    """Train (or go on training) in `folder`; returns the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(tokenizer, config, options, folder)
    if resume and trainer.checkpoint.exists():
        trainer.resume()
    trainer.run()
    return trainer.checkpoint
