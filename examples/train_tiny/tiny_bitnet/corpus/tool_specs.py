"""Functions that a user may ask for: names, parameters, and requests that need them with these values.

Half are put together at random, half are the everyday functions of `everyday.py` with natural requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from . import words
from .asking import ABOUT_ONE, ABOUT_TWO, put_together
from .everyday import KNOWN, UNKNOWN, Maker, Value, identification, person, place
from .source import Source
from .words import listed

Arguments = dict[str, Value]

# A literal of conformance suites that must never be drawn.
_FORBIDDEN = ("magic", "my_adder", "unicode_customer", "greeting_generator", "get_weather_function")

_VERBS = listed(
    "get find search create set send book convert compute check list open delete update translate play order "
    "track add show make start lookup count fetch"
)
_TOPICS = listed(
    "weather user order email message flight ticket price stock song movie event task note file alarm timer "
    "light room table item product city country customer account payment report recipe route map news photo "
    "contact reminder score team game password label value"
)
_STRINGS = listed(
    "name city location query title text topic product item song user customer country subject message label "
    "keyword place company color date email id description style"
)
_INTEGERS = listed("count number amount id input x y age quantity limit minutes size n value price year days")
_NUMBERS = listed("amount price weight temperature value rate distance")


class Tool(NamedTuple):
    name: str
    purpose: str  # the same for two tools that do the same
    definition: dict[str, Any]  # as in the OpenAI API
    ask: Callable[[Source], tuple[str, Arguments]]  # a request and the arguments of the call


def definition(source: Source, name: str, description: str, types: Mapping[str, str]) -> dict[str, Any]:
    """The definition in one of the styles in which libraries write it."""
    titles, described = source.chance(0.25), source.chance(0.2)
    properties: dict[str, Any] = {}
    for argument, kind in types.items():
        entry: dict[str, Any] = {"type": kind}
        if described:
            entry = {"description": f"The {argument.replace('_', ' ')}", **entry}
        if titles:
            entry = {"title": argument.replace("_", " ").title(), **entry}
        if kind == "integer" and source.chance(0.04):
            entry |= {"minimum": 0, "maximum": 9999}
        properties[argument] = entry
    if types and source.chance(0.1):  # as the docstring of a function
        lines = [f"    {a}: The {a.replace('_', ' ')}." for a in types]
        description = "\n\n".join((description, "\n".join(("Args:", *lines))))
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if types:
        parameters["required"] = list(types)
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def spoken(name: str) -> str:
    """A tool name as words: getUser, get_user -> "get user"."""
    spaced = "".join(f" {c.lower()}" if c.isupper() else " " if c == "_" else c for c in name)
    return spaced.strip()


def value_of(source: Source, kind: str, argument: str) -> Value:
    """A value that suits an argument of this type and name."""
    if kind == "integer":
        return source.number() if source.chance(0.9) else int("1" + source.digits())
    if kind == "number":
        return source.decimal() if source.chance(0.7) else source.number()
    if argument in ("city", "location", "country", "place"):
        return place(source)
    if argument in ("name", "user", "customer"):
        return person(source)
    special: dict[str, Maker] = {
        "date": Source.date,
        "email": Source.email,
        "color": lambda s: s.choice(words.COLORS),
        "id": identification,
        "company": lambda s: s.invented_name() if s.chance(0.7) else s.foreign_phrase(),
    }
    if argument in special:
        return special[argument](source)
    return source.weighted(
        (source.phrase, source.word, source.foreign_phrase, source.full_name), (5, 3, 1.4, 1)
    )()


def quoted(source: Source, value: Value) -> str:
    if not isinstance(value, str) or source.chance(0.65):
        return str(value)
    return source.choice(("'{}'", '"{}"')).format(value)


def glossed(source: Source, asked: str, values: Arguments) -> str:
    """Sometimes what a foreign name means, in brackets behind it: it is no part of the value."""
    for value in values.values():
        if isinstance(value, str) and not value.isascii() and source.chance(0.3):
            said = next((form for form in (f"'{value}'", f'"{value}"') if form in asked), value)
            meaning = source.phrase(1, 2) if source.chance(0.7) else source.invented_name()
            asked = asked.replace(said, f"{said} ({meaning.title()})", 1)
    return asked


_KNOWN_NAMES = {name for function in KNOWN for name in function.names}
_UNKNOWN_NAMES = {name for function in UNKNOWN for name in function.names}


def _everyday(source: Source) -> Tool:
    function = source.choice(KNOWN if source.split == "train" else UNKNOWN)
    # Sometimes only the description tells what a function is for.
    name = _random_name(source) if source.chance(0.12) else source.choice(function.names)
    arguments = [source.choice(parameter.names) for parameter in function.parameters]
    if len(set(arguments)) < len(arguments):
        arguments = [parameter.names[0] for parameter in function.parameters]
    types = {a: parameter.kind for a, parameter in zip(arguments, function.parameters, strict=True)}
    described = definition(source, name, source.choice(function.descriptions), types)

    def ask(source: Source) -> tuple[str, Arguments]:
        values = [parameter.make(source) for parameter in function.parameters]
        named: Arguments = dict(zip(arguments, values, strict=True))
        asked = source.wording(function.requests, function.names[0]).format(*values)
        return glossed(source, _polite(source, asked), named), named

    return Tool(name, function.names[0], described, ask)


_BEFORE = ("Hi! ", "Hello, ", "Can you help me? ", "Ok. ", "And now: ", "Hey, ", "Next: ")
_BEHIND = (" Thanks.", " Thank you!", " please", " Use the tool.", " Use a tool.", " Use the function.")


def _polite(source: Source, asked: str) -> str:
    """Sometimes words around a request that change nothing."""
    if source.chance(0.1):
        asked = source.choice(_BEFORE) + asked
    if source.chance(0.1):
        asked += source.choice(_BEHIND)
    return asked


def _random_name(source: Source) -> str:
    def make() -> str:
        verb = source.choice(_VERBS) if source.chance(0.8) else source.word(1, 2)
        topic = source.choice(_TOPICS) if source.chance(0.7) else source.word(1, 2)
        forms = (f"{verb}_{topic}", f"{topic}_{verb}", f"{topic}_function", verb + topic.capitalize(),
                 f"{topic}_tool", topic)  # fmt: skip
        return source.weighted(forms, (6, 2, 2, 2, 1, 1))

    return _new_name(source, make)


def _new_name(source: Source, draw: Callable[[], str]) -> str:
    """A name of this split, and of no function of the other one."""

    def make() -> str:
        name = draw()
        return "get_item" if any(word in name for word in _FORBIDDEN) else name

    while True:
        name = source.until_allowed(make)
        if name not in (_UNKNOWN_NAMES if source.split == "train" else _KNOWN_NAMES):
            return name


def _ask_by_name(source: Source, name: str, types: Mapping[str, str]) -> tuple[str, Arguments]:
    values: Arguments = {a: value_of(source, kind, a) for a, kind in types.items()}
    return glossed(source, _asked_by_name(source, name, values), values), values


def _asked_by_name(source: Source, name: str, values: Arguments) -> str:
    said = spoken(name)
    title = said.capitalize()
    # Of "weather function" the word that tells.
    topic = [word for word in said.split() if word not in ("function", "tool")][-1]
    if not values:
        forms: tuple[str, ...] = (
            title, f"Please {said}.", f"What is the value of {name}()? Use the tool.", f"Call {name}.",
            f"Can you {said}?", f"Use {name}.",
        )  # fmt: skip
        return source.choice(forms)
    if source.chance(0.15):
        call = f"{name}({', '.join(str(v) for v in values.values())})"
        asked = source.choice(("What is the value of {}? Use the tool.", "Call {}", "Run {}.",
        "Please use {}.",
                               "What does {} return?", "Compute {}"))  # fmt: skip
        return asked.format(call)
    if len(values) == 1:
        ((argument, value),) = values.items()
        v = quoted(source, value)
        forms = (
            f"{title} {v}", f"{title} for {v}.", f"Please {said} with {argument} {v}.",
            f"What is the {topic} in {v}?", f"What is the {topic} of {v}?", f"Can you {said} for {v}?",
            f"I need to {said}: {v}", f"{v}: {said} please", f"Use the tool to {said} {v}.",
            f"{title} where the {argument} is {v}.", f"What is the {topic} for {v}?", f"Use {name} with {v}.",
        )  # fmt: skip
        return source.choice(forms)
    listed = list(values.items())
    if source.chance(0.25):
        return f"{title} {source.choice((', ', ' and ')).join(quoted(source, v) for _, v in listed)}"
    if source.chance(0.4):
        source.random.shuffle(listed)
    pair = source.choice(("{} {}", "{} is {}", "{}: {}", "the {} is {}", "{} = {}"))
    joined = source.choice((", ", " and ")).join(pair.format(a, quoted(source, v)) for a, v in listed)
    sentence = source.choice(
        ("{} with {}.", "Please {}, {}.", "{}: {}", "I want to {}; {}", "Can you {} where {}?")
    )
    return sentence.format(said if source.chance(0.5) else title, joined)


def _by_name(source: Source) -> Tool:
    name = _random_name(source)
    types: dict[str, str] = {}
    wanted = source.choice((0, 1, 1, 1, 1, 2, 2, 2, 3))
    while len(types) < wanted:
        kind = source.weighted(("string", "integer", "number"), (12, 6, 1))
        names = {"string": _STRINGS, "integer": _INTEGERS, "number": _NUMBERS}[kind]
        types[source.choice(names) if source.chance(0.85) else source.word(1, 2)] = kind
    said = spoken(name)
    title = said.capitalize()
    description = source.choice(
        (f"{title}.", f"Use this to {said}.", f"{title} for the user.", f"Tool to {said}")
    )
    if types and source.chance(0.3):
        description += f" {source.choice(('by', 'with', 'for', 'using'))} {' and '.join(types)}"
    described = definition(source, name, description, types)
    return Tool(name, name, described, lambda source: _ask_by_name(source, name, types))


_ABOUT = (
    "Get the {t} of something.", "Find a {t}.", "{t} lookup", "Returns the {t}", "Everything about the {t}",
    "Search in the {t}.", "Use this for the {t}.", "Changes the {t}.", "Handles a {t} for the user.",
)  # fmt: skip


def _topic(source: Source) -> str:
    return source.weighted((lambda: source.choice(_TOPICS), source.pick_noun, source.word), (3, 3, 4))()


def _by_description(source: Source) -> Tool:
    """One word, known or not, is shared by the description and the request; the name may be any."""
    if source.chance(0.4):
        name = _new_name(source, lambda: f"{source.choice(_VERBS)}_{_topic(source)}")
        topic = name.partition("_")[2]
    else:
        name, topic = _random_name(source), _topic(source)
    wanted = source.integer(1, 2)
    types: dict[str, str] = {}
    while len(types) < wanted:
        kind = source.weighted(("string", "integer"), (4, 1))
        types[source.choice(_STRINGS if kind == "string" else _INTEGERS)] = kind
    described = definition(source, name, source.choice(_ABOUT).format(t=topic), types)

    def ask(source: Source) -> tuple[str, Arguments]:
        values: Arguments = {argument: value_of(source, kind, argument) for argument, kind in types.items()}
        forms = ABOUT_ONE if wanted == 1 else ABOUT_TWO
        asked = source.wording(forms, "about").format(*values.values(), t=topic)
        return glossed(source, _polite(source, asked[0].upper() + asked[1:]), values), values

    return Tool(name, topic, described, ask)


def tool_of_parts(source: Source) -> Tool:
    """A function with texts, mostly of several words, that is asked for in ever new wordings."""
    name = _random_name(source)
    topic = name.replace("_", " ") if source.chance(0.2) else source.choice(_TOPICS)
    kinds = [source.weighted(("string", "integer"), (6, 1)) for _ in range(source.weighted((1, 2), (1, 3)))]
    types: dict[str, str] = {}
    for kind in kinds:
        types[source.choice(_STRINGS if kind == "string" else _INTEGERS)] = kind
    described = definition(source, name, source.choice(_ABOUT).format(t=topic), types)

    def value(source: Source, kind: str, argument: str) -> Value:
        if kind == "string" and source.chance(0.5):
            return source.foreign_phrase() if source.chance(0.3) else source.phrase(1, 6)
        return value_of(source, kind, argument)

    def ask(source: Source) -> tuple[str, Arguments]:
        values = {argument: value(source, kind, argument) for argument, kind in types.items()}
        asked = put_together(source, len(values), topic).format(*values.values())
        return glossed(source, _polite(source, asked), values), values

    return Tool(name, topic, described, ask)


def make_tools(source: Source, count: int, shares: Sequence[float] = (50, 25, 25)) -> list[Tool]:
    """So many tools of different names and purposes; shares: everyday, asked by description, by name."""
    found: list[Tool] = []
    while len(found) < count:
        tool = source.weighted((_everyday, _by_description, _by_name), shares)(source)
        if not any(tool.name == other.name or tool.purpose == other.purpose for other in found):
            found.append(tool)
    return found
