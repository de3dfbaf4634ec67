"""What many requests at once cost: aggregate speed, time to the first token under load, and reused prefixes.

    python benchmarks/concurrency.py [--layers 30] [--streams 8] [--tokens 32] [--json FILE]

On random weights of the dimensions of BitNet b1.58 2B-4T. Every answer is compared with the one that the same
request got alone, and a difference is a failed run. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from bitnet import BitNet, Generation, Reply
from synthetic_2b import VOCAB, write_synthetic

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
PROMPT = 200  # tokens
PREFIX = 1000


def random_prompt(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, n).tolist()


def aggregate(model: BitNet, n_streams: int, n_tokens: int, rounds: int) -> dict[str, Any]:
    """Decoding of many streams against one. What counts is from the last first token to the first end."""
    prompts = [random_prompt(16, seed) for seed in range(n_streams)]
    options = {**GREEDY, "max_tokens": n_tokens}
    alone = [model.generate(prompt, **options) for prompt in prompts]
    ratios, speeds, same = [], [], True
    for round_ in range(rounds):
        one = model.generate(prompts[0], cache_salt=f"one {round_}", **options)
        salt = f"all {round_}"
        together = _all([model.stream(prompt, cache_salt=salt, **options) for prompt in prompts])
        same &= [reply.token_ids for reply in together] == [reply.token_ids for reply in alone]
        single = (n_tokens - 1) / one.timings.decode
        crowd = sum((n_tokens - 1) / reply.timings.decode for reply in together)
        ratios.append(crowd / single)
        speeds.append(crowd)
    return {
        "aggregate tokens/s": statistics.median(speeds),
        "ratio to one stream": statistics.median(ratios),
        "same answers": same,
    }


def first_token(model: BitNet, n_streams: int, n_samples: int) -> dict[str, Any]:
    """Time to the first token of a prompt beside streams, against its prefill alone behind one such step."""
    own, beside, same = [], [], True
    alone = {}
    for seed in range(n_samples):
        reply = model.generate(random_prompt(PROMPT, 100 + seed), cache_salt="own", max_tokens=2, **GREEDY)
        own.append(reply.timings.time_to_first_token)
        alone[seed] = reply.token_ids
    streams = [
        model.stream(random_prompt(16, seed), cache_salt="load", max_tokens=None, **GREEDY)
        for seed in range(n_streams)
    ]
    for stream in streams:
        next(stream)
    gaps: list[float] = []
    threading.Thread(target=_note_gaps, args=(streams[0], gaps), daemon=True).start()
    for seed in range(n_samples):
        reply = model.generate(random_prompt(PROMPT, 100 + seed), cache_salt="beside", max_tokens=2, **GREEDY)
        beside.append(reply.timings.time_to_first_token)
        same &= reply.token_ids == alone[seed]
    for stream in streams:
        stream.cancel()
    chunk = max(gaps)  # a step with a piece of prompt in it
    reference = statistics.median(own) + chunk
    p95 = float(np.percentile(beside, 95))
    return {
        "time to first token beside the streams, p95 (s)": p95,
        "alone, median (s)": statistics.median(own),
        "longest step (s)": chunk,
        "ratio to alone and one step": p95 / reference,
        "same answers": same,
    }


def _note_gaps(stream: Generation, gaps: list[float]) -> None:
    before = time.perf_counter()
    for _ in stream:
        now = time.perf_counter()
        gaps.append(now - before)
        before = now


def prefix(model: BitNet, rounds: int) -> dict[str, Any]:
    """The same long prompt a second time."""
    cold, warm, same, cached = [], [], True, 0
    for round_ in range(rounds):
        prompt = random_prompt(PREFIX, 1000 + round_)
        first, second = (model.generate([*prompt, 5], max_tokens=4, **GREEDY) for _ in range(2))
        cold.append(first.timings.time_to_first_token)
        warm.append(second.timings.time_to_first_token)
        same &= first.token_ids == second.token_ids
        cached = second.usage.cached_tokens
    return {
        "cold (s)": statistics.median(cold),
        "repeated (s)": statistics.median(warm),
        "ratio": statistics.median(warm) / statistics.median(cold),
        "cached tokens": cached,
        "same answers": same,
    }


def _all(generations: list[Generation]) -> list[Reply]:
    return [generation.result() for generation in generations]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"), help="where models are kept")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--samples", type=int, default=12, help="prompts timed beside the streams")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    path = arguments.folder / f"synthetic-2b-{arguments.layers}-i2_s.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synthetic(path, n_layers=arguments.layers)
    # The greedy text of random weights repeats itself: guessing would count as speed of a stream alone.
    with BitNet(path, n_ctx=2048, n_batch=arguments.streams + 1, speculate=False) as model:
        print(f"{path.name}: {model.info.kernels} kernels, {model.info.n_threads} threads")
        report = {
            f"{arguments.streams} streams together": aggregate(
                model, arguments.streams, arguments.tokens, arguments.rounds
            ),
            f"a prompt of {PROMPT} tokens": first_token(model, arguments.streams, arguments.samples),
            f"a repeated prefix of {PREFIX} tokens": prefix(model, arguments.rounds),
        }
    for title, figures in report.items():
        print(title)
        for name, value in figures.items():
            print(f"  {name:50} {value if isinstance(value, (bool, int)) else format(value, '.3f')}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))
    return 0 if all(figures["same answers"] for figures in report.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
