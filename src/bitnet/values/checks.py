"""Checks that values pass when they are built. Every failure is a ValidationError naming the field."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from bitnet.errors import ValidationError

INT32_MAX = 2**31 - 1


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest known one, or all of them."""
    import difflib  # only when something is wrong

    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def as_number(name: str, value: Any, low: float, high: float, *, above: bool = False) -> float:
    """`value` as a float in [low, high], or in (low, high] if `above`, else ValidationError."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise ValidationError(f"{name} must be a number, not {value!r}", field=name)
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not (low < result <= high if above else low <= result <= high):
        least = f"above {low:g}" if above else f"at least {low:g}"
        most = "" if high == math.inf else f" and at most {high:g}"
        raise ValidationError(f"{name} must be {least}{most}, not {value!r}", field=name)
    if math.isinf(result):
        raise ValidationError(f"{name} must be finite, not {value!r}", field=name)
    return result


def as_integer(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int in [low, high]. Raises ValidationError naming `name`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValidationError(f"{name} must be a whole number, not {value!r}", field=name)
    result = int(value)
    if not low <= result <= high:
        raise ValidationError(f"{name} must be from {low} to {high}, not {result}", field=name)
    return result


def as_flag(name: str, value: Any) -> bool:
    """`value`, which must be a bool. Raises ValidationError naming `name`."""
    if not isinstance(value, bool):
        raise ValidationError(f"{name} must be True or False, not {value!r}", field=name)
    return value


def as_text(name: str, value: Any) -> str:
    """`value`, which must be a str of valid Unicode. Raises ValidationError naming `name`."""
    if not isinstance(value, str):
        raise ValidationError(f"{name} must be a string, not {type(value).__name__}", field=name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValidationError(
            f"{name} is not valid Unicode: a lone surrogate U+{ord(value[error.start]):04X} "
            f"at character {error.start}",
            field=name,
        ) from None
    return value


def is_token_id(value: Any) -> bool:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        return False
    return 0 <= int(value) <= INT32_MAX


def as_token_ids(name: str, value: Iterable[Any]) -> tuple[int, ...]:
    """`value` (a list, tuple or integer array) as token ids. Raises ValidationError naming `name`."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValidationError(f"{name} must be a list of token ids, not {type(value).__name__}", field=name)
    ids = []
    for item in value:
        if not is_token_id(item):
            raise ValidationError(f"{name} must hold token ids (whole numbers), not {item!r}", field=name)
        ids.append(int(item))
    if not ids:
        raise ValidationError(f"{name} is empty: there is nothing to compute from", field=name)
    return tuple(ids)
