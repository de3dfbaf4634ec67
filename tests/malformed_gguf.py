"""Damaged model files: a thousand variants of one small valid BitNet GGUF, each of which must be refused.

Every variant is named "LAYER: DAMAGE". LAYER says who refuses it at the latest:
- container: the GGUF reader (native/gguf): the file cannot be opened
- model: loading the model (native/model): the container is sound, the weights or their description are not
- tokenizer: building the tokenizer (bitnet.text): the vocabulary in the metadata is not usable

`python tests/malformed_gguf.py VALID.gguf OUTDIR` writes all variants as files, for a run under sanitizers.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from gguf_anatomy import (
    ARRAY,
    BLOCKS,
    BOOL,
    F32,
    F64,
    I32,
    NUMBER_FORMAT,
    STRING,
    TERNARY_TYPES,
    TYPE_BF16,
    TYPE_F16,
    TYPE_F32,
    TYPE_I2_S,
    TYPE_Q2_0,
    TYPE_Q4_K,
    TYPE_Q6_K,
    TYPE_Q8_0,
    TYPE_TL1,
    TYPE_TL2,
    TYPE_TQ1_0,
    TYPE_TQ2_0,
    TYPE_UNKNOWN,
    U32,
    U64,
    Gguf,
    KeyValue,
    Tensor,
    assemble,
    f32,
    label,
    pack_strings,
    parse,
    patch,
    text,
    u32,
    unpack_string,
    unpack_strings,
    with_metadata,
    with_tensor,
    without_key,
)

NAN, INFINITY = float("nan"), float("inf")
Variant = tuple[str, bytes]


def truncations(gguf: Gguf) -> Iterator[Variant]:
    cuts = {
        0: "empty file",
        3: "inside the magic",
        4: "after the magic",
        8: "after the version",
        16: "after the tensor count",
    }
    cuts[24] = "after the header"
    for kv in gguf.metadata:
        key = label(kv.key)
        cuts[kv.at + 8] = f"before key {key}"
        cuts[kv.type_at] = f"after key {key}"
        cuts[kv.value_at] = f"after the type of {key}"
        cuts[kv.end - 1] = f"inside the value of {key}"
        cuts[kv.end] = f"after the value of {key}"
        if kv.type in (STRING, ARRAY):
            cuts[kv.value_at + 4] = f"inside the length or element type of {key}"
        if kv.type == ARRAY:
            cuts[kv.value_at + 12] = f"before the elements of {key}"
            cuts[(kv.value_at + 12 + kv.end) // 2] = f"between the elements of {key}"
    for tensor in gguf.tensors:
        name = label(tensor.name)
        cuts[tensor.at + 8] = f"before tensor name {name}"
        cuts[tensor.dims_at - 4] = f"after tensor name {name}"
        cuts[tensor.dims_at] = f"before the dimensions of {name}"
        cuts[tensor.type_at] = f"before the type of {name}"
        cuts[tensor.offset_at] = f"before the offset of {name}"
        cuts[tensor.end] = f"after the record of {name}"
        begin = gguf.data_start + tensor.offset
        cuts[begin] = f"before the data of {name}"
        cuts[begin + tensor.n_bytes - 1] = f"one byte before the end of the data of {name}"
    for cut in sorted(cuts):
        yield f"container: truncated {cuts[cut]} ({cut} bytes)", gguf.file[:cut]


def headers(gguf: Gguf) -> Iterator[Variant]:
    file = gguf.file
    yield "container: wrong magic", b"GGML" + file[4:]
    yield "container: byte-swapped magic", b"FUGG" + file[4:]
    yield "container: a zip archive", b"PK\x03\x04" + file[4:]
    yield "container: all zero", bytes(len(file))
    yield "container: all ones", b"\xff" * len(file)
    for version in (0, 1, 4, 2**31, 2**32 - 1):
        yield f"container: version {version}", patch(file, 4, "I", version)
    yield "container: big-endian version 3", file[:4] + struct.pack(">I", 3) + file[8:]
    n_tensors, n_metadata = len(gguf.tensors), len(gguf.metadata)
    for count in (
        0,
        n_metadata - 1,
        n_metadata + 1,
        len(file),
        2**31,
        2**32,
        2**63,
        2**64 - 1,
        (2**64 - 1) // 14,
    ):
        yield f"container: key-value count {count} instead of {n_metadata}", patch(file, 16, "Q", count)
    for count in (n_tensors + 1, len(file), 2**31, 2**32, 2**63, 2**64 - 1, (2**64 - 1) // 25):
        yield f"container: tensor count {count} instead of {n_tensors}", patch(file, 8, "Q", count)
    # Announcing fewer tensors than are described moves the data section: the model lacks the last one.
    yield f"model: tensor count {n_tensors - 1} instead of {n_tensors}", patch(file, 8, "Q", n_tensors - 1)
    yield "model: tensor count 0", patch(file, 8, "Q", 0)


def metadata_records(gguf: Gguf) -> Iterator[Variant]:
    file = gguf.file
    for kv in gguf.metadata:
        key = label(kv.key)
        for length in (0, 2**16, 2**31, 2**63, 2**64 - 1):
            yield f"container: key length {length} for {key}", patch(file, kv.at, "Q", length)
        for type in (13, 255, 2**32 - 1):
            yield f"container: value type {type} for {key}", patch(file, kv.type_at, "I", type)
        yield f"container: key {key} is not UTF-8", patch(file, kv.at + 8, "B", 0xFF)
        if kv.type == STRING:
            for length in (len(file), 2**31, 2**63, 2**64 - 1):
                yield f"container: string length {length} for {key}", patch(file, kv.value_at, "Q", length)
            yield f"container: invalid UTF-8 in {key}", with_metadata(gguf, text(kv.key, b"ab\xc3\x28cd"))
            yield f"container: UTF-8 surrogate in {key}", with_metadata(gguf, text(kv.key, b"\xed\xa0\x80"))
            yield f"container: overlong UTF-8 in {key}", with_metadata(gguf, text(kv.key, b"\xc0\xaf"))
        elif kv.type == BOOL:
            yield f"container: bool 2 for {key}", patch(file, kv.value_at, "B", 2)
            yield f"container: bool 255 for {key}", patch(file, kv.value_at, "B", 255)
        elif kv.type == ARRAY:
            element_type, count = kv.array_header()
            for bad_count in (count + len(file), 2**31, 2**61, 2**62, 2**63, 2**64 - 1):
                yield (
                    f"container: array count {bad_count} for {key}",
                    patch(file, kv.value_at + 4, "Q", bad_count),
                )
            yield f"container: array of arrays in {key}", patch(file, kv.value_at, "I", ARRAY)
            yield f"container: array element type 13 in {key}", patch(file, kv.value_at, "I", 13)
            if element_type == STRING:
                yield (
                    f"container: element length 2^64-1 in {key}",
                    patch(file, kv.value_at + 12, "Q", 2**64 - 1),
                )
                elements = unpack_strings(kv.value)
                elements[-1] = b"\xf5\x80\x80\x80"
                yield (
                    f"container: invalid UTF-8 in the last element of {key}",
                    with_metadata(gguf, replace(kv, value=pack_strings(elements))),
                )
    first = gguf.metadata[0]
    yield "container: duplicated first key", assemble(gguf.version, [*gguf.metadata, first], gguf.tensors)
    other = text(first.key, b"another value")
    yield (
        "container: first key repeated with another value",
        assemble(gguf.version, [*gguf.metadata, other], gguf.tensors),
    )
    key = b"bitnet.test"
    additions = {
        "empty key": u32(b"", 1),
        "key of 65536 bytes": u32(b"k" * 65536, 1),
        "nested array": KeyValue(key, ARRAY, struct.pack("<IQ", ARRAY, 1) + struct.pack("<IQI", U32, 1, 7)),
        "bool array holding 3": KeyValue(key, ARRAY, struct.pack("<IQ3B", BOOL, 3, 0, 1, 3)),
    }
    for damage, kv in additions.items():
        yield f"container: {damage}", with_metadata(gguf, kv)


def alignments(gguf: Gguf) -> Iterator[Variant]:
    key = b"general.alignment"
    for value in (0, 3, 12, 33, 2**31, 2**32 - 1):
        yield f"container: alignment {value}", with_metadata(gguf, u32(key, value))
    wrong_types = {
        "u64": KeyValue(key, U64, struct.pack("<Q", 32)),
        "i32": KeyValue(key, I32, struct.pack("<i", 32)),
        "negative i32": KeyValue(key, I32, struct.pack("<i", -32)),
        "f32": f32(key, 32.0),
        "string": text(key, b"32"),
        "array": KeyValue(key, ARRAY, struct.pack("<IQI", U32, 1, 32)),
    }
    for type, kv in wrong_types.items():
        yield f"container: alignment as {type}", with_metadata(gguf, kv)


def tensor_records(gguf: Gguf) -> Iterator[Variant]:
    file = gguf.file
    data_bytes = len(file) - gguf.data_start
    first, last = gguf.tensors[0], gguf.tensors[-1]
    ternary = next(t for t in gguf.tensors if t.type in TERNARY_TYPES)
    for tensor in dict.fromkeys(t.name for t in (first, ternary, last)):
        tensor = gguf.by_name[tensor]
        name = label(tensor.name)
        for length in (0, 64, 2**16, 2**63, 2**64 - 1):
            yield f"container: name length {length} for tensor {name}", patch(file, tensor.at, "Q", length)
        yield f"container: name of tensor {name} is not UTF-8", patch(file, tensor.at + 8, "B", 0xFF)
        for n_dims in (5, 255, 2**31, 2**32 - 1):
            yield f"container: {n_dims} dimensions for {name}", patch(file, tensor.dims_at - 4, "I", n_dims)
        for d in range(len(tensor.dims)):
            others = tensor.n_elements // tensor.dims[d]
            for dim in sorted({0, 2**32, 2**62, 2**63, 2**64 - 1, min(2**64 - 1, 2**64 // others)}):
                yield (
                    f"container: dimension {d} = {dim} for {name}",
                    patch(file, tensor.dims_at + 8 * d, "Q", dim),
                )
        wrapping = replace(tensor, dims=[2**32, 2**32, 1, 1])
        yield (
            f"container: dimensions of {name} that wrap around to 0",
            with_tensor(gguf, tensor.name, wrapping),
        )
        wrapping = replace(tensor, dims=[2**31 + 2**30, 2**33, 3])
        yield f"container: dimensions of {name} that wrap around", with_tensor(gguf, tensor.name, wrapping)
        for offset in (tensor.offset + 1, tensor.offset + 16, 31, 2**63 + 1, 2**64 - 1):
            yield (
                f"container: misaligned offset {offset} for {name}",
                patch(file, tensor.offset_at, "Q", offset),
            )
        for offset in (-(-data_bytes // 4096) * 4096, 2**32, 2**62, 2**63, 2**64 - 4096):
            yield (
                f"container: offset {offset} behind the file for {name}",
                patch(file, tensor.offset_at, "Q", offset),
            )
        yield (
            f"container: {name} is duplicated",
            assemble(gguf.version, gguf.metadata, [*gguf.tensors, tensor]),
        )
    by_offset = sorted(gguf.tensors, key=lambda tensor: tensor.offset)
    for one, other in pairwise(by_offset):
        name = f"{label(other.name)} on top of {label(one.name)}"
        yield f"container: overlap, {name}", patch(file, other.offset_at, "Q", one.offset)
    long = next((t for t in by_offset if t.n_bytes > 64), None)
    if long is not None:
        shifted = by_offset[(by_offset.index(long) + 1) % len(by_offset)]
        yield "container: partial overlap", patch(file, shifted.offset_at, "Q", long.offset + 32)
    # Two extra dimensions of 1 are harmless; these make the tensor larger than its data.
    grown = replace(last, dims=[*last.dims[:-1], last.dims[-1] * 2**20])
    yield "container: last tensor larger than the file", with_tensor(gguf, last.name, grown)
    for type, elements in ((TYPE_Q8_0, 32), (TYPE_Q6_K, 256), (TYPE_TQ2_0, 256), (TYPE_Q2_0, 64)):
        broken = replace(first, type=type, dims=[elements // 2, 2])
        yield f"container: type {type} with rows of half a block", with_tensor(gguf, first.name, broken)


def architecture_keys(gguf: Gguf) -> Iterator[Variant]:
    architecture = unpack_string(gguf.by_key[b"general.architecture"])
    for name in (b"", b"mamba", b"bitnet\x00", b"BITNET", b"clip", b"x" * 100):
        yield f"model: architecture {label(name)!r}", with_metadata(gguf, text(b"general.architecture", name))
    yield "model: general.architecture is missing", without_key(gguf, b"general.architecture")
    yield "model: general.architecture is a number", with_metadata(gguf, u32(b"general.architecture", 1))

    def key(name: str) -> bytes:
        return architecture + b"." + name.encode()

    def value(name: str) -> int:
        return int(gguf.by_key[key(name)].number())

    required = [
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
    ]
    required += ["attention.layer_norm_rms_epsilon"]
    for name in required:
        yield f"model: {name} is missing", without_key(gguf, key(name))
    integers = [*required[:-1], "attention.head_count_kv", "rope.dimension_count", "vocab_size"]
    for name in integers:
        if key(name) not in gguf.by_key:
            continue
        n = value(name)
        wrong_types = {
            "a string": text(key(name), str(n).encode()),
            "a float": f32(key(name), float(n)),
            "a bool": KeyValue(key(name), BOOL, b"\x01"),
            "an array": KeyValue(key(name), ARRAY, struct.pack("<IQI", U32, 1, n)),
            "negative": KeyValue(key(name), I32, struct.pack("<i", -n)),
            "2^32 + itself": KeyValue(key(name), U64, struct.pack("<Q", 2**32 + n)),
            "zero": u32(key(name), 0),
        }
        for wrong, kv in wrong_types.items():
            yield f"model: {name} is {wrong}", with_metadata(gguf, kv)
        if name != "context_length":
            for wrong in (n + 1, 2**31 - 1, 2**31, 2**32 - 1):
                yield f"model: {name} is {wrong}", with_metadata(gguf, u32(key(name), wrong))

    embedding, heads = value("embedding_length"), value("attention.head_count")
    odd = next(n for n in range(3, embedding) if embedding % n != 0)
    yield (
        f"model: {odd} heads do not divide {embedding}",
        with_metadata(gguf, u32(key("attention.head_count"), odd), u32(key("attention.head_count_kv"), odd)),
    )
    not_dividing = next(n for n in range(2, heads + 2) if heads % n != 0)
    for kv_heads in (not_dividing, 2 * heads):
        yield (
            f"model: {kv_heads} KV heads for {heads} heads",
            with_metadata(gguf, u32(key("attention.head_count_kv"), kv_heads)),
        )
    head_dim = embedding // heads
    for rope in (1, head_dim - 1, 2 * head_dim):
        yield (
            f"model: rope.dimension_count {rope} for heads of {head_dim}",
            with_metadata(gguf, u32(key("rope.dimension_count"), rope)),
        )
    for name in ("attention.layer_norm_rms_epsilon", "rope.freq_base"):
        for wrong in (0.0, -1.0, NAN, INFINITY, -INFINITY):
            yield f"model: {name} is {wrong}", with_metadata(gguf, f32(key(name), wrong))
        yield f"model: {name} is a string", with_metadata(gguf, text(key(name), b"10000"))
        yield (
            f"model: {name} is an array",
            with_metadata(gguf, KeyValue(key(name), ARRAY, struct.pack("<IQf", F32, 1, 1e-5))),
        )
        yield (
            f"model: {name} does not fit f32",
            with_metadata(gguf, KeyValue(key(name), F64, struct.pack("<d", 1e300))),
        )
    n_vocab = gguf.by_name[b"token_embd.weight"].dims[1]
    for wrong in (n_vocab - 1, n_vocab + 1):
        yield (
            f"model: vocab_size {wrong} for {n_vocab} embeddings",
            with_metadata(gguf, u32(key("vocab_size"), wrong)),
        )


def set_element(tensor: Tensor, value: float) -> Tensor:
    """The dense tensor with this value in its first element, or in its first block's scale."""
    at, fmt = {
        TYPE_F32: (0, "f"),
        TYPE_F16: (0, "e"),
        TYPE_Q8_0: (0, "e"),
        TYPE_Q6_K: (208, "e"),
        TYPE_BF16: (0, ""),
    }[tensor.type]
    if tensor.type == TYPE_BF16:
        return replace(tensor, data=struct.pack("<f", value)[2:] + tensor.data[2:])
    return replace(tensor, data=patch(tensor.data, at, fmt, value))


