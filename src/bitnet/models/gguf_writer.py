"""Writes GGUF v3 files: metadata in the order it was added, then the tensors, streamed one after another.

What keys and tensors mean is the caller's business; packing ternary matrices is in `ternary.py`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from math import prod
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

ALIGNMENT: Final = 32
"""Bytes; the default of the format, so that `general.alignment` need not be written."""

TensorBytes: TypeAlias = bytes | bytearray | memoryview | NDArray[Any]
TensorData: TypeAlias = TensorBytes | Callable[[], TensorBytes | Iterator[TensorBytes]]
Kind: TypeAlias = str | tuple[str, str]
"""The type of a metadata value: "u8" … "f64", "bool", "string", or ("array", kind)."""


class TensorType(IntEnum):
    """GGUF tensor type ids: upstream llama.cpp's, and bitnet.cpp's I2_S, TL1 and TL2."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q8_0 = 8
    Q6_K = 14
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    I2_S = 36
    TL1 = 38
    TL2 = 39  # in some files 42
    Q2_0 = 42


_BLOCKS: Final[dict[TensorType, tuple[int, int]]] = {  # (elements, bytes) of one block along dims[0]
    TensorType.F32: (1, 4),
    TensorType.F16: (1, 2),
    TensorType.BF16: (1, 2),
    TensorType.Q4_0: (32, 18),
    TensorType.Q8_0: (32, 34),
    TensorType.Q6_K: (256, 210),
    TensorType.TQ1_0: (256, 54),
    TensorType.TQ2_0: (256, 66),
    TensorType.Q2_0: (64, 18),
}
_SCALARS: Final[dict[str, tuple[int, str]]] = {  # kind -> (value type id, struct format)
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "?"),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}
_STRING: Final = 8
_ARRAY: Final = 9


def tensor_bytes(type_id: TensorType, dims: Sequence[int]) -> int:
    """Bytes of a tensor.

    I2_S, TL1 and TL2 end with 32 bytes that begin with their scale, behind codes up to a multiple of 32
    bytes. I2_S is blocked over the flat tensor (32 bytes per 128 elements, the last block padded), TL1 has
    4 elements in a byte, TL2 what bitnet.cpp declares for it. The other types are blocked along dims[0].
    Raises ValueError if dims[0] is not a whole number of blocks.
    """
    if type_id == TensorType.I2_S:
        return -(-prod(dims) // 128) * 32 + 32
    if type_id == TensorType.TL1:
        return _aligned(prod(dims) // 4) + 32
    if type_id == TensorType.TL2:
        columns, rows = dims[0], prod(dims[1:])
        if columns < 256:
            raise ValueError(f"TL2 needs rows of 256 elements at least, not {columns}")
        return _aligned((columns - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8) + 32
    elements, size = _BLOCKS[type_id]
    if dims[0] % elements:
        raise ValueError(f"{type_id.name} needs rows that are a multiple of {elements}, not {dims[0]}")
    return prod(dims) // elements * size


class GgufWriter:
    """Collects metadata and tensors, then writes the file at once.

        writer = GgufWriter("model.gguf")
        writer.add_metadata("general.architecture", "bitnet-b1.58", "string")
        writer.add_tensor("output_norm.weight", [2560], TensorType.F32, np.ones(2560, np.float32))
        writer.write()

    The file appears under its name only when it is complete.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._metadata: dict[str, bytes] = {}  # key -> encoded type and value
        self._tensors: dict[str, tuple[tuple[int, ...], TensorType, TensorData]] = {}

    def add_metadata(self, key: str, value: Any, kind: Kind) -> None:
        """Raises ValueError for an unknown kind or a repeated key, struct.error for a number out of range."""
        if not key or key in self._metadata:
            raise ValueError(f"metadata key {key!r} is empty or was added before")
        self._metadata[key] = _encode_value(value, kind)

    def add_tensor(
        self,
        name: str,
        dims: Sequence[int],
        type_id: TensorType | int,
        data: TensorData,
    ) -> None:
        """Add a tensor: `dims` in GGUF order (dims[0], the fastest: in features), `data` its bytes as stored.

        `data` may be a function that returns them, or an iterator of pieces of them: it is called once, while
        the file is written, so that a large model is never in memory as a whole. Raises ValueError for a
        repeated name or a wrong size.
        """
        if not name or len(name.encode()) >= 64 or name in self._tensors:  # 64: the limit of upstream readers
            raise ValueError(f"tensor name {name!r} is empty, longer than 63 bytes, or was added before")
        type_id = TensorType(type_id)
        shape = tuple(int(dim) for dim in dims)
        if not 1 <= len(shape) <= 4 or min(shape) < 1:
            raise ValueError(f"tensor {name}: impossible dimensions {shape}")
        expected = tensor_bytes(type_id, shape)
        if not callable(data):
            _check_size(name, data, expected)
        self._tensors[name] = (shape, type_id, data)

    def write(self, progress: Callable[[int], None] | None = None) -> None:
        """Write the file: under no name or a temporary one, then renamed. progress: is told how many bytes
        of tensors were written since it was last called."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            with _open_new(temporary) as file:
                self._write_to(file, progress or (lambda n_bytes: None))
                file.flush()
                os.fsync(file.fileno())
                _give_name(file, temporary)
            os.replace(temporary, self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _write_to(self, file: IO[bytes], progress: Callable[[int], None]) -> None:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(self._tensors), len(self._metadata)))
        for key, encoded in self._metadata.items():
            file.write(_encode_string(key) + encoded)
        offset = 0
        for name, (dims, type_id, _) in self._tensors.items():
            file.write(
                _encode_string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset)
            )
            offset += _aligned(tensor_bytes(type_id, dims))
        position = file.tell()
        file.write(bytes(_aligned(position) - position))
        for name, (dims, type_id, data) in self._tensors.items():
            size = tensor_bytes(type_id, dims)
            content = data() if callable(data) else data
            if isinstance(content, Iterator):
                _write_pieces(file, name, content, size, progress)
            else:
                file.write(_check_size(name, content, size))
                progress(size)
            file.write(bytes(_aligned(size) - size))


def _open_new(path: Path) -> IO[bytes]:
    """A new file, without a name where the system can do that (Linux): nothing of it survives a kill."""
    if hasattr(os, "O_TMPFILE"):
        with contextlib.suppress(OSError):
            return os.fdopen(os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o666), "w+b")
    return path.open("wb")


