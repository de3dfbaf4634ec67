"""A model that can be written as a GGUF file: metadata, and tensors that are read when they are written.

hf_folder.py and gguf_source.py make them, conversion.py writes them. Tensors have the names and the order of
rows of GGUF files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.models.gguf_writer import Kind, TensorType


@dataclass(frozen=True, slots=True)
class TernaryTensor:
    """read: the codes int8 [rows, columns] and the scale, W = scale * codes."""

    name: str
    rows: int
    columns: int
    read: Callable[[], tuple[NDArray[np.int8], float]]


@dataclass(frozen=True, slots=True)
class DenseTensor:
    """shape: [rows, columns] or [size]. pieces: some rows at a time, float32 [n, columns] or [n]. stored: the
    type it is kept in, unless another one is asked for; raw: its bytes in that type, if it is to be copied as
    it is."""

    name: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[NDArray[np.float32]]]
    stored: TensorType = TensorType.F32
    raw: Callable[[], Iterator[NDArray[np.uint8]]] | None = None

    @property
    def is_embedding(self) -> bool:
        """Whether --embd-type is about it: the embedding and the output head."""
        return self.name in ("token_embd.weight", "output.weight")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """metadata: key -> (value, kind), without what depends on how tensors are stored. notes: sentences on
    what was decided or put right."""

    metadata: dict[str, tuple[Any, Kind]]
    ternary: list[TernaryTensor]
    dense: list[DenseTensor]
    notes: list[str] = field(default_factory=list)
