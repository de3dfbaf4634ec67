"""Training: one run from a constructed start to the last step, with checkpoints it can resume from."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from .batches import Batch, ChunkMaker, Pairs, collate, passage_pairs
from .guides import small_letters
from .induction import construct_induction
from .model import ModelConfig, TinyBitNet
from .muon import Muon
from .scoring import held_out_rows, score
from .warm_start import FIRST_ADDED, add_layers, read_config, read_weights


@dataclass(frozen=True)
class TrainOptions:
    steps: int = 27_000
    minutes: float = 0  # if not 0: the decay takes this long, whatever the steps, and ends the run
    tokens_per_batch: int = 560
    batches_per_step: int = 4  # of different lengths, and so of different skills
    max_length: int = 1400
    pairs: int = 20  # question and passage, for text embeddings
    pairs_every: int = 16  # steps
    pairs_weight: float = 1.0
    guide_weight: float = 1.0
    told_weight: float = 0.3
    learning_rate: float = 1.5e-3
    warmup_steps: int = 60
    weight_decay: float = 0.05
    early_steps: int = 600  # of the copy-heavy mix that comes first
    decay_from: float = 0.28  # part of the run after which the learning rate falls to zero
    seed: int = 0
    evaluate_every: int = 1000
    save_every: int = 100
    device: str = "auto"
    matmul: str = "auto"  # float32 | bfloat16
    compile: bool = False  # the layers, with torch.compile
    workers: int = 0  # processes that make the batches in advance


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


def _optimizers(
    model: TinyBitNet, readout: nn.Linear, options: TrainOptions
) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices of the layers, AdamW for the embedding, the norms and the readout."""
    matrices: list[Tensor] = []
    other: list[Tensor] = list(readout.parameters())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        (matrices if parameter.dim() == 2 and "embed" not in name else other).append(parameter)
    rate = options.learning_rate
    return (
        Muon(matrices, rate, options.weight_decay, dtype=model.matmul_dtype),
        torch.optim.AdamW(other, rate, betas=(0.9, 0.95), weight_decay=0, fused=True),
    )


def _schedule(
    optimizers: tuple[Muon, torch.optim.AdamW], options: TrainOptions, step: int, left: float
) -> None:
    """Linear warm-up, a constant part, one linear decay to zero; no weight decay in the second half.

    `left` is the part of the decay that is left.
    """
    progress = 1 - left * (1 - options.decay_from)
    factor = min((step + 1) / options.warmup_steps, 1.0, left)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * factor
    optimizers[0].param_groups[0]["weight_decay"] = options.weight_decay if progress < 0.5 else 0.0


def _answers_loss(model: TinyBitNet, batch: Batch) -> Tensor:
    """The weighted sum of the losses of a batch."""
    logits = model(batch.ids, batch.wanted, batch.positions, batch.branches)
    losses = F.cross_entropy(logits, batch.targets, reduction="none")
    return (losses * batch.weights).sum()


def _similarities(model: TinyBitNet, pairs: Pairs) -> Tensor:
    """Cosines [questions, passages]."""
    questions, passages = model.embed(pairs.ids, pairs.real).chunk(2)
    return questions @ passages.T


def _pairs_loss(model: TinyBitNet, pairs: Pairs, temperature: float = 0.05) -> Tensor:
    """Each question is to be closer to its passage than to all others, and each passage to its question."""
    similar = _similarities(model, pairs) / temperature
    right = torch.arange(len(similar), device=similar.device)
    return (F.cross_entropy(similar, right) + F.cross_entropy(similar.T, right)) / 2


