"""Takes a GGUF file apart and puts it together again, for tests that damage one.

Independent of the reader and the writer under test; records keep their raw bytes and places in the file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from math import prod

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
NUMBER_FORMAT = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "B",
    U64: "Q",
    I64: "q",
    F64: "d",
}

# Tensor types, and (elements, bytes) of their blocks. The first of the ternary ones are sized over the whole
# tensor; the engine does not read the types of the last line.
TYPE_F32, TYPE_F16, TYPE_Q8_0, TYPE_Q6_K, TYPE_BF16 = 0, 1, 8, 14, 30
TYPE_I2_S, TYPE_TL1, TYPE_TL2, TYPE_TQ1_0, TYPE_TQ2_0, TYPE_Q2_0 = 36, 38, 39, 34, 35, 42
TERNARY_TYPES = (TYPE_I2_S, TYPE_TL1, TYPE_TL2, TYPE_TQ1_0, TYPE_TQ2_0, TYPE_Q2_0)
TYPE_Q4_K, TYPE_UNKNOWN = 12, 99
BLOCKS = {
    TYPE_F32: (1, 4),
    TYPE_F16: (1, 2),
    TYPE_Q8_0: (32, 34),
    TYPE_Q6_K: (256, 210),
    TYPE_BF16: (1, 2),
    TYPE_TQ1_0: (256, 54),
    TYPE_TQ2_0: (256, 66),
    TYPE_Q2_0: (64, 18),
}


@dataclass
class KeyValue:
    key: bytes
    type: int
    value: bytes  # as stored, without the type
    at: int = 0  # file offsets of the record, its type, its value and its end
    type_at: int = 0
    value_at: int = 0
    end: int = 0

    def number(self) -> int | float:
        return struct.unpack("<" + NUMBER_FORMAT[self.type], self.value)[0]

    def array_header(self) -> tuple[int, int]:
        """Element type and count."""
        return struct.unpack_from("<IQ", self.value)


@dataclass
class Tensor:
    name: bytes
    dims: list[int]
    type: int
    offset: int
    data: bytes = b""
    at: int = 0  # file offsets of the record, its fields and its end
    dims_at: int = 0
    type_at: int = 0
    offset_at: int = 0
    end: int = 0

    @property
    def n_elements(self) -> int:
        return prod(self.dims)

    @property
    def n_bytes(self) -> int:
        return tensor_bytes(self.type, self.dims)


@dataclass
class Gguf:
    """A file taken apart: what it holds, and where."""

    file: bytes
    version: int
    metadata: list[KeyValue]
    tensors: list[Tensor]
    data_start: int
    by_key: dict[bytes, KeyValue] = field(init=False)
    by_name: dict[bytes, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.by_key = {kv.key: kv for kv in self.metadata}
        self.by_name = {tensor.name: tensor for tensor in self.tensors}


def tensor_bytes(type: int, dims: list[int]) -> int:
    n_elements = prod(dims)
    if type == TYPE_I2_S:
        return (n_elements + 127) // 128 * 32 + 32
    if type == TYPE_TL1:
        return (n_elements // 4 + 31) // 32 * 32 + 32
    if type == TYPE_TL2:
        columns, rows = dims[0], n_elements // dims[0]
        codes = (columns - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8
        return (codes + 31) // 32 * 32 + 32
    elements, size = BLOCKS[type]
    return n_elements // elements * size


# ---- reading and writing --------------------------------------------------------------------------


def parse(file: bytes) -> Gguf:
    position = 24
    magic, version, n_tensors, n_metadata = struct.unpack_from("<4sIQQ", file)
    assert magic == b"GGUF"

    def number(fmt: str) -> int:
        nonlocal position
        value = struct.unpack_from("<" + fmt, file, position)[0]
        position += struct.calcsize("<" + fmt)
        return value

    def string() -> bytes:
        nonlocal position
        length = number("Q")
        position += length
        return file[position - length : position]

    def skip_value(type: int) -> None:
        nonlocal position
        if type == STRING:
            string()
        elif type == ARRAY:
            element_type, count = number("I"), number("Q")
            if element_type == STRING:
                for _ in range(count):
                    string()
            else:
                position += count * struct.calcsize(NUMBER_FORMAT[element_type])
        else:
            position += struct.calcsize(NUMBER_FORMAT[type])

    metadata = []
    for _ in range(n_metadata):
        at = position
        key = string()
        type_at = position
        type = number("I")
        value_at = position
        skip_value(type)
        metadata.append(KeyValue(key, type, file[value_at:position], at, type_at, value_at, position))

    tensors = []
    for _ in range(n_tensors):
        at = position
        name = string()
        n_dims = number("I")
        dims_at = position
        dims = [number("Q") for _ in range(n_dims)]
        type_at = position
        type = number("I")
        offset_at = position
        tensors.append(Tensor(name, dims, type, number("Q"), b"", at, dims_at, type_at, offset_at, position))

    alignment = next((int(kv.number()) for kv in metadata if kv.key == b"general.alignment"), 32)
    data_start = -(-position // alignment) * alignment
    for tensor in tensors:
        begin = data_start + tensor.offset
        tensor.data = file[begin : begin + tensor.n_bytes]
        assert len(tensor.data) == tensor.n_bytes, tensor.name
    return Gguf(file, version, metadata, tensors, data_start)


def pack_string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def unpack_string(kv: KeyValue) -> bytes:
    return kv.value[8:]


def pack_strings(texts: list[bytes]) -> bytes:
    return struct.pack("<IQ", STRING, len(texts)) + b"".join(map(pack_string, texts))


def unpack_strings(value: bytes) -> list[bytes]:
    texts, position = [], 12
    for _ in range(struct.unpack_from("<Q", value, 4)[0]):
        (length,) = struct.unpack_from("<Q", value, position)
        texts.append(value[position + 8 : position + 8 + length])
        position += 8 + length
    return texts


def pack_tensor_info(tensor: Tensor) -> bytes:
    dims = struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
    return pack_string(tensor.name) + dims + struct.pack("<IQ", tensor.type, tensor.offset)


def assemble(version: int, metadata: list[KeyValue], tensors: list[Tensor]) -> bytes:
    """A file of these records, the tensors laid out anew one behind the other."""
    alignment = 32
    for kv in metadata:
        if kv.key == b"general.alignment" and kv.type == U32 and kv.number() in (8, 16, 32, 64, 128):
            alignment = int(kv.number())
    out = bytearray(struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata)))
    for kv in metadata:
        out += pack_string(kv.key) + struct.pack("<I", kv.type) + kv.value
    offset = 0
    for tensor in tensors:
        out += pack_tensor_info(replace(tensor, offset=offset))
        offset += -(-len(tensor.data) // alignment) * alignment
    for tensor in tensors:
        out += bytes(-len(out) % alignment) + tensor.data
    out += bytes(-len(out) % alignment)
    return bytes(out)


# ---- edits of the valid file ----------------------------------------------------------------------


def patch(file: bytes, at: int, fmt: str, *values: object) -> bytes:
    raw = struct.pack("<" + fmt, *values)
    return file[:at] + raw + file[at + len(raw) :]


def with_metadata(gguf: Gguf, *changes: KeyValue) -> bytes:
    """The file with these keys replaced, or added where they are absent."""
    changed = {kv.key: kv for kv in changes}
    metadata = [changed.pop(kv.key, kv) for kv in gguf.metadata] + list(changed.values())
    return assemble(gguf.version, metadata, gguf.tensors)


def without_key(gguf: Gguf, key: bytes) -> bytes:
    return assemble(gguf.version, [kv for kv in gguf.metadata if kv.key != key], gguf.tensors)


def with_tensor(gguf: Gguf, name: bytes, changed: Tensor) -> bytes:
    return assemble(gguf.version, gguf.metadata, [changed if t.name == name else t for t in gguf.tensors])


def u32(key: bytes, value: int) -> KeyValue:
    return KeyValue(key, U32, struct.pack("<I", value))


def f32(key: bytes, value: float) -> KeyValue:
    return KeyValue(key, F32, struct.pack("<f", value))


def text(key: bytes, value: bytes) -> KeyValue:
    return KeyValue(key, STRING, pack_string(value))


def label(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
