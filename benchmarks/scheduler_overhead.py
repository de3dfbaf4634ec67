"""What the scheduler adds to a decode step: the time between two forward passes without that of sampling.

    python benchmarks/scheduler_overhead.py [--model FILE] [--streams 8] [--tokens 400]

Measured with nobody waiting for the answers, and with a thread that reads each; every answer is compared with
the one the same request got alone. Fails if one differs, or if a median on the clock is above 0.3 ms. Run it
on a machine that does nothing else: "computing", the processor time of the scheduler's thread, suffers less
from neighbours, but suffers, too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitnet
from bitnet import BitNet, Generation

BUNDLED = Path(bitnet.__file__).parent / "models" / "bundled" / "bitnet-tiny.gguf"
LIMIT_MS = 0.3


class Stopwatch:
    """Time on the clock, and time that this thread was computing."""

    def __init__(self) -> None:
        self.clock = self.computing = 0.0

    def start(self) -> None:
        self.clock -= time.perf_counter()
        self.computing -= time.thread_time()

    def stop(self) -> None:
        self.computing += time.thread_time()
        self.clock += time.perf_counter()


class TimedRunner:
    """A Runner that notes what passes between its forward passes, samples left out."""

    def __init__(self, runner: Any, n_streams: int) -> None:
        self._runner = runner
        self._n_streams = n_streams
        self._gap: Stopwatch | None = None
        self.gaps: list[Stopwatch] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(self, token_ids: Any, tables: Any, starts: Any, lengths: Any, outputs: Any) -> None:
        if self._gap is not None:
            self._gap.stop()
            self.gaps.append(self._gap)
        self._runner.forward(token_ids, tables, starts, lengths, outputs)
        # What follows a step that all streams decode in counts.
        self._gap = Stopwatch() if len(token_ids) == self._n_streams else None
        if self._gap is not None:
            self._gap.start()

    def sample(self, output: int, sampler: Any, logprobs: int) -> Any:
        if self._gap is not None:
            self._gap.stop()
        try:
            return self._runner.sample(output, sampler, logprobs)
        finally:
            if self._gap is not None:
                self._gap.start()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=400)
    options = parser.parse_args()
    failed = False
    print(f"{options.streams} streams of {options.tokens} tokens, {options.model.name}")
    print(f"{'ms a step':46} {'median':>8} {'p95':>8} {'computing':>10}")
    for name, extra in (
        ("text", {}),
        ("text, logprobs", {"logprobs": True}),
        ("text, logprobs, 5 alternatives", {"logprobs": True, "top_logprobs": 5}),
    ):
        for consumers, consume in (("", wait_for_all), (", a thread each", read_in_threads)):
            gaps, equal = measure(options, extra, consume)
            clock = [gap.clock * 1e3 for gap in gaps]
            median, p95 = statistics.median(clock), statistics.quantiles(clock, n=20)[-1]
            computing = statistics.median(gap.computing * 1e3 for gap in gaps)
            verdict = "answers equal solo ones" if equal else "ANSWERS DIFFER from solo ones"
            print(
                f"{name + consumers:46} {median:8.3f} {p95:8.3f} {computing:10.3f}  n={len(gaps)}, {verdict}"
            )
            failed |= not equal or median > LIMIT_MS
    return int(failed)


def measure(options: Any, extra: Any, consume: Callable[..., None]) -> tuple[list[Stopwatch], bool]:
    with BitNet(options.model, n_batch=options.streams) as model:

        def ask(i: int) -> Generation:
            return model.stream(
                f"Once there were {i}", max_tokens=options.tokens, seed=i, ignore_eos=True, **extra
            )

        alone = [ask(i).result() for i in range(options.streams)]
        scheduler = model._engine._scheduler
        timed = TimedRunner(scheduler._runner, options.streams)
        scheduler._runner = timed
        generations = [ask(i) for i in range(options.streams)]
        consume(generations)
        replies = [generation.result() for generation in generations]
    equal = all(
        (reply.token_ids, reply.text, reply.logprobs) == (expect.token_ids, expect.text, expect.logprobs)
        for reply, expect in zip(replies, alone, strict=True)
    )
    return timed.gaps, equal


def wait_for_all(generations: list[Generation]) -> None:
    while not all(generation.done for generation in generations):
        time.sleep(0.05)


def read_in_threads(generations: list[Generation]) -> None:
    def read(generation: Generation) -> None:
        for _ in generation:
            pass

    threads = [threading.Thread(target=read, args=(generation,)) for generation in generations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
