"""Memory and decode speed with keys and values in f16 and in q8_0, at short and long contexts.

    python benchmarks/kv_types.py [--layers 30] [--contexts 256,1024,4032] [--streams 1,4] [--rounds 15]

Synthetic 2B-4T weights. The two take turns, step by step, so that a disturbance hits both; ratios are medians
of those of a turn. Beside them: how far the logits are apart, and whether each type's logits are the same
bits when its tokens are computed one by one and together. Long contexts are copies of computed blocks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitnet import _native
from synthetic_2b import LAYERS, VOCAB, write_synthetic

BLOCK = 32
COMPUTED = 256  # tokens of the prompt that are really computed
LIMIT = 0.2  # between the logits of the two, norm over norm: random layers amplify every difference


class Contender:
    """Streams of the same tokens, each in its own blocks."""

    def __init__(self, model: _native.Model, kv_type: str, n_ctx: int, n_streams: int, threads: int) -> None:
        per_stream = n_ctx // BLOCK
        self.runner = _native.Runner(
            model, n_blocks=n_streams * per_stream, n_threads=threads, kv_type=kv_type
        )
        self.tables = [list(range(i * per_stream, (i + 1) * per_stream)) for i in range(n_streams)]

    def fill(self, token_ids: list[int]) -> None:
        self.forward([token_ids], 0)
        n_computed = len(token_ids) // BLOCK
        for table in self.tables:
            for index, block in enumerate(table):
                if block >= n_computed:
                    self.runner.copy_block(index % n_computed, block)

    def forward(self, token_ids: list[list[int]], start: int) -> NDArray[np.float32]:
        """Logits of the last token of each stream."""
        n = len(token_ids[0])
        joined = np.concatenate([np.array(ids, np.int32) for ids in token_ids])
        outputs = [n * (i + 1) - 1 for i in range(len(token_ids))]
        self.runner.forward(
            joined, self.tables[: len(token_ids)], [start] * len(token_ids), [n] * len(token_ids), outputs
        )
        return self.runner.logits()

    def step(self, n_streams: int, position: int) -> float:
        """Seconds of one decode step behind `position` tokens, without the head."""
        tokens = np.arange(n_streams, dtype=np.int32)
        started = time.perf_counter()
        self.runner.forward(tokens, self.tables[:n_streams], [position] * n_streams, [1] * n_streams, [])
        return time.perf_counter() - started

    def independent_of_chunks(self, position: int) -> bool:
        together = self.forward([[5, 6, 7]], position)
        for index, token in enumerate((5, 6, 7)):
            one_by_one = self.forward([[token]], position + index)
        return np.array_equal(together, one_by_one)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--contexts", default="256,1024,4032")
    parser.add_argument("--streams", default="1,4")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    contexts = [int(text) for text in options.contexts.split(",")]
    streams = [int(text) for text in options.streams.split(",")]
    path = options.folder / f"synthetic-{options.layers}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synthetic(path, n_layers=options.layers)
    cache = str(path.with_suffix(".packed"))
    model = _native.Model(_native.ModelFile(str(path)), n_threads=options.threads, cache_path=cache)
    n_ctx = -(-(max(contexts) + BLOCK) // BLOCK) * BLOCK
    f16, q8_0 = (
        Contender(model, kv_type, n_ctx, max(streams), options.threads) for kv_type in ("f16", "q8_0")
    )
    prompt = np.random.default_rng(0).integers(VOCAB, size=COMPUTED).tolist()
    for contender in (f16, q8_0):
        contender.fill(prompt)
    per_token = [contender.runner.kv_bytes / n_ctx / max(streams) for contender in (f16, q8_0)]
    print(f"{path.name}, {options.threads} threads, {f16.runner.kernels} kernels")
    print(
        f"bytes a token: f16 {per_token[0]:.0f}, q8_0 {per_token[1]:.0f}: {per_token[1] / per_token[0]:.3f}"
    )
    print(f"{'streams':>7} {'context':>8} {'f16 ms':>8} {'q8_0 ms':>8} {'speed of q8_0 / f16':>20}   checks")
    failed = False
    for n_streams in streams:
        for context in contexts:
            times: list[tuple[float, float]] = []
            for _ in range(options.rounds):
                times.append((f16.step(n_streams, context), q8_0.step(n_streams, context)))
            ratio = statistics.median(one / other for one, other in times)
            medians = [statistics.median(column) * 1e3 for column in zip(*times, strict=True)]
            one, other = (contender.forward([[1]], context) for contender in (f16, q8_0))
            error = float(np.linalg.norm(other - one) / np.linalg.norm(one))
            same = f16.independent_of_chunks(context) and q8_0.independent_of_chunks(context)
            good = 0 < error < LIMIT and same
            failed |= not good
            verdict = f"{'bit-equal in any chunks' if same else 'CHUNKS DIFFER'}{'' if good else ', FAILED'}"
            print(
                f"{n_streams:7} {context:8} {medians[0]:8.1f} {medians[1]:8.1f} {ratio:20.2f}   "
                f"logits apart by {error:.3f}, {verdict}"
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
