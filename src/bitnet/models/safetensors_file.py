"""Safetensors files: their headers, checked, and rows of their tensors, read when they are asked for.

A file is read in pieces rather than mapped, so that a large model does not fill the memory. The `safetensors`
package has no bfloat16 without torch, and reads whole tensors.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import ConversionError
from bitnet.models.hf_config import read_object

_MAX_HEADER_BYTES: Final = 100_000_000  # the format's own limit
_MAX_FILES: Final = 1000
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")
# dtype -> bytes of an element, as stored
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U8": np.dtype("u1"), "BOOL": np.dtype("u1"),
}  # fmt: skip
_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a file. shape: as in PyTorch, [out features, in features]. offset: from the start of the
    file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def is_float(self) -> bool:
        return self.dtype in _FLOATS

    def rows(self, first: int, last: int) -> NDArray[Any]:
        """Rows [last - first, *shape[1:]] as stored, except that bfloat16 and float16 come as float32."""
        dtype = _DTYPES[self.dtype]
        width = math.prod(self.shape[1:])
        raw = _read(
            self.path, self.offset + first * width * dtype.itemsize, (last - first) * width * dtype.itemsize
        )
        values = raw.view(dtype).reshape(last - first, *self.shape[1:])
        if self.dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32) if self.dtype in ("F16", "F64") else values

    def pieces(self, max_bytes: int = 16 << 20) -> Iterator[NDArray[Any]]:
        """All rows, some at a time: about max_bytes as float32."""
        step = max(1, max_bytes // (4 * max(1, math.prod(self.shape[1:]))))
        for first in range(0, self.shape[0], step):
            yield self.rows(first, min(first + step, self.shape[0]))

    def all(self) -> NDArray[Any]:
        """The whole tensor; for small ones."""
        return self.rows(0, self.shape[0]) if self.shape else self._scalar()

    def _scalar(self) -> NDArray[Any]:
        return StoredTensor(self.name, self.dtype, (1,), self.path, self.offset).rows(0, 1)


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of the safetensors files of a folder, by name. Raises ConversionError."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ConversionError(f"{index} has no weight_map")
        names = set(weight_map.values())
    else:
        names = {"model.safetensors"}
        if not (folder / "model.safetensors").exists():
            legacy = sorted(path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt")])
            why = f"only {', '.join(legacy[:3])}, which can run code when they are read" if legacy else "none"
            raise ConversionError(f"{folder} has no model.safetensors ({why}); use a safetensors version")
    if len(names) > _MAX_FILES:
        raise ConversionError(f"{index} names {len(names)} files; at most {_MAX_FILES} are read")
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(names, key=str):
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise ConversionError(f"{index} names the file {name!r}; names of files beside it are expected")
        for tensor in read_header(folder / name):
            if tensor.name in tensors:
                raise ConversionError(f"{folder}: the tensor {tensor.name!r} is in two files")
            tensors[tensor.name] = tensor
    return tensors


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one file. Raises ConversionError for anything that does not fit together."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ConversionError(
                    f"{path} is not a safetensors file: a header of {length} bytes in {size}"
                )
            text = file.read(length)
    except FileNotFoundError:
        raise ConversionError(f"{path} is missing; download the model again") from None
    except OSError as error:
        raise ConversionError(f"cannot read {path}: {error.strerror}") from None
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path} is not a safetensors file: {error}") from None
    if not isinstance(header, dict):
        raise ConversionError(f"{path} is not a safetensors file: its header is no object")
    start = 8 + length
    found = [
        _tensor(path, name, entry, start, size) for name, entry in header.items() if name != "__metadata__"
    ]
    end = start
    for tensor, last in sorted(found, key=lambda one: one[0].offset):
        if tensor.offset < end:
            raise ConversionError(f"{path}: the tensor {tensor.name!r} overlaps with another")
        end = last
    return [tensor for tensor, _ in found]


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> tuple[StoredTensor, int]:
    """A tensor, and where it ends."""
    where = f"{path}: the tensor {name[:100]!r}"
    if not isinstance(entry, dict):
        raise ConversionError(f"{where} is not described")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ConversionError(f"{where} has the type {dtype!r}; known are {', '.join(_DTYPES)}"[:300])
    if not _are_sizes(shape) or len(shape) > 8 or not _are_sizes(offsets) or len(offsets) != 2:
        raise ConversionError(f"{where} has no sound shape and place: {shape!r}, {offsets!r}"[:300])
    first, last = offsets
    if not first <= last <= size - start or math.prod(shape) * _DTYPES[dtype].itemsize != last - first:
        raise ConversionError(
            f"{where} does not fit: {shape} of {dtype} at {first} to {last} of {size - start}"
        )
    return StoredTensor(name, dtype, tuple(shape), path, start + first), start + last


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _read(path: Path, offset: int, n_bytes: int) -> NDArray[np.uint8]:
    data = np.empty(n_bytes, dtype=np.uint8)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        view = data.data
        while view.nbytes:
            n_read = file.readinto(view)
            if not n_read:
                raise ConversionError(f"{path} has become shorter while it was read")
            view = view[n_read:]
    return data
