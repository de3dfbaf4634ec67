"""Tensors as model files store them, to arrays and back: every type this package reads, one at a time.

The work is done by the native engine, which reads files with the same code; it releases the GIL. A whole
tensor goes in and comes out: files are walked by `gguf_writer`, `inspect` and their callers.

    type                                 decode  encode   bytes equal
    f32 f16 bf16 q8_0 q4_0               yes     yes      gguf package
    q6_k                                 yes     yes      decoding: gguf package
    i2_s  (x128; reads arm64, row4)      yes     yes      bitnet.cpp's converter
    tl1   (tiles by shape, or given)     yes     yes      bitnet.cpp's converter
    tl2   (tiles by shape, or given)     yes     no
    tq1_0 tq2_0                          yes     yes      gguf package
    q2_0  (codes -1, 0, +1 only)         yes     yes      llama.cpp
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from bitnet import _native
from bitnet.errors import ValidationError
from bitnet.models.gguf_writer import TensorType
from bitnet.values import TernaryLayout

LAYOUTS: tuple[TernaryLayout, ...] = get_args(TernaryLayout)
"""What no file says of itself. Of I2_S: "x128", the order of all published files; "arm64", that of
bitnet.cpp's quantiser on ARM since November 2025; "row4", that of its builds without ACT_PARALLEL. Of TL1:
"x128", the tiles that bitnet.cpp's setup generates; "preset", those of its preset kernels."""

TlTile: TypeAlias = tuple[int, int, int, int, int]
"""m, k, bm, bk, bmm of bitnet.cpp's kernel_config.ini: the tiles that TL1 and TL2 cut a matrix of m rows and
k columns into."""

TERNARY_TYPES = frozenset(
    {
        TensorType.I2_S,
        TensorType.TL1,
        TensorType.TL2,
        TensorType.TQ1_0,
        TensorType.TQ2_0,
        TensorType.Q2_0,
    }
)
DENSE_TYPES = frozenset(
    {
        TensorType.F32,
        TensorType.F16,
        TensorType.BF16,
        TensorType.Q4_0,
        TensorType.Q8_0,
        TensorType.Q6_K,
    }
)

Buffer: TypeAlias = bytes | bytearray | memoryview | NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TernaryMatrix:
    """W = scale * codes.

    codes: int8 [rows, columns] of -1, 0, +1. scales: float32 [1], or [rows * columns / block] for types that
    have a scale in each block, row by row; a block of zeros has the scale 0 there.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    @property
    def scale(self) -> float:
        """The one scale of the matrix. Raises ValueError if blocks have different ones."""
        nonzero = self.scales[self.scales != 0]
        if nonzero.size and np.any(nonzero != nonzero[0]):
            raise ValueError(
                f"the blocks have different scales, {nonzero.min():g} to {nonzero.max():g}: this was "
                "quantised from weights that are not ternary"
            )
        return float(nonzero[0]) if nonzero.size else 0.0

    def values(self) -> NDArray[np.float32]:
        """W, float32 [rows, columns]."""
        blocks = self.codes.reshape(self.scales.size, -1).astype(np.float32)
        return (blocks * self.scales[:, None]).reshape(self.codes.shape)


def decode_ternary(
    data: Buffer,
    tensor_type: TensorType,
    rows: int,
    columns: int,
    *,
    layout: TernaryLayout = "x128",
    tiles: Sequence[TlTile] = (),
) -> TernaryMatrix:
    """The matrix that `data` holds; more bytes than the type needs are allowed.

    tiles: of TL1 and TL2, by shape; empty = those that are known for published shapes.
    Raises ValidationError: too few bytes, a code that stands for no ternary weight, a scale that is negative
    or not finite, columns that are not whole blocks, tiles that are not known.
    """
    _check_type(tensor_type, TERNARY_TYPES, "ternary")
    codes, scales = _native.decode_ternary(
        _as_bytes(data), tensor_type.name, rows, columns, layout=layout, tl_tiles=list(tiles)
    )
    return TernaryMatrix(codes, scales)


def encode_ternary(
    codes: NDArray[np.int8],
    scale: float,
    tensor_type: TensorType,
    *,
    layout: TernaryLayout = "x128",
    tiles: Sequence[TlTile] = (),
) -> bytes:
    """The bytes of a tensor of codes [rows, columns] and one scale, without a loss where the scale is an f16.

    TQ1_0, TQ2_0 (256 columns) and Q2_0 (64) store the scale as f16 in each block, 0 where all codes are 0.
    Raises ValidationError: other codes, a scale that is negative, not finite or too large, columns that are
    not whole blocks, tiles of TL1 that are not known, TL2.
    """
    _check_type(tensor_type, TERNARY_TYPES, "ternary")
    codes = np.ascontiguousarray(codes, dtype=np.int8)
    return _native.encode_ternary(codes, scale, tensor_type.name, layout=layout, tl_tiles=list(tiles))


def decode_dense(data: Buffer, tensor_type: TensorType, rows: int, columns: int) -> NDArray[np.float32]:
    """Float32 [rows, columns]. Raises ValidationError: too few bytes, columns that are not whole blocks."""
    _check_type(tensor_type, DENSE_TYPES, "dense")
    return _native.decode_rows(_as_bytes(data), tensor_type.name, rows, columns)


def encode_dense(values: NDArray[np.floating], tensor_type: TensorType) -> bytes:
    """The bytes of finite values [rows, columns].

    What is too large for f16 becomes infinite. Raises ValidationError: columns that are not whole blocks.
    """
    _check_type(tensor_type, DENSE_TYPES, "dense")
    rows = np.ascontiguousarray(values, dtype=np.float32)
    return _native.encode_rows(rows, tensor_type.name).tobytes()


def _as_bytes(data: Buffer) -> NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)


def _check_type(tensor_type: TensorType, known: frozenset[TensorType], kind: str) -> None:
    if tensor_type not in known:
        names = ", ".join(sorted(one.name.lower() for one in known))
        raise ValidationError(f"{tensor_type!r} is no {kind} type: {names}", field="tensor_type")
