"""Skill "schema": JSON filled from a text, with the schema in the prompt or (forced) no word about it."""

from __future__ import annotations

import json
from typing import Any

from . import prompts, words
from .source import Family, Message, Sample, Source
from .tool_specs import Arguments
from .tools import marked_object, record, record_text

_PROMPTS = (
    "Extract the data as JSON.\nSchema: {schema}\nText: {text}",
    "{text}\n\nAnswer with JSON that matches this schema:\n{schema}",
    "Fill this JSON schema: {schema}\n{text}",
    "{text}" + prompts.FOLLOW_SCHEMA,
    "Text: {text}" + prompts.FOLLOW_SCHEMA,
)
_WITH_KEYS = (
    "{text}\nReturn the result as JSON with the keys {keys}.",
    "{text} Answer with a JSON object with {keys}.",
    "Make JSON with the keys {keys} from this text: {text}",
)
_TITLES = ("Person", "Record", "Item", "Data", "Entry", "Result")
# Made-up things, for schemas that ask for some: what is asked, the two keys, the two texts.
_FREE_KEYS = (("question", "answer"), ("setup", "punchline"), ("title", "text"), ("headline", "body"))
_FREE = (
    ("joke", "Why did the {a} take a {t} to the {p}?", "Because the {p} had no {t}."),
    ("riddle", "What has a {t} but is no {a}?", "A {a} in the {p}."),
    ("short poem", "The {a} and the {t}", "The {a} sat in the {p} and looked at a {t}."),
    ("slogan", "The {t} of the {a}", "A {t} for every {p}."),
)
_FREE_WORDINGS = (
    "Tell me a {kind} about a {a}.", "Write a {kind} about a {a}.", "I want a {kind} about a {a}.",
    "Make up a {kind} about {a}s.", "Give me a {kind} about the {a}.",
)  # fmt: skip


def _schema(source: Source, types: dict[str, str]) -> str:
    properties: dict[str, Any] = {field: {"type": kind} for field, kind in types.items()}
    if source.chance(0.5):  # as pydantic writes it
        properties = {f: {"title": f.replace("_", " ").title(), **entry} for f, entry in properties.items()}
        full = {"properties": properties, "required": list(types), "title": source.choice(_TITLES),
                "type": "object"}  # fmt: skip
    else:
        full = {"type": "object", "properties": properties, "required": list(types)}
    return json.dumps(full)


def schema(source: Source) -> Family:
    """Records of one kind: with the schema, with the names of the keys, or with no instruction at all."""
    types, make = record(source)
    kind = source.integer(0, 9)
    form, definition = source.choice(_PROMPTS), _schema(source, types)
    keys = " and ".join(f"'{field}'" for field in types)
    with_keys = source.choice(_WITH_KEYS)
    family = []
    for _ in range(3):
        values = make(source)
        text = record_text(source, values)
        if kind <= 4:
            asked = form.format(schema=definition, text=text)
        elif kind <= 6:
            asked = with_keys.format(text=text, keys=keys)
        else:
            asked = text
        messages: list[Message] = [
            *source.system(0.15),
            ("user", asked),
            ("assistant", marked_object(values)),
        ]
        family.append(Sample(messages, "schema", forced=kind >= 7))
    return family


def invention(source: Source) -> Family:
    """Fields that no text tells and something must be made up for."""
    family = []
    keys = source.choice(_FREE_KEYS)
    for _ in range(3):
        kind, first, second = source.choice(_FREE)
        animal = source.choice([a for a in words.ANIMALS if a != "cat"])
        forms = {
            "a": animal,
            "t": source.pick_noun(),
            "p": source.choice(("forest", "garden", "kitchen", "school")),
        }
        asked = source.choice(_FREE_WORDINGS).format(kind=kind, a=animal)
        made: Arguments = {keys[0]: first.format(**forms), keys[1]: second.format(**forms)}
        forced = source.chance(0.6)
        if not forced:
            asked = source.choice(_WITH_KEYS).format(
                text=asked, keys=" and ".join(f"'{key}'" for key in keys)
            )
        family.append(
            Sample([("user", asked), ("assistant", marked_object(made))], "invention", forced=forced)
        )
    return family
