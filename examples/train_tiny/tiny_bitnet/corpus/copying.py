"""Skill "copy": drills that repeat, look up or quote strings never seen in training."""

from __future__ import annotations

import json

from .source import Sample, Source

_REPEAT = (
    "Repeat: {}", "Say: {}", "Repeat after me: {}", "Copy this: {}", "Echo {}", "Say exactly this: {}",
    "Say {}", "Please repeat: {}",
)  # fmt: skip
_QUOTE = ("Put this in quotes: {}", "Quote {}", "Quote: {}")
_LOOK_UP = ("What is {}?", "{}?", "Give me {}.", "The value of {}?")


def _repeat(source: Source) -> tuple[str, str]:
    text = " ".join(source.any_text() for _ in range(source.integer(1, 5)))
    return source.choice(_REPEAT).format(text), text


def _look_up(source: Source) -> tuple[str, str]:
    """A small table, and the value of one of its keys."""
    keys = list(
        dict.fromkeys(
            source.word(1, 2) if source.chance(0.5) else source.pick_noun()
            for _ in range(source.integer(2, 5))
        )
    )
    values = [source.any_text() for _ in keys]
    wanted = source.integer(0, len(keys) - 1)
    separator, end = source.choice((": ", " = ", " is ", " -> ")), source.choice(("\n", ", ", "; "))
    table = end.join(key + separator + value for key, value in zip(keys, values, strict=True))
    return f"{table}\n{source.choice(_LOOK_UP).format(keys[wanted])}", values[wanted]


def _position(source: Source) -> tuple[str, str]:
    items = [source.any_text() for _ in range(source.integer(2, 5))]
    which, item = source.choice((("first", items[0]), ("last", items[-1])))
    return f"What is the {which} item?\n{', '.join(items)}", item


def _quote(source: Source) -> tuple[str, str]:
    text = source.any_text()
    return source.choice(_QUOTE).format(text), json.dumps(text, ensure_ascii=False)


def _as_json(source: Source) -> tuple[str, str]:
    table = {source.word(1, 2): source.any_text() for _ in range(source.integer(1, 3))}
    listed = ", ".join(f"{key} is {value}" for key, value in table.items())
    return f"Write as JSON: {listed}", json.dumps(table, ensure_ascii=False)


def copying(source: Source) -> Sample:
    make = source.weighted((_repeat, _look_up, _position, _quote, _as_json), (4, 2, 1, 1, 1))
    asked, answer = make(source)
    return Sample([("user", asked), ("assistant", answer)], "copy")