def impossible_codes(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Places and values of single bytes that stand for no ternary weights. TQ1_0 has none."""
    last = tensor.n_bytes - 32
    if tensor.type == TYPE_I2_S:
        places = [0, last // 2, (tensor.n_elements // 128 - 1) * 32]
        yield from ((at, tensor.data[at] | 3 << shift) for at in places for shift in (0, 2, 4, 6))
    elif tensor.type in (TYPE_TQ2_0, TYPE_Q2_0):
        size, first = (66, 0) if tensor.type == TYPE_TQ2_0 else (18, 2)
        places = [first, tensor.n_bytes // size // 2 * size + first + 7, tensor.n_bytes - size + first + 15]
        yield from ((at, tensor.data[at] | 3 << shift) for at in places for shift in (0, 2, 4, 6))
    elif tensor.type == TYPE_TL1:
        yield from ((at, value) for at in (0, last // 2, last - 1) for value in (0x94, 0x49, 0xFF))
    elif tensor.type == TYPE_TL2:
        yield from ((at, value) for at in (0, 32, 100) for value in (0xE0, 0x0E, 0xFF))


def ternary_contents(gguf: Gguf) -> Iterator[Variant]:
    ternary = [t for t in gguf.tensors if t.type in TERNARY_TYPES]
    for tensor in {t.name: t for t in (ternary[0], ternary[len(ternary) // 2], ternary[-1])}.values():
        name = label(tensor.name)
        in_blocks = {TYPE_TQ1_0: 52, TYPE_TQ2_0: 64, TYPE_Q2_0: 0}
        scale_at, form = (
            in_blocks.get(tensor.type, tensor.n_bytes - 32),
            "e" if tensor.type in in_blocks else "f",
        )
        for scale in (NAN, INFINITY, -INFINITY, -1.0, -1e-4):
            changed = replace(tensor, data=patch(tensor.data, scale_at, form, scale))
            yield f"model: scale {scale} in {name}", with_tensor(gguf, tensor.name, changed)
        for at, value in impossible_codes(tensor):
            changed = replace(tensor, data=patch(tensor.data, at, "B", value))
            yield f"model: byte {at} of {name} is {value:#x}", with_tensor(gguf, tensor.name, changed)
    changed = replace(ternary[0], data=b"\xff" * len(ternary[0].data))
    yield f"model: {label(ternary[0].name)} is all ones", with_tensor(gguf, ternary[0].name, changed)


def dense_contents(gguf: Gguf) -> Iterator[Variant]:
    norms = [t for t in gguf.tensors if t.name.endswith(b"norm.weight")]
    for tensor in {t.name: t for t in norms[:4] + norms[-2:]}.values():
        for value in (NAN, INFINITY):
            yield (
                f"model: {value} in {label(tensor.name)}",
                with_tensor(gguf, tensor.name, set_element(tensor, value)),
            )
    embedding = gguf.by_name[b"token_embd.weight"]
    for value in (NAN, INFINITY):
        yield (
            f"model: {value} in token_embd.weight",
            with_tensor(gguf, embedding.name, set_element(embedding, value)),
        )


def tensor_set(gguf: Gguf) -> Iterator[Variant]:
    def without(name: bytes) -> bytes:
        return assemble(gguf.version, gguf.metadata, [t for t in gguf.tensors if t.name != name])

    layers = {t.name.split(b".")[1] for t in gguf.tensors if t.name.startswith(b"blk.")}
    last_layer = b"blk.%d." % max(map(int, layers))
    for tensor in gguf.tensors:
        # output.weight is optional: without it the embedding is the head.
        if tensor.name in (b"token_embd.weight", b"output_norm.weight") or tensor.name.startswith(
            (b"blk.0.", last_layer)
        ):
            name = label(tensor.name)
            yield f"model: {name} is missing", without(tensor.name)
            renamed = replace(tensor, name=tensor.name.replace(b"weight", b"waight"))
            yield f"model: {name} is misspelt", with_tensor(gguf, tensor.name, renamed)
            yield from wrong_shapes(gguf, tensor)
            yield from wrong_types(gguf, tensor)
    yield "model: no tensors at all", assemble(gguf.version, gguf.metadata, [])
    yield "model: no metadata at all", assemble(gguf.version, [], gguf.tensors)


def resized(tensor: Tensor, dims: list[int]) -> Tensor:
    """The tensor with other dimensions and just enough data for them, of zeros where the type has any."""
    changed = replace(tensor, dims=dims)
    if tensor.type == TYPE_I2_S:
        return replace(changed, data=b"\x55" * (changed.n_bytes - 32) + struct.pack("<f", 1.0) + bytes(28))
    return replace(changed, data=bytes(changed.n_bytes))


def wrong_shapes(gguf: Gguf, tensor: Tensor) -> Iterator[Variant]:
    # Keep whole blocks, and matrices that can be TL2: the container must stay sound.
    step = BLOCKS.get(tensor.type, (256 if tensor.type == TYPE_TL2 else 1, 0))[0]
    k, *rest = tensor.dims
    shapes = [[k + step, *rest], [k, *rest, 2]]
    if rest:
        shapes += [[k, rest[0] + 1], [tensor.n_elements]]
        if rest[0] != k and rest[0] % step == 0:
            shapes.append([rest[0], k])
    for dims in shapes:
        shape = "x".join(map(str, dims))
        yield (
            f"model: {label(tensor.name)} has shape {shape}",
            with_tensor(gguf, tensor.name, resized(tensor, dims)),
        )


def wrong_types(gguf: Gguf, tensor: Tensor) -> Iterator[Variant]:
    types = [TYPE_Q4_K, TYPE_UNKNOWN]
    if tensor.type not in TERNARY_TYPES:
        types += [TYPE_TL1, TYPE_I2_S]
    for type in types:
        # Data enough for any of them: the container is sound, whatever a reader knows of the type.
        data = b"\x55" * (tensor.n_elements * 4) + struct.pack("<f", 1.0) + bytes(28)
        changed = replace(tensor, type=type, data=data)
        yield f"model: {label(tensor.name)} has type {type}", with_tensor(gguf, tensor.name, changed)


def vocabularies(gguf: Gguf) -> Iterator[Variant]:
    prefix = b"tokenizer.ggml."
    n_vocab = gguf.by_name[b"token_embd.weight"].dims[1]
    model = gguf.by_key.get(prefix + b"model")
    if model is not None:
        yield "tokenizer: model is missing", without_key(gguf, model.key)
        yield "tokenizer: model is unknown", with_metadata(gguf, text(model.key, b"wordpiece9"))
        yield "tokenizer: model is a number", with_metadata(gguf, u32(model.key, 2))
    tokens = gguf.by_key.get(prefix + b"tokens")
    if tokens is not None:
        words = unpack_strings(tokens.value)
        wrong_tokens = {
            "is an array of numbers": KeyValue(
                tokens.key, ARRAY, struct.pack(f"<IQ{n_vocab}I", U32, n_vocab, *range(n_vocab))
            ),
            "is a string": text(tokens.key, b"tokens"),
            "is a number": u32(tokens.key, n_vocab),
            "is empty": replace(tokens, value=pack_strings([])),
            "lacks the last token": replace(tokens, value=pack_strings(words[:-1])),
            "has one token too many": replace(tokens, value=pack_strings([*words, b"<one too many>"])),
        }
        yield "tokenizer: tokens is missing", without_key(gguf, tokens.key)
        for wrong, kv in wrong_tokens.items():
            yield f"tokenizer: tokens {wrong}", with_metadata(gguf, kv)
    merges = gguf.by_key.get(prefix + b"merges")
    if merges is not None:
        rules = unpack_strings(merges.value)
        wrong_merges = {
            "is an array of numbers": KeyValue(merges.key, ARRAY, struct.pack("<IQ2I", U32, 2, 0, 1)),
            "is a string": text(merges.key, b"a b"),
            "is a number": u32(merges.key, 2),
            "holds a rule without a space": replace(merges, value=pack_strings([b"nospace", *rules])),
            "holds an empty rule": replace(merges, value=pack_strings([b"", *rules])),
        }
        yield "tokenizer: merges is missing", without_key(gguf, merges.key)
        for wrong, kv in wrong_merges.items():
            yield f"tokenizer: merges {wrong}", with_metadata(gguf, kv)
    for name in (b"token_type", b"scores"):
        kv = gguf.by_key.get(prefix + name)
        if kv is None:
            continue
        element_type, count = kv.array_header()
        size = struct.calcsize(NUMBER_FORMAT[element_type])
        wrong_lists = {
            "is too short": struct.pack("<IQ", element_type, count - 1) + kv.value[12:-size],
            "is too long": struct.pack("<IQ", element_type, count + 1) + kv.value[12:] + kv.value[-size:],
            "is an array of strings": pack_strings([b"1"] * count),
        }
        for wrong, value in wrong_lists.items():
            yield f"tokenizer: {label(name)} {wrong}", with_metadata(gguf, replace(kv, value=value))
        yield f"tokenizer: {label(name)} is a number", with_metadata(gguf, u32(kv.key, 1))
    for name in ("bos_token_id", "eos_token_id"):
        key = prefix + name.encode()
        for wrong in (n_vocab, 2**31, 2**32 - 1):
            yield f"tokenizer: {name} {wrong} of {n_vocab} tokens", with_metadata(gguf, u32(key, wrong))
        yield f"tokenizer: {name} is negative", with_metadata(gguf, KeyValue(key, I32, struct.pack("<i", -1)))
        yield f"tokenizer: {name} is a string", with_metadata(gguf, text(key, b"1"))
        yield f"tokenizer: {name} is a float", with_metadata(gguf, f32(key, 1.0))
    yield (
        "tokenizer: add_bos_token is a string",
        with_metadata(gguf, text(prefix + b"add_bos_token", b"true")),
    )


def damaged_ternary_tensors(valid: bytes) -> Iterator[Variant]:
    """The variants that depend on the type of the ternary tensors."""
    gguf = parse(valid)
    for damage in (tensor_records, ternary_contents, tensor_set):
        yield from damage(gguf)


def malformed_variants(valid: bytes) -> Iterator[Variant]:
    """Every damaged variant of the small valid model file `valid`, as (name, bytes). Names are unique."""
    gguf = parse(valid)
    for damage in (
        truncations,
        headers,
        metadata_records,
        alignments,
        tensor_records,
        architecture_keys,
        ternary_contents,
        dense_contents,
        tensor_set,
        vocabularies,
    ):
        yield from damage(gguf)


def main() -> None:
    valid, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for i, (name, data) in enumerate(malformed_variants(valid.read_bytes())):
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower())[:100].strip("-")
        (out / f"{i:04d}-{slug}.gguf").write_bytes(data)
    print(f"{i + 1} files in {out}")


if __name__ == "__main__":
    main()
