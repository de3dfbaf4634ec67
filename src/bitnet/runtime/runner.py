"""What computes the steps of a scheduler: the native engine's Runner, or one that does the same elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import ModelFileError, ValidationError

if TYPE_CHECKING:
    from bitnet import _native


def check_step(n: int, lengths: Sequence[int], most: int) -> None:
    """Raises ValidationError for a step of no tokens, of more than `most`, or whose slices have others."""
    if not 0 < n <= most or sum(lengths) != n:
        raise ValidationError(f"a step of {n} tokens, in slices of {list(lengths)}, cannot be computed")


def check_finite(values: NDArray[np.float32]) -> None:
    """Raises ModelFileError if a number is infinite or none at all."""
    if not np.isfinite(values).all():
        raise ModelFileError("the weights produce values that are not finite: the file is damaged")


def logprob(logits: NDArray[np.float32], token_id: int) -> float:
    """The log-probability of a token, in nats, by logits [vocab]. NaN for one below 0, which is none."""
    if token_id < 0:
        return math.nan
    exact = logits.astype(np.float64)
    highest = exact.max()
    return float(exact[token_id] - highest - np.log(np.exp(exact - highest).sum()))


class Runner(Protocol):
    """A model's forward pass, and the keys and values of its sequences. The methods are those of
    `bitnet._native.Runner`; any of them may raise DeviceError, after which the runner is of no more use."""

    @property
    def block_size(self) -> int:
        """Positions in one KV block."""

    @property
    def n_blocks(self) -> int: ...
    @property
    def n_threads(self) -> int: ...
    @property
    def kernels(self) -> str:
        """Who computes, for showing."""

    @property
    def kv_bytes(self) -> int: ...
    @property
    def n_gpu_layers(self) -> int:
        """Layers on a device with a memory of its own, of which gpu_bytes are taken."""

    @property
    def gpu_bytes(self) -> int: ...
    @property
    def max_batch_tokens(self) -> int: ...
    @property
    def tiles(self) -> dict[str, int]:
        """How the products are cut into pieces; {} = that is not for us to choose."""

    def forward(
        self,
        token_ids: NDArray[np.int32],
        block_tables: Sequence[Sequence[int]],
        starts: Sequence[int],
        lengths: Sequence[int],
        outputs: Sequence[int],
    ) -> None: ...
    def logits(self) -> NDArray[np.float32]: ...
    def logprobs(self, target_ids: NDArray[np.int32], first_output: int = 0) -> list[float]: ...
    def hidden(self) -> NDArray[np.float32]: ...
    def sample(self, output: int, sampler: _native.Sampler, logprobs: int = -1) -> _native.Sampled: ...
    def copy_block(self, source: int, target: int) -> None: ...
    def cancel(self) -> None: ...
