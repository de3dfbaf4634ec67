"""What a user says of a model file against the file itself: a few keys of its metadata, by the names that
GGUF has for them.

    tokenizer.ggml.pre              how text is cut before it is made into tokens, such as llama-bpe
    tokenizer.chat_template         a Jinja template
    tokenizer.ggml.eos_token_id     a token that ends an answer: its id, or the token as it is written;
                                    likewise eot_token_id and bos_token_id
    tokenizer.ggml.add_bos_token    whether a text begins with that token; likewise add_eos_token
    pooling_type                    how a text's vector is made: mean or last
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from bitnet.errors import ValidationError
from bitnet.values import nearest

Override: TypeAlias = str | int | bool
Overrides: TypeAlias = tuple[tuple[str, Override], ...]

_TEXTS = ("tokenizer.ggml.pre", "tokenizer.chat_template")
_TOKENS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot"))
_FLAGS = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token")
_POOLING = "pooling_type"
_POOLING_TYPES = {"mean": 1, "last": 3}
KEYS = (*_TEXTS, *_TOKENS, *_FLAGS, _POOLING)


def check(overrides: Mapping[str, Any]) -> Overrides:
    """Sorted, and of the right types. Raises ValidationError naming the key."""
    return tuple(sorted((key, _checked(key, value)) for key, value in overrides.items()))


def _checked(key: str, value: Any) -> Override:
    if key in _TEXTS:
        right = isinstance(value, str) and bool(value.strip())
        wanted = "a text"
    elif key in _TOKENS:
        right = isinstance(value, (int, str)) and not isinstance(value, bool) and value != ""
        wanted = "the id of a token, or the token as it is written"
    elif key in _FLAGS:
        right = isinstance(value, bool)
        wanted = "true or false"
    elif key == _POOLING:
        right = value in _POOLING_TYPES
        wanted = "mean or last"
    else:
        raise ValidationError(
            f"metadata_overrides: {key!r} cannot be set; {nearest(str(key), KEYS)}",
            field="metadata_overrides",
        )
    if not right:
        raise ValidationError(
            f"metadata_overrides: {key} must be {wanted}, not {value!r:.100}", field="metadata_overrides"
        )
    return value  # type: ignore[no-any-return]


def parse(arguments: list[str]) -> dict[str, Override]:
    """KEY=VALUE of a command line; KEY=@FILE reads the value from a file. Raises ValidationError."""
    found: dict[str, Override] = {}
    for argument in arguments:
        key, separator, text = argument.partition("=")
        if not separator:
            raise ValidationError(
                f"metadata_overrides: {argument!r} is not of the form KEY=VALUE", field="metadata_overrides"
            )
        if text.startswith("@"):
            text = _read(text[1:])
        value: Override = text
        if key in _FLAGS and text in ("true", "false"):
            value = text == "true"
        elif key in _TOKENS and text.isdecimal():
            value = int(text)
        found[key] = value
    return dict(check(found))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ValidationError(
            f"metadata_overrides: cannot read {path}: {error}", field="metadata_overrides"
        ) from None


def apply(metadata: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """`metadata` with the user's values in their places. Raises ValidationError for an unknown token."""
    result = dict(metadata)
    for key, value in overrides:
        if key in _TOKENS and isinstance(value, str):
            tokens = metadata.get("tokenizer.ggml.tokens") or []
            if value not in tokens:
                raise ValidationError(
                    f"metadata_overrides: {key} is {value!r}, and the vocabulary has no such token",
                    field="metadata_overrides",
                )
            value = tokens.index(value)
        elif key == _POOLING:
            key, value = f"{metadata.get('general.architecture')}.{_POOLING}", _POOLING_TYPES[str(value)]
        result[key] = value
    return result
