"""Response formats, as the APIs of OpenAI and their kin write them, become rules of a grammar.

Compiling and running the grammar is left to constraints.py, JSON schemas to json_schema.py.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llguidance import regex_to_lark

from bitnet.errors import ConstraintError

from .json_schema import JsonGrammar

ANSWER = "answer_"  # the rule that answer_rules() defines
_MAX_GRAMMAR_CHARACTERS = 65536
_MAX_RULES = 500
_MAX_CHOICES = 5000
_MAX_LITERALS = 20
_LITERAL = re.compile(r"[A-Za-z0-9_]{2,}")
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_REGEX = re.compile(r"/(?:[^/\\\n]|\\.)+/")
_RULE_NAME = re.compile(r"[a-z_][a-z0-9_]{0,63}")


class Rules(NamedTuple):
    """Lark rules that define ANSWER; regular expressions that texts in them may have to contain, and strings
    that may have to follow a text."""

    lark: str
    patterns: Sequence[str]
    literals: Sequence[str] = ()


def answer_rules(response_format: Mapping[str, Any]) -> Rules | None:
    """What a response format says; None for plain text. Raises ConstraintError."""
    if not isinstance(response_format, Mapping):
        raise ConstraintError(f"response_format must be a mapping, not {type(response_format).__name__}")
    kind = response_format.get("type")
    if not isinstance(kind, str) or kind not in _FORMATS:
        raise ConstraintError(f"response_format.type must be one of {', '.join(_FORMATS)}, not {kind!r}")
    known, rules = _FORMATS[kind]
    for key in response_format:
        if key != "type" and key not in known:
            names = ", ".join(("type", *known))
            raise ConstraintError(f"response_format has an unknown key {key!r}; known: {names}")
    return rules(response_format)


def _json_schema_rules(response_format: Mapping[str, Any]) -> Rules:
    wrapper = response_format.get("json_schema", response_format)
    if not isinstance(wrapper, Mapping) or "schema" not in wrapper:
        raise ConstraintError("response_format.json_schema must be a mapping with a key 'schema'")
    for key in wrapper:
        if key not in ("type", "name", "schema", "strict", "description"):
            raise ConstraintError(f"response_format.json_schema has an unknown key {key!r}")
    return _json_rules(wrapper["schema"])


def _json_object_rules(response_format: Mapping[str, Any]) -> Rules:
    return _json_rules({"type": "object", "additionalProperties": True})


def _json_rules(schema: Any) -> Rules:
    grammar = JsonGrammar()
    root = grammar.add(schema)
    grammar.check(root)
    return Rules(f"{ANSWER}: {grammar.lark(root)}\n", grammar.patterns)


def _regex_rules(response_format: Mapping[str, Any]) -> Rules:
    pattern = _text(response_format, "pattern")
    # The whole output matches in any case, so that anchors at its edges say nothing.
    return Rules(f"{ANSWER}: /{regex_to_lark(unanchored(pattern), '')}/\n", _literals(pattern))


def _choice_rules(response_format: Mapping[str, Any]) -> Rules:
    choices = response_format.get("choices")
    if not isinstance(choices, (list, tuple)) or not choices or len(choices) > _MAX_CHOICES:
        raise ConstraintError(f"response_format.choices must be a list of 1 to {_MAX_CHOICES} strings")
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise ConstraintError(f"response_format.choices must hold non-empty strings, not {choice!r}")
    terminals = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    return Rules(f"{ANSWER}: {ANSWER.upper()}\n{ANSWER.upper()}: {terminals}\n", ())


def _grammar_rules(response_format: Mapping[str, Any]) -> Rules:
    grammar = _text(response_format, "grammar")
    for word, instead in (
        ("%json", "name the schema in response_format.schemas"),
        ("invalid_utf8", "output is text"),
    ):
        if word in grammar:
            raise ConstraintError(f"a grammar cannot contain {word}: {instead}")
    if sum(":" in line for line in grammar.splitlines()) > _MAX_RULES:
        raise ConstraintError(f"the grammar has more than {_MAX_RULES} rules")
    named = _schema_rules(response_format.get("schemas"))
    patterns = [*_literals("\n".join(_REGEX.findall(grammar))), *named.patterns]
    return Rules(f"{ANSWER}: %lark {{\n{grammar}\n{named.lark}}}\n", patterns, _strings(grammar))


def _schema_rules(schemas: Any) -> Rules:
    """Rules of a grammar that are JSON schemas, by name."""
    if schemas is None:
        return Rules("", ())
    if not isinstance(schemas, Mapping):
        raise ConstraintError("response_format.schemas must map names of rules to JSON schemas")
    json_grammar = JsonGrammar()
    roots = {}
    for name, schema in schemas.items():
        if not isinstance(name, str) or not _RULE_NAME.fullmatch(name):
            raise ConstraintError(
                f"response_format.schemas has the key {name!r:.100}: a rule's name is lower case letters, "
                "digits and _, and does not begin with a digit"
            )
        roots[name] = json_grammar.add(schema, name=f"schemas.{name}: ")
        json_grammar.check(roots[name])
    lark = "".join(f"{name}: {json_grammar.lark(root)}\n" for name, root in roots.items())
    return Rules(lark, json_grammar.patterns)


def _text(response_format: Mapping[str, Any], key: str) -> str:
    value = response_format.get(key)
    if not isinstance(value, str) or not value:
        raise ConstraintError(f"response_format.{key} must be a non-empty string")
    if len(value) > _MAX_GRAMMAR_CHARACTERS:
        raise ConstraintError(
            f"response_format.{key} has {len(value)} characters; at most {_MAX_GRAMMAR_CHARACTERS} work"
        )
    return value


def unanchored(pattern: str) -> str:
    """A pattern without anchors at its edges."""
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2 == 1:
        pattern = pattern[:-1]
    return pattern


def _strings(grammar: str) -> list[str]:
    """The string literals of a Lark grammar."""
    strings = []
    for literal in dict.fromkeys(_STRING.findall(grammar)):
        with contextlib.suppress(ValueError):  # an escape that JSON does not know: it can only be left out
            strings.append(json.loads(literal))
    return [string for string in strings if string][:_MAX_LITERALS]


def _literals(text: str) -> list[str]:
    """Words in it, and all of them in a row: what an output may have to contain."""
    words = _LITERAL.findall(text)
    return [*words[:_MAX_LITERALS], "".join(words)] if len(words) < _MAX_LITERALS else words


_FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Rules | None]]] = {
    "text": ((), lambda response_format: None),
    "json_object": ((), _json_object_rules),
    "json_schema": (("json_schema", "name", "schema", "strict", "description"), _json_schema_rules),
    "regex": (("pattern",), _regex_rules),
    "choice": (("choices",), _choice_rules),
    "grammar": (("grammar", "schemas"), _grammar_rules),
}
