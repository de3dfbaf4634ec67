"""Texts as vectors: a sequence whose hidden states become one vector, and a window of such sequences.

What the texts are, and which tokens stand for them, is the engine's business.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as TokenIds
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bitnet.engines.generation import Outlet
from bitnet.errors import CancelledError, ModelFileError, OverloadedError
from bitnet.runtime.sequence import Sequence
from bitnet.values import Pooling

if TYPE_CHECKING:
    from bitnet.runtime.runner import Runner
    from bitnet.runtime.scheduler import Scheduler

# Those of models trained to embed: by the state of the last token, where the file does not say, and so that
# the first part of a vector is a shorter one.
EMBEDDING_ARCHITECTURES = frozenset({"qwen3", "gemma3"})

# `<architecture>.pooling_type` of a GGUF file. The others (2, the first token; 4, a ranking) need parts
# that these models do not have.
POOLING_TYPES: dict[int, Pooling] = {0: "mean", 1: "mean", 3: "last"}


class EmbeddingSequence(Sequence):
    """Tokens whose hidden states after the final norm become one vector, [dimensions] f32: the first of
    hidden_size."""

    def __init__(
        self,
        token_ids: TokenIds[int],
        hidden_size: int,
        *,
        pooling: Pooling,
        normalize: bool,
        dimensions: int | None = None,
    ) -> None:
        """dimensions: how many of the vector's first numbers to keep, before it is scaled; None = all."""
        super().__init__(token_ids)
        self.outlet: Outlet[NDArray[np.float32]] = Outlet()
        self._pooling = pooling
        self._normalize = normalize
        self._dimensions = dimensions
        self._sum = np.zeros(hidden_size)  # f64, of the first _n_summed tokens
        self._n_summed = 0
        self._vector: NDArray[np.float32] | None = None

    def outputs(self, count: int) -> range:
        if self._pooling == "mean":
            return range(count)
        return range(count - 1, count) if count == self.n_pending else range(0)

    def advance(self, runner: Runner, row: int, count: int, guesses: TokenIds[int] = ()) -> bool:
        if self._pooling == "mean":
            self._add(runner.hidden()[row : row + count])
        self.n_computed += count
        if self.n_pending:
            return False
        if self._pooling == "mean":
            pooled = self._sum / len(self.token_ids)
        else:
            pooled = runner.hidden()[row].astype(np.float64)
        self._vector = _finished(pooled[: self._dimensions], self._normalize)
        return True

    def _add(self, rows: NDArray[np.float32]) -> None:
        """Add the hidden states of the tokens from n_computed on."""
        if self.n_computed > self._n_summed:  # a wrong vector would look like any other
            raise RuntimeError(f"hidden states {self._n_summed} to {self.n_computed} were never seen")
        new = rows[self._n_summed - self.n_computed :]  # without those that had to be computed again
        if len(new):
            # One row after the other, so that the bits do not depend on how the text was cut into pieces.
            self._sum = np.cumsum(np.vstack([self._sum, new]), axis=0, dtype=np.float64)[-1]
            self._n_summed += len(new)

    def finish(self) -> None:
        assert self._vector is not None
        self.outlet.finish(self._vector)

    def abort(self) -> None:
        self.outlet.fail(CancelledError("the computation of embeddings was cancelled"))


def _finished(pooled: NDArray[np.float64], normalize: bool) -> NDArray[np.float32]:
    if not np.isfinite(pooled).all():
        raise ModelFileError("the embedding is not finite: the model's file is damaged")
    if normalize:
        length = math.sqrt(math.fsum(pooled * pooled))
        if length == 0:
            raise ModelFileError("the embedding is zero, and has no direction: the model's file is damaged")
        pooled = pooled / length
    vector: NDArray[np.float32] = pooled.astype(np.float32)
    return vector


class EmbeddingWindow:
    """Keeps a few sequences in the scheduler, so that any number of texts leaves room for others."""

    def __init__(self, scheduler: Scheduler, sequences: Iterator[EmbeddingSequence], size: int) -> None:
        self._scheduler = scheduler
        self._sequences = sequences
        self._size = size
        self._next: EmbeddingSequence | None = next(sequences, None)
        self._under_way: deque[EmbeddingSequence] = deque()

    def oldest(self) -> Outlet[NDArray[np.float32]] | None:
        """Submit what there is room for. The outlet to wait for, to be followed by `pop`; None = all done.

        Raises EngineClosedError, and OverloadedError if there is no room for even one.
        """
        while self._next is not None and len(self._under_way) < self._size:
            try:
                self._scheduler.submit(self._next)
            except OverloadedError:
                if not self._under_way:
                    raise
                break
            self._under_way.append(self._next)
            self._next = next(self._sequences, None)
        return self._under_way[0].outlet if self._under_way else None

    def pop(self) -> None:
        self._under_way.popleft()

    def cancel(self) -> None:
        for sequence in self._under_way:
            sequence.outlet.cancelled = True
        self._scheduler.notice_cancel()
