"""JSON from strangers: read strictly, and written so that any text survives."""

from __future__ import annotations

import json
import math
from json.encoder import encode_basestring as _quoted
from typing import Any

from bitnet.server.errors import invalid

_MAX_DIGITS = 24  # enough for any 64-bit number; int() of many more takes long


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits is too large")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value) or len(text) > 400:
        raise ValueError("a number is too large")
    return value


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_decoder = json.JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=_constant)


def parse(body: bytes) -> dict[str, Any]:
    """The object that `body` holds. Numbers in it are finite and of a reasonable size.

    Raises ApiError.
    """
    try:
        value = _decoder.decode(body.decode())
    except UnicodeDecodeError as error:
        raise invalid(f"the body is not UTF-8: byte {error.start} is {body[error.start]:#04x}") from None
    except RecursionError:
        raise invalid("the body is nested too deep") from None
    except ValueError as error:
        raise invalid(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object")
    return value


# Many readers of event streams take these for line ends, though the format does not.
_LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def dump(value: Any) -> bytes:
    """Compact JSON on one line. A lone surrogate, which a client may have sent, is written as an escape."""
    return _encode(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))


def quote(text: str) -> bytes:
    """`dump` of a string, for the places where one is written for every token."""
    return _encode(_quoted(text))


def _encode(text: str) -> bytes:
    if text.isascii():
        return text.encode()
    return text.translate(_LINE_ENDS).encode("utf-8", "backslashreplace")
