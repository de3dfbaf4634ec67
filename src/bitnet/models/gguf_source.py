"""GGUF files as model sources: every layout of ternary weights that can be read, and floating-point
ones of the form -s, 0, s."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from bitnet import _native
from bitnet.errors import BitNetError, ConversionError
from bitnet.models.gguf_writer import TensorType, tensor_bytes
from bitnet.models.latent import to_ternary
from bitnet.models.model_source import DenseTensor, ModelSource, TernaryTensor
from bitnet.models.tensor_codec import (
    DENSE_TYPES,
    TERNARY_TYPES,
    TlTile,
    decode_dense,
    decode_ternary,
)
from bitnet.values import TernaryLayout

ScaleUse = Literal["multiply", "divide"]
"""What codes and scales make: W = codes * scale, or W = codes / scale, as some converters have it."""

_LINEAR: Final = (
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
)
_PIECE_BYTES: Final = 16 << 20  # of float32


def read_gguf(
    path: Path,
    *,
    latent: bool = False,
    layout: TernaryLayout = "x128",
    tiles: Sequence[TlTile] = (),
    scales: ScaleUse = "multiply",
) -> ModelSource:
    """latent: floating-point weights that are not ternary are latent ones, to be rounded (absmean). layout,
    tiles: what the file does not say of its ternary tensors, see tensor_codec; scales: likewise, whether they
    multiply or divide.

    Raises ModelFileError, and ConversionError for what cannot be written as another type.
    """
    file = _native.ModelFile(str(path))
    kinds = file.metadata_kinds
    metadata = {key: (value, kinds[key]) for key, value in file.metadata.items()}
    ternary: list[TernaryTensor] = []
    dense: list[DenseTensor] = []
    infos = {tensor.name: tensor for tensor in file.tensors}
    factors = {name: info for name, info in infos.items() if name.endswith(".scale")}
    unused = set(factors)
    for name, info in infos.items():
        if name in factors:
            continue
        where = f"{path}: {name}"
        try:
            kind = TensorType[info.type_name]
        except KeyError:
            raise ConversionError(f"{where} has the type {info.type_name}, which is not read") from None
        shape = tuple(reversed(info.shape))
        while len(shape) > 1 and shape[0] == 1:  # trailing dimensions of one
            shape = shape[1:]
        place = (path, file.data_offset + info.offset)
        if kind in TERNARY_TYPES or name.endswith(_LINEAR):
            if len(shape) != 2:
                raise ConversionError(f"{where} has {len(shape)} dimensions; a matrix has two")
            beside = f"{name.removesuffix('.weight')}.scale"
            unused.discard(beside)
            scale = _scale(path, file.data_offset, factors[beside]) if beside in factors else 1.0
            n_bytes = info.n_bytes
            read: Callable[[], tuple[NDArray[np.int8], float]]
            if kind in TERNARY_TYPES:
                read = partial(_decode, where, place, n_bytes, kind, shape, scale, layout, tuple(tiles))
                if scales == "divide":
                    read = partial(_divided, where, read)
            elif scales == "divide":
                raise ConversionError(
                    f"{where} is in floating point ({kind.name}): there is no scale that could divide"
                )
            else:
                read = partial(_round, where, place, kind, shape, scale, latent)
            ternary.append(TernaryTensor(name, *shape, read))
        elif kind in DENSE_TYPES and len(shape) in (1, 2):
            pieces = partial(_pieces, place, kind, shape)
            dense.append(DenseTensor(name, shape, pieces, kind, partial(_raw, place, kind, shape)))
        else:
            raise ConversionError(f"{where} is not understood: {info.type_name} {list(shape)}")
    if unused:
        raise ConversionError(f"{path}: {sorted(unused)[0]} belongs to no matrix")
    if not ternary:
        raise ConversionError(f"{path} has no linear layers; it is not a language model")
    return ModelSource(metadata, ternary, dense)


def _scale(path: Path, start: int, info: _native.TensorInfo) -> float:
    if info.type_name != "F32" or math.prod(info.shape) != 1:
        raise ConversionError(f"{path}: {info.name} must be one F32 number")
    value = float(_read(path, start + info.offset, 4).view("<f4")[0])
    if not math.isfinite(value) or value < 0:
        raise ConversionError(f"{path}: {info.name} is {value}")
    return value


def _decode(
    where: str,
    place: tuple[Path, int],
    n_bytes: int,
    kind: TensorType,
    shape: tuple[int, int],
    factor: float,
    layout: TernaryLayout,
    tiles: tuple[TlTile, ...],
) -> tuple[NDArray[np.int8], float]:
    data = _read(*place, n_bytes)
    try:
        matrix = decode_ternary(data, kind, *shape, layout=layout, tiles=tiles)
        return matrix.codes, float(np.float32(matrix.scale) * np.float32(factor))
    except (BitNetError, ValueError) as error:
        raise ConversionError(f"{where}: {error}") from None


def _divided(
    where: str, read: Callable[[], tuple[NDArray[np.int8], float]]
) -> tuple[NDArray[np.int8], float]:
    """The scale that multiplies in place of one that divides, in f32 as the engine has it; 0 stays 0."""
    codes, scale = read()
    if scale > 0:
        with np.errstate(over="ignore"):
            scale = float(np.float32(1) / np.float32(scale))
        if not math.isfinite(scale):
            raise ConversionError(f"{where}: the scale is too small to divide by")
    return codes, scale


def _round(
    where: str, place: tuple[Path, int], kind: TensorType, shape: tuple[int, int], factor: float, latent: bool
) -> tuple[NDArray[np.int8], float]:
    codes, scale = to_ternary(where, shape, lambda: _pieces(place, kind, shape), latent=latent)
    return codes, float(np.float32(scale) * np.float32(factor))


def _pieces(
    place: tuple[Path, int], kind: TensorType, shape: tuple[int, ...]
) -> Iterator[NDArray[np.float32]]:
    for data, n_rows in _stored(place, kind, shape):
        rows = decode_dense(data, kind, n_rows, shape[-1])
        yield rows if len(shape) == 2 else rows[0]


def _raw(place: tuple[Path, int], kind: TensorType, shape: tuple[int, ...]) -> Iterator[NDArray[np.uint8]]:
    return (data for data, _ in _stored(place, kind, shape))


def _stored(
    place: tuple[Path, int], kind: TensorType, shape: tuple[int, ...]
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Some rows at a time, as they are in the file."""
    n_rows, columns = (1, shape[0]) if len(shape) == 1 else shape
    row_bytes = tensor_bytes(kind, [columns])
    step = max(1, _PIECE_BYTES // (4 * columns))
    for first in range(0, n_rows, step):
        count = min(step, n_rows - first)
        yield _read(place[0], place[1] + first * row_bytes, count * row_bytes), count


def _read(path: Path, offset: int, n_bytes: int) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        file.seek(offset)
        data = np.fromfile(file, dtype=np.uint8, count=n_bytes)
    if data.size != n_bytes:
        raise ConversionError(f"{path} has become shorter while it was read")
    return data
