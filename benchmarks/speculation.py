"""What guessing tokens ahead brings: the speed of answers that repeat their prompt, and of ordinary ones.

    python benchmarks/speculation.py [--layers 30] [--streams 1,4,8] [--tokens 96] [--rounds 5] [--threads 2]

Synthetic 2B-4T weights, which say nothing: the answers are written beforehand, and given out in place of what
was sampled. What was sampled must be the same with guesses as without, token by token. `copy` repeats the
prompt, `edit` does with another word every 25 tokens, `ordinary` goes on in a text that the prompt began. The
two take turns; ratios are medians of those of a turn, on the clock and in processor time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bitnet import _native
from bitnet.runtime.scheduler import Scheduler
from bitnet.runtime.sequence import GenerationSequence
from bitnet.text.tokenizer import Tokenizer
from bitnet.values import Request
from synthetic_2b import LAYERS, write_synthetic

PROMPT = 160  # tokens
LIMIT = 0.97  # nothing may become slower than this


class ScriptedRunner:
    """A Runner that samples, and answers with the next token of the sequence's script instead."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.scripts: dict[int, list[int]] = {}
        self.sampled: dict[int, list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def sample(self, output: int, sampler: Any, logprobs: int) -> Any:
        sampled = self.sampled[id(sampler)]
        token_id = self.scripts[id(sampler)][len(sampled)]
        sampled.append(self._runner.sample(output, sampler, logprobs).token_id)
        return SimpleNamespace(token_id=token_id, logprob=float("nan"), top=[])


class Contender:
    def __init__(self, model: Any, tokenizer: Tokenizer, options: Any, speculate: bool) -> None:
        n_blocks = max(options.streams) * -(-(PROMPT + options.tokens + 32) // 32) + 32
        self.runner = ScriptedRunner(
            _native.Runner(model, n_blocks=n_blocks, n_threads=options.threads, kv_type="f16")
        )
        # A Runner in all that the scheduler asks of it.
        self.scheduler = Scheduler(self.runner, n_batch=max(options.streams), max_waiting=0)  # type: ignore[arg-type]
        self._tokenizer, self._speculate, self._n_ctx = tokenizer, speculate, n_blocks * 32

    def answer(self, prompts: list[list[int]], scripts: list[list[int]]) -> dict[str, Any]:
        sequences = []
        for prompt, script in zip(prompts, scripts, strict=True):
            options = {"max_tokens": len(script), "ignore_eos": True, "temperature": 0}
            request = Request.build(prompt=prompt, options=options)
            sequence = GenerationSequence(
                prompt, request, self._tokenizer, self._n_ctx, speculate=self._speculate
            )
            self.runner.scripts[id(sequence._sampler)] = script
            self.runner.sampled[id(sequence._sampler)] = []
            sequences.append(sequence)
        steps = self.scheduler.health().n_steps
        started, computing = time.perf_counter(), time.process_time()
        self.scheduler.submit(*sequences)
        replies = [sequence.outlet.result() for sequence in sequences]
        return {
            "clock": time.perf_counter() - started,
            "computing": time.process_time() - computing,
            "steps": self.scheduler.health().n_steps - steps,
            "drafted": sum(reply.timings.drafted_tokens for reply in replies),
            "accepted": sum(reply.timings.accepted_tokens for reply in replies),
            "sampled": [self.runner.sampled.pop(id(sequence._sampler)) for sequence in sequences],
        }


def case(kind: str, text: list[int], stream: int, n_tokens: int) -> tuple[list[int], list[int]]:
    """Prompt and answer."""
    begin = 700 * stream
    prompt = text[begin : begin + PROMPT]
    if kind == "ordinary":
        return prompt, text[begin + PROMPT : begin + PROMPT + n_tokens]
    answer = (prompt[20:] * 9)[:n_tokens]
    if kind == "edit":
        for index in range(10, n_tokens, 25):
            answer[index] = 50_000 + index
    return prompt, answer


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 8])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    path = options.folder / f"synthetic-{options.layers}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synthetic(path, n_layers=options.layers)
    file = _native.ModelFile(str(path))
    model = _native.Model(file, n_threads=options.threads, cache_path=str(path.with_suffix(".packed")))
    tokenizer = Tokenizer.from_metadata(file.metadata)
    # English and code in short tokens: more pairs and triples occur again than with a real vocabulary.
    text = tokenizer.encode(Path(__file__).with_name("compare_llama_cpp.py").read_text())
    contenders = [Contender(model, tokenizer, options, speculate) for speculate in (False, True)]
    print(
        f"{path.name}, {options.threads} threads; tokens/s of all streams together, without and with guesses"
    )
    failed = False
    for n_streams in options.streams:
        for kind in ("copy", "edit", "ordinary"):
            cases = [case(kind, text, stream, options.tokens) for stream in range(n_streams)]
            prompts, scripts = [prompt for prompt, _ in cases], [script for _, script in cases]
            for contender in contenders:  # so that the prompts are in the cache
                contender.answer(prompts, [script[:1] for script in scripts])
            turns = [[c.answer(prompts, scripts) for c in contenders] for _ in range(options.rounds)]
            clock, computing = (
                statistics.median(plain[key] / guessing[key] for plain, guessing in turns)
                for key in ("clock", "computing")
            )
            speeds = [
                n_streams * options.tokens / statistics.median(turn[i]["clock"] for turn in turns)
                for i in (0, 1)
            ]
            same = all(plain["sampled"] == guessing["sampled"] for plain, guessing in turns)
            slow = max(clock, computing) < LIMIT
            failed |= slow or not same
            plain, guessing = turns[0]
            print(
                f"{n_streams} streams, {kind:8} {speeds[0]:7.1f} {speeds[1]:7.1f}  ratio {clock:5.2f} "
                f"(processor time {computing:5.2f})  steps {plain['steps']} -> {guessing['steps']}, "
                f"{guessing['accepted']} of {guessing['drafted']} guesses right, "
                f"samples {'equal' if same else 'DIFFER'}{', TOO SLOW' if slow else ''}",
                flush=True,
            )
    for contender in contenders:
        contender.scheduler.close()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
