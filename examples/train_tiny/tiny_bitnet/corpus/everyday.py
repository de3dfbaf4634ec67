"""The everyday functions of `functions/`, and the values that a user gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import words
from .source import Source
from .words import listed

Value = str | int | float | bool
Maker = Callable[[Source], Value]


class Parameter(NamedTuple):
    names: tuple[str, ...]
    kind: str  # in JSON schema
    make: Maker


class Function(NamedTuple):
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    requests: tuple[str, ...]  # {0}, {1} are the values; those beyond the first may be held out


def place(source: Source) -> str:
    return source.city() if source.chance(0.88) else source.foreign_phrase()


def person(source: Source) -> str:
    kind = source.integer(0, 9)
    if kind <= 6:
        return source.full_name()
    return source.accented() if kind == 7 else source.foreign_phrase()


def _thing(source: Source) -> str:
    return source.weighted((source.phrase, source.word, source.foreign_phrase), (7, 2, 1))()


def identification(source: Source) -> str:
    return source.digits() if source.chance(0.6) else source.identifier()


_INDUSTRIES = listed("technology food car travel music energy paper shipping software media steel toy")
_NATIONS = listed("Chinese Japanese Korean Russian Greek Indian French German Italian Spanish Polish Thai")


def _industry(source: Source) -> str:
    return f"a {source.choice(_NATIONS)} {source.choice(_INDUSTRIES)} {source.choice(('company', 'firm'))}"


def _one_of(text: str) -> Maker:
    options = listed(text)
    return lambda source: source.choice(options)


_MAKERS: dict[str, tuple[str, Maker]] = {
    "age": ("integer", lambda s: s.integer(5, 99)),
    "city": ("string", Source.city),
    "color": ("string", lambda s: s.choice(words.COLORS)),
    "count": ("integer", lambda s: s.number(99)),
    "currency": ("string", _one_of("EUR USD GBP JPY CHF CNY")),
    "other_currency": ("string", _one_of("INR SEK PLN BRL KRW CAD")),
    "date": ("string", Source.date),
    "degrees": ("number", lambda s: s.integer(40, 290) / 10),
    "digits": ("string", Source.digits),
    "email": ("string", Source.email),
    "file": ("string", lambda s: f"{s.word(1, 3)}.{s.choice(listed('txt md csv json py log'))}"),
    "firm": ("string", lambda s: s.foreign_phrase() if s.chance(0.75) else s.accented()),
    "industry": ("string", _industry),
    "language": ("string", _one_of("French German Spanish Italian Polish")),
    "level": ("string", _one_of("low normal high urgent")),
    "name": ("string", Source.invented_name),
    "number": ("integer", Source.number),
    "number_text": ("string", identification),
    "one_word": ("string", lambda s: s.pick_noun() if s.chance(0.4) else s.word(1, 3)),
    "person": ("string", person),
    "phrase": ("string", lambda s: s.phrase(1, 4)),
    "place": ("string", place),
    "room": ("string", _one_of("kitchen bedroom bathroom hall garden office")),
    "share": ("string", lambda s: s.word(1, 1).upper() if s.chance(0.5) else s.invented_name()),
    "style": ("string", lambda s: s.choice(words.ADJECTIVES + words.JOBS)),
    "sum": ("string", lambda s: f"{s.number()} {s.choice('+-*/')} {s.number()}"),
    "thing": ("string", _thing),
    "time": ("string", Source.time),
    "title": ("string", lambda s: s.phrase(1, 3).title()),
    "unit": ("string", _one_of("km meters miles feet inches")),
    "other_unit": ("string", _one_of("cm yards mm kilometers")),
    "words": ("string", lambda s: s.phrase(2, 6)),
}


def _parameter(line: str) -> Parameter:
    names, _, maker = line.partition(": ")
    return Parameter(tuple(names.split()), *_MAKERS[maker])


_FOLDER = Path(__file__).with_name("functions")
_HELD_OUT = _FOLDER / "held_out.txt"


def _load(path: Path) -> list[Function]:
    """The functions of a file. What a block says is told in functions/README.md."""
    text = path.read_text(encoding="utf-8")
    functions = []
    for block in text.strip().split("\n\n"):
        names, descriptions, *rest = block.splitlines()
        functions.append(
            Function(
                tuple(names.split(" | ")),
                tuple(descriptions.split(" | ")),
                tuple(_parameter(line) for line in rest if not line.startswith("- ")),
                tuple(line[2:] for line in rest if line.startswith("- ")),
            )
        )
    return functions


KNOWN = [function for path in sorted(_FOLDER.glob("*.txt")) if path != _HELD_OUT for function in _load(path)]
UNKNOWN = _load(_HELD_OUT)