def _give_name(file: IO[bytes], path: Path) -> None:
    if not isinstance(file.name, int):  # it has one
        return
    path.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # With a folder, os.link is linkat(2) with AT_SYMLINK_FOLLOW, which follows what /proc shows.
        os.link(f"/proc/self/fd/{file.fileno()}", path, src_dir_fd=folder)
    except OSError:  # /proc is not there, or the file system has no such links
        file.seek(0)
        with path.open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
    finally:
        os.close(folder)


def _write_pieces(
    file: IO[bytes], name: str, pieces: Iterator[TensorBytes], expected: int, progress: Callable[[int], None]
) -> None:
    n_bytes = 0
    for piece in pieces:
        view = _as_bytes(piece)
        n_bytes += view.nbytes
        if n_bytes > expected:
            break
        file.write(view)
        progress(view.nbytes)
    if n_bytes != expected:
        raise ValueError(
            f"tensor {name}: {n_bytes} bytes or more given, its type and dimensions need {expected}"
        )


def _encode_value(value: Any, kind: Kind) -> bytes:
    if isinstance(kind, tuple):
        _, element = kind
        items = value.tolist() if isinstance(value, np.ndarray) else list(value)
        if element == "string":
            body = b"".join(_encode_string(item) for item in items)
            return struct.pack("<IIQ", _ARRAY, _STRING, len(items)) + body
        type_id, code = _scalar(element)
        return struct.pack(f"<IIQ{len(items)}{code}", _ARRAY, type_id, len(items), *items)
    if kind == "string":
        return struct.pack("<I", _STRING) + _encode_string(value)
    type_id, code = _scalar(kind)
    return struct.pack(f"<I{code}", type_id, value)


def _scalar(kind: str) -> tuple[int, str]:
    if kind not in _SCALARS:
        raise ValueError(
            f"unknown metadata kind {kind!r}; known are {', '.join(_SCALARS)}, string and arrays of these"
        )
    return _SCALARS[kind]


def _encode_string(text: str) -> bytes:
    # surrogateescape: bytes that were not UTF-8 when they were read go back as they were.
    encoded = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(encoded)) + encoded


def _as_bytes(data: TensorBytes) -> memoryview:
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data).view(np.uint8).reshape(-1).data
    return memoryview(data).cast("B")


def _check_size(name: str, data: TensorBytes, expected: int) -> memoryview:
    view = _as_bytes(data)
    if view.nbytes != expected:
        raise ValueError(f"tensor {name}: {view.nbytes} bytes given, its type and dimensions need {expected}")
    return view


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT
