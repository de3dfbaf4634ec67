"""tokenizer.model: the protocol buffer in which SentencePiece keeps its vocabulary.

Only what a BPE vocabulary consists of is read (sentencepiece_model.proto: ModelProto.pieces = 1,
trainer_spec = 2, normalizer_spec = 3), so that the sentencepiece package is not needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitnet.errors import ConversionError

_MAX_BYTES: Final = 64 << 20
_BPE: Final = 2  # TrainerSpec.ModelType


@dataclass(frozen=True, slots=True)
class Piece:
    """type: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; GGUF has the same numbers."""

    text: str
    score: float
    type: int


@dataclass(frozen=True, slots=True)
class SentencePieceFile:
    pieces: tuple[Piece, ...]
    add_dummy_prefix: bool


def read_sentence_piece(path: Path) -> SentencePieceFile:
    """Raises ConversionError if the file is damaged, or its model is not BPE."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConversionError(f"{path} has {path.stat().st_size} bytes; at most {_MAX_BYTES} are read")
        data = path.read_bytes()
    except OSError as error:
        raise ConversionError(f"cannot read {path}: {error.strerror}") from None
    pieces = []
    kind, add_dummy_prefix, changes_text = 1, True, True  # the defaults of the format
    try:
        for number, value in _fields(data):
            if number == 1:
                pieces.append(_piece(_bytes(value)))
            elif number == 2:
                kind = next((_int(one) for n, one in _fields(_bytes(value)) if n == 3), kind)
            elif number == 3:
                normalizer = dict(_fields(_bytes(value)))
                add_dummy_prefix = bool(_int(normalizer.get(3, 1)))
                changes_text = bool(normalizer.get(2)) or bool(_int(normalizer.get(4, 1)))
    except (IndexError, struct.error, UnicodeDecodeError, ValueError):
        raise ConversionError(f"{path} is damaged, or no SentencePiece model") from None
    if not pieces:
        raise ConversionError(f"{path} is no SentencePiece model: it has no tokens")
    if kind != _BPE:
        raise ConversionError(
            f"{path}: a SentencePiece model of kind {kind} is not supported; BPE ({_BPE}) is"
        )
    if changes_text:
        raise ConversionError(
            f"{path}: the tokenizer changes texts before it splits them; this is not supported"
        )
    return SentencePieceFile(tuple(pieces), add_dummy_prefix)


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        if number == 1:
            text = _bytes(value).decode("utf-8")
        elif number == 2:
            score = struct.unpack("<f", _bytes(value))[0]
        elif number == 3:
            kind = _int(value)
    if not 1 <= kind <= 6:
        raise ValueError
    return Piece(text, score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value): a whole number for varints, else bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError
        if length > len(data) - position:
            raise ValueError
        yield tag >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError
    return value


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError
    return value
