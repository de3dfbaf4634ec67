"""The vocabulary of a model file: GGUF tokenizer metadata, type-checked and cross-checked.

Splitting text into tokens is left to byte_level.py and sentence_piece.py, and what a special token may do to
special_tokens.py.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from bitnet.errors import ModelFileError

_PREFIX = "tokenizer.ggml."
_NAMED_IDS = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "eot": ("eot_token_id",),
    "eom": ("eom_token_id",),
    "pad": ("padding_token_id",),
    "unk": ("unknown_token_id",),
    "sep": ("seperator_token_id", "separator_token_id"),  # the first is how the GGUF standard spells it
    "mask": ("mask_token_id",),
    "cls": ("cls_token_id",),
}


class TokenType(IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """What the file says of its tokens. `types` is None where the file is silent; lists are indexed by token
    id.
    """

    model: str  # "gpt2": byte-level BPE; "llama": SentencePiece BPE
    pre: str | None
    tokens: list[str]
    types: list[int] | None
    scores: list[float] | None
    merges: list[str] | None
    named_ids: dict[str, int]  # bos, eos, eot, eom, pad, unk, sep, mask, cls: those that the file names
    add_bos: bool | None
    add_eos: bool | None
    add_space_prefix: bool | None
    ids: dict[str, int]  # token text -> id; empty tokens are left out

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Vocabulary:
        """Raises ModelFileError for missing keys, wrong types, lengths that disagree, repeated tokens and ids
        that do not exist.
        """
        model = _optional_string(metadata, "model")
        if model is None:
            raise ModelFileError(
                "the model file has no tokenizer (tokenizer.ggml.model is missing); convert it again"
            )
        if model not in ("gpt2", "llama"):
            raise ModelFileError(
                f"the model file has a tokenizer of kind {model!r}; this engine reads 'gpt2' (byte-level "
                "BPE) and 'llama' (SentencePiece BPE)"
            )
        tokens = _array(metadata, "tokens")
        if not tokens:
            raise ModelFileError("tokenizer.ggml.tokens is missing or empty")
        if not all(isinstance(token, str) for token in tokens):
            raise ModelFileError("tokenizer.ggml.tokens holds something that is not a string")
        merges = _array(metadata, "merges")
        if merges is not None and not all(isinstance(merge, str) for merge in merges):
            raise ModelFileError("tokenizer.ggml.merges holds something that is not a string")
        return cls(
            model=model,
            pre=_optional_string(metadata, "pre"),
            tokens=tokens,
            types=_token_types(metadata, len(tokens)),
            scores=_scores(metadata, len(tokens)),
            merges=merges,
            named_ids=_named_ids(metadata, len(tokens)),
            add_bos=_optional_bool(metadata, "add_bos_token"),
            add_eos=_optional_bool(metadata, "add_eos_token"),
            add_space_prefix=_optional_bool(metadata, "add_space_prefix"),
            ids=_ids_by_text(tokens),
        )

    def type_of(self, token_id: int) -> int:
        return TokenType.NORMAL if self.types is None else self.types[token_id]


def raw_bytes(token: str) -> bytes:
    """The bytes of a token's text as they stand in the file (readers keep invalid UTF-8 as surrogate
    escapes).

    Raises ModelFileError for other lone surrogates, which no file can hold.
    """
    try:
        return token.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ModelFileError(f"the token {token!r} is not text") from None


def is_valid_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def byte_value(token: str) -> int:
    """The byte that a token of type BYTE, written `<0xHH>`, stands for. Raises ModelFileError for another
    text.
    """
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            pass
    raise ModelFileError(f"the token {token!r} has type BYTE, but is not written <0xHH>")


def _array(metadata: Mapping[str, Any], key: str) -> list[Any] | None:
    value = metadata.get(_PREFIX + key)
    if value is None:
        return None
    if (
        isinstance(value, (str, bytes, Mapping))
        or not hasattr(value, "__len__")
        or not hasattr(value, "__iter__")
    ):
        raise ModelFileError(f"tokenizer.ggml.{key} must be an array, not {type(value).__name__}")
    return list(value)


def _parallel_array(metadata: Mapping[str, Any], key: str, n_tokens: int) -> list[Any] | None:
    values = _array(metadata, key)
    if values is not None and len(values) != n_tokens:
        raise ModelFileError(f"tokenizer.ggml.{key} has {len(values)} entries for {n_tokens} tokens")
    return values


def _token_types(metadata: Mapping[str, Any], n_tokens: int) -> list[int] | None:
    values = _parallel_array(metadata, "token_type", n_tokens)
    if values is None:
        return None
    try:
        types = [operator.index(value) for value in values]
    except TypeError:
        raise ModelFileError("tokenizer.ggml.token_type holds something that is not a whole number") from None
    if not set(types) <= set(TokenType):
        raise ModelFileError(
            f"tokenizer.ggml.token_type holds {sorted(set(types) - set(TokenType))[0]}; 1 to 6 exist"
        )
    return types


def _scores(metadata: Mapping[str, Any], n_tokens: int) -> list[float] | None:
    values = _parallel_array(metadata, "scores", n_tokens)
    if values is None:
        return None
    try:
        scores = [float(value) for value in values]
    except (TypeError, ValueError):
        raise ModelFileError("tokenizer.ggml.scores holds something that is not a number") from None
    if not all(map(math.isfinite, scores)):
        raise ModelFileError("tokenizer.ggml.scores holds a number that is not finite")
    return scores


def _named_ids(metadata: Mapping[str, Any], n_tokens: int) -> dict[str, int]:
    named: dict[str, int] = {}
    for name, keys in _NAMED_IDS.items():
        for key in keys:
            value = metadata.get(_PREFIX + key)
            if value is None:
                continue
            try:
                token_id = operator.index(value)
            except TypeError:
                raise ModelFileError(f"tokenizer.ggml.{key} must be a whole number, not {value!r}") from None
            if isinstance(value, bool) or not 0 <= token_id < n_tokens:
                raise ModelFileError(
                    f"tokenizer.ggml.{key} is {value!r}, but the vocabulary has {n_tokens} tokens"
                )
            named[name] = token_id
    return named


def _ids_by_text(tokens: Sequence[str]) -> dict[str, int]:
    ids = {token: token_id for token_id, token in enumerate(tokens) if token}
    if len(ids) != len(tokens) - tokens.count(""):
        for token_id, token in enumerate(tokens):
            if token and ids[token] != token_id:
                raise ModelFileError(
                    f"the token {token!r} stands twice in the vocabulary: {token_id} and {ids[token]}"
                )
    return ids


def _optional_string(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(_PREFIX + key)
    if value is not None and not isinstance(value, str):
        raise ModelFileError(f"tokenizer.ggml.{key} must be a string, not {type(value).__name__}")
    return value


def _optional_bool(metadata: Mapping[str, Any], key: str) -> bool | None:
    value = metadata.get(_PREFIX + key)
    if value is not None and not isinstance(value, bool):
        raise ModelFileError(f"tokenizer.ggml.{key} must be true or false, not {value!r}")
    return value