class Trainer:
    """The state of a run, all of which is in its checkpoint."""

    def __init__(
        self, tokenizer: Tokenizer, config: ModelConfig, options: TrainOptions, folder: Path
    ) -> None:
        self.tokenizer, self.options, self.folder = tokenizer, options, folder
        self.device = choose_device(options.device)
        self.same = torch.tensor(small_letters(tokenizer), device=self.device)
        torch.manual_seed(options.seed)
        self.model = TinyBitNet(config, choose_matmul(options.matmul, self.device))
        construct_induction(self.model)
        self.model.to(self.device)
        if options.compile:
            for layer in self.model.blocks:
                layer.compile(dynamic=True)  # rows differ in length from batch to batch
        self.readout = nn.Linear(config.head_dim, config.vocab_size).to(self.device)
        self.optimizers = _optimizers(self.model, self.readout, options)
        self.step = self.chunk = self.tokens = 0
        self.seconds = 0.0
        self.guided = 0.0  # moving average of the guides' losses
        self.started = time.monotonic()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        state = {
            "config": self.model.config.to_dict(),
            "model": self.model.state_dict(),
            "readout": self.readout.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
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
        self.readout.load_state_dict(state["readout"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.chunk = state["step"], state["chunk"]
        self.tokens, self.seconds = state["tokens"], state["seconds"]

    def start_from(self, path: Path) -> None:
        """Take over the weights of a GGUF file, with as many new layers as the configuration has more."""
        config = read_config(path)
        more = self.model.config.num_hidden_layers - config.num_hidden_layers
        self.model.load_state_dict(add_layers(read_weights(path, self.options.seed), config, more))
        self.step = self.options.early_steps

    def keep(self, path: Path) -> None:
        """Train only the layers that a GGUF file has not. Raises ValueError if there are none."""
        more = self.model.config.num_hidden_layers - read_config(path).num_hidden_layers
        if more < 1:
            raise ValueError(f"no layer was added to those of {path}: ask for more layers")
        added = tuple(f"model.layers.{i}." for i in range(FIRST_ADDED, FIRST_ADDED + more))
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(added))
        self.optimizers = _optimizers(self.model, self.readout, self.options)

    def _batches(self) -> Generator[Batch, None, None]:
        o = self.options
        chunks = ChunkMaker(self.tokenizer, o.seed, o.tokens_per_batch, o.max_length, o.workers)
        with contextlib.closing(chunks):
            while True:
                self.chunk += 1
                yield from map(collate, chunks(self.chunk, early=self.step < o.early_steps))

    def _left(self) -> float:
        """The part of the learning rate's decay that is left."""
        o = self.options
        if o.minutes:
            return max(0.0, 1 - (time.monotonic() - self.started) / (60 * o.minutes))
        return (1 - self.step / o.steps) / (1 - o.decay_from)

    def _update(self, batches: list[Batch]) -> float:
        _schedule(self.optimizers, self.options, self.step, self._left())
        total = sum(float(batch.weights.sum()) for batch in batches)
        value = 0.0
        self.guided *= 0.98
        for batch in (batch.to(self.device) for batch in batches):
            loss = _answers_loss(self.model, batch) / total
            guided = self._guides_loss(batch) / len(batches)
            (loss + guided).backward()  # type: ignore[no-untyped-call]  # torch declares it without types
            value += loss.item()
            self.guided += 0.02 * guided.item()
            self.tokens += batch.tokens
        if self.step % self.options.pairs_every == 0 and self.step >= self.options.early_steps:
            self._pairs_step()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return value

    def _guides_loss(self, batch: Batch) -> Tensor:
        """The loss of the guides of the batch that was last passed through the model."""
        looked = self.model.guide_loss(self.same[batch.ids], batch.guides, batch.branches)
        told = self.model.told_loss(batch.guides, self.readout)
        return looked * self.options.guide_weight + told * self.options.told_weight

    def _pairs_step(self) -> None:
        pairs = passage_pairs(self.tokenizer, self.options.seed, self.step, self.options.pairs)
        loss = _pairs_loss(self.model, pairs.to(self.device)) * self.options.pairs_weight
        loss.backward()  # type: ignore[no-untyped-call]  # torch declares it without types
        self.tokens += pairs.tokens

    def run(self) -> None:
        """Train to the end. An interrupted run of `save_every` steps or more is saved first."""
        begun = self.step
        try:
            self._run()
        except KeyboardInterrupt:
            # Before that the checkpoint may be another run's, begun again by mistake.
            if self.step - begun >= self.options.save_every:
                self.save()
            raise
        self.save()

    def _run(self) -> None:
        options = self.options
        rows = held_out_rows(self.tokenizer, per_skill=10, seed=5)
        log = (self.folder / "log.jsonl").open("a", encoding="utf-8")
        bar = tqdm(total=options.steps, initial=self.step, unit="step", dynamic_ncols=True)
        average = 0.0
        with log, bar, contextlib.closing(self._batches()) as batches:
            while self.step < options.steps and self._left() > 0:
                start = time.perf_counter()
                loss = self._update([next(batches) for _ in range(options.batches_per_step)])
                self.seconds += time.perf_counter() - start
                average = loss if average == 0 else 0.98 * average + 0.02 * loss
                bar.update()
                if self.step % 20 == 0:
                    speed, millions = self.tokens / self.seconds, self.tokens / 1e6
                    losses = f"loss {average:.3f}, guides {self.guided:.2f}"
                    bar.set_postfix_str(f"{losses}, {millions:.2f} M tokens, {speed:.0f}/s")
                if self.step % options.evaluate_every == 0:
                    exact = score(self.model, rows, self.device)
                    exact["embedding"] = self._recall()
                    record = self._record(average, exact)
                    bar.write(json.dumps(record))
                    log.write(json.dumps(record) + "\n")
                    log.flush()
                if self.step % options.save_every == 0:
                    self.save()

    @torch.no_grad()
    def _recall(self, count: int = 50) -> float:
        """Share of held-out questions whose own passage of 50 is the closest."""
        pairs = passage_pairs(self.tokenizer, 7, 0, count, "test")
        closest = _similarities(self.model, pairs.to(self.device)).argmax(1)
        return float((closest == torch.arange(count, device=self.device)).float().mean())

    def _record(self, loss: float, exact: dict[str, float]) -> dict[str, Any]:
        return {
            "step": self.step,
            "minutes": round(self.seconds / 60, 2),
            "tokens": self.tokens,
            "loss": round(loss, 4),
            "exact": {skill: round(value, 2) for skill, value in exact.items()},
        }


def train(
    tokenizer: Tokenizer,
    config: ModelConfig,
    options: TrainOptions,
    folder: Path,
    resume: bool = False,
    start: Path | None = None,
    added_only: bool = False,
) -> Path:
    """Train in `folder`, from nothing, from its checkpoint or from a GGUF file; returns the checkpoint.

    added_only: train the layers that the file has not, and leave the others as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(tokenizer, config, options, folder)
    if start and added_only:
        trainer.keep(start)
    if resume and trainer.checkpoint.exists():
        trainer.resume()
    elif start:
        trainer.start_from(start)
    trainer.run()
    return trainer.checkpoint
