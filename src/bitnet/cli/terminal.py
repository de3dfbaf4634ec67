"""What the commands share of reading and writing: text as it is, notes and errors on stderr, input as
UTF-8."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from bitnet.errors import ValidationError
from bitnet.values import Delta, Reply


def printable(text: str) -> str:
    """`text` on one line, without characters that could steer a terminal: model files may come from
    anybody."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size_text(n_bytes: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if n_bytes >= 1 << shift:
            return f"{n_bytes / (1 << shift):.1f} {unit}"
    return f"{n_bytes} bytes"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the cells of all rows below each other."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def complain(message: str) -> None:
    print(f"bitnet: error: {printable(message)}", file=sys.stderr)


def note(message: str) -> None:
    print(f"bitnet: {printable(message)}", file=sys.stderr)


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def finite(value: Any) -> Any:
    """For JSON, which has no NaN and no infinity: those become strings."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_answer(deltas: Iterable[Delta]) -> None:
    for delta in deltas:
        if delta.text:
            write(delta.text)
    write("\n")


def note_ending(reply: Reply) -> None:
    """An answer that was cut looks like a whole one: say so."""
    if reply.finish_reason == "length":
        note(f"the answer was cut after {len(reply.token_ids)} tokens; see --max-tokens and --ctx")


def decode(data: bytes) -> str:
    """Bytes from stdin as text. Raises ValidationError."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValidationError(
            f"standard input is not UTF-8: byte {error.start} is {data[error.start]:#04x}"
        ) from None
