"""The native engine without anything above it: token ids in, logits and samples out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitnet import _native


class Engine:
    """One model and one runner with room for a few short sequences, each in its own KV blocks."""

    BLOCKS_PER_SEQUENCE = 4

    def __init__(
        self,
        path: Path,
        *,
        n_threads: int = 1,
        kernels: str = "",
        n_sequences: int = 3,
        kv_type: str = "f16",
    ) -> None:
        self.path = path
        self.model = _native.Model(_native.ModelFile(str(path)), n_threads=1)
        self.runner = _native.Runner(
            self.model,
            n_blocks=n_sequences * self.BLOCKS_PER_SEQUENCE,
            max_batch_tokens=256,
            n_threads=n_threads,
            kernels=kernels,
            kv_type=kv_type,
        )
        # Scattered, so that nothing works by blocks happening to be neighbours.
        blocks = np.random.default_rng(0).permutation(self.runner.n_blocks).tolist()
        per_sequence = self.BLOCKS_PER_SEQUENCE
        self.block_tables = [blocks[i * per_sequence : (i + 1) * per_sequence] for i in range(n_sequences)]

    def logits(self, token_ids: Sequence[int], chunks: Sequence[int] | None = None) -> NDArray[np.float32]:
        """[n, vocab] of one sequence, computed in pieces of the given lengths (all at once if None)."""
        rows = []
        start = 0
        for length in chunks or [len(token_ids)]:
            self.step([token_ids[start : start + length]], [start])
            rows.append(self.runner.logits())
            start += length
        assert start == len(token_ids)
        return np.concatenate(rows)

    def step(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        """One forward pass of the next tokens of several sequences; the state of every token is kept."""
        joined = np.array([token for sequence in tokens for token in sequence], dtype=np.int32)
        tables = self.block_tables[: len(tokens)]
        self.runner.forward(joined, tables, starts, [len(s) for s in tokens], range(len(joined)))
