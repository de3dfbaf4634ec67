"""Skills "schema" (fill a JSON schema from a text) and "options" (answer with the number of a choice)."""

from __future__ import annotations

import json
from collections.abc import Callable

from . import words, world
from .source import Sample, Source
from .words import listed

Value = str | int | bool

_FIELDS: dict[str, tuple[str, Callable[[Source], Value]]] = {
    "name": ("string", Source.full_name),
    "city": ("string", Source.city),
    "age": ("integer", lambda s: s.integer(5, 99)),
    "job": ("string", lambda s: s.choice(words.JOBS)),
    "color": ("string", lambda s: s.choice(words.COLORS)),
    "price": ("integer", lambda s: s.number()),
    "product": ("string", Source.phrase),
    "year": ("integer", lambda s: s.integer(1900, 2030)),
    "title": ("string", Source.phrase),
    "quantity": ("integer", lambda s: s.number(99)),
    "member": ("boolean", lambda s: s.chance(0.5)),
}
_SCHEMA_PROMPTS = (
    "Extract the data as JSON.\nSchema: {schema}\nText: {text}",
    "{text}\n\nAnswer with JSON that matches this schema:\n{schema}",
    "Fill this JSON schema: {schema}\n{text}",
    "{text}\n\nHere's a JSON schema to follow:\n{schema}\n\n"
    "Output a valid JSON object but do not repeat the schema.\n",
)
_CATEGORIES: dict[str, list[str]] = {
    "fruit": listed("apple banana grape lemon orange pear cherry plum peach mango"),
    "animal": words.ANIMALS,
    "color": words.COLORS,
    "job": words.JOBS,
    "instrument": listed("guitar piano drum violin flute harp trumpet"),
    "vehicle": listed("car train boat bike bus plane truck ship"),
    "country": [country for country, _ in world.CAPITALS if not country.startswith("the ")],
    "number": listed("one two three four five six seven eight nine ten"),
}
_NUMBER_ONLY = ("Answer with the number.", "Reply with the number only.", "Number:")
_DESCRIPTIONS = (
    "Useful for questions about {}.", "This tool answers questions about {}", "Information about {}",
    "Summary of {}", "Documents on {}",
)  # fmt: skip
_TOPIC_QUESTIONS = (
    "What do you know about {}?", "Tell me about {}.", "How much is the {}?", "Where can I find {}?",
    "Explain {}",
)  # fmt: skip
_SELECTOR = (
    "Some choices are given below. It is provided in a numbered list (1 to {count}), where each item in the "
    "list corresponds to a summary.\n---------------------\n{choices}\n---------------------\nUsing only the "
    "choices above and not prior knowledge, return the choice that is most relevant to the question: "
    "'{question}'"
)


def _said(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _as_text(source: Source, record: dict[str, Value]) -> str:
    if "name" in record and source.chance(0.5):
        sayings = {"city": "lives in {}", "age": "is {} years old", "job": "works as a {}"}
        parts = [
            sayings.get(field, f"has {field} {{}}").format(_said(value))
            for field, value in record.items()
            if field != "name"
        ]
        return f"{record['name']} {' and '.join(parts)}." if parts else f"{record['name']}."
    fields = list(record.items())
    source.random.shuffle(fields)
    pair = source.choice(("{}: {}", "the {} is {}", "{} = {}", "{} {}"))
    return source.choice((", ", "; ", "\n", " and ")).join(pair.format(f, _said(v)) for f, v in fields)


def schema(source: Source) -> Sample:
    fields = source.sample(list(_FIELDS), source.integer(1, 4))
    record: dict[str, Value] = {field: _FIELDS[field][1](source) for field in fields}
    kinds = {field: _FIELDS[field][0] for field in fields}
    if source.chance(0.2):
        invented = source.word(1, 2)
        record[invented], kinds[invented] = source.any_text(), "string"
    properties = {field: {"type": kind} for field, kind in kinds.items()}
    definition = json.dumps({"type": "object", "properties": properties, "required": list(kinds)})
    asked = source.choice(_SCHEMA_PROMPTS).format(schema=definition, text=_as_text(source, record))
    answer = json.dumps(record, ensure_ascii=False)
    return Sample([*source.system(0.15), ("user", asked), ("assistant", answer)], "schema")


def _numbered(items: list[str], form: str = "{}. {}", end: str = "\n") -> str:
    return end.join(form.format(i + 1, item) for i, item in enumerate(items))


def options(source: Source) -> Sample:
    count, kind = source.integer(2, 5), source.integer(0, 3)
    if kind == 0:
        categories = source.sample(list(_CATEGORIES), count)
        items = [source.choice(_CATEGORIES[c]) for c in categories]
        right = source.integer(0, count - 1)
        asked = f"Which of these is a {categories[right]}?\n{_numbered(items)}\n{source.choice(_NUMBER_ONLY)}"
    elif kind == 1:
        items = list(dict.fromkeys(source.any_text() for _ in range(count)))
        right = source.integer(0, len(items) - 1)
        question = source.choice(("Which option is {}?", "Find the number of {}.", "Choose {}."))
        asked = f"{question.format(items[right])}\n{_numbered(items)}\n{source.choice(_NUMBER_ONLY)}"
    else:
        topics = list(
            dict.fromkeys(source.pick_noun() if source.chance(0.5) else source.word() for _ in range(count))
        )
        right = source.integer(0, len(topics) - 1)
        description = source.choice(_DESCRIPTIONS)
        items = [description.format(topic) for topic in topics]
        question = source.choice(_TOPIC_QUESTIONS).format(topics[right])
        if kind == 2:
            choices = _numbered(items, "({}) {}", "\n\n")
            asked = _SELECTOR.format(count=len(items), choices=choices, question=question)
        else:
            asked = f"{question}\n{_numbered(items)}\nAnswer with the number."
    return Sample([("user", asked), ("assistant", str(right + 1))], "options")
