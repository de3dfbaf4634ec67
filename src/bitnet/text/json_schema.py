"""JSON schemas made ready for llguidance: checked, closed, and with every reference resolved.

What cannot be enforced exactly is refused here with its name and place, since llguidance passes over some of
it in silence. The schemas that come out are at most stricter than what came in: all that matches is valid.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from llguidance import LLMatcher

from bitnet.errors import ConstraintError

from .bounded import bounded
from .schema_keywords import (
    ANNOTATIONS,
    EXACT_DATES,
    FORMATS,
    IMPLIED_TYPES,
    KEYWORDS,
    KNOWN_UNSUPPORTED,
    MAX_MULTIPLE_OF,
    TYPES,
)

MAX_SCHEMA_CHARACTERS = 262144
MAX_DEPTH = 64
_MAX_NODES = 4000
_MAX_PROPERTIES = 500  # of one object: with 2,000, compiling takes 1.2 s and each mask 40 ms
_MAX_LOCATED = 100  # subschemas compiled one by one to find the one at fault

# Compact JSON in which a model may put the usual space behind a comma or colon, but no other white space: a
# small model would go on writing it for ever.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_MAX_EXACT = (
    2**53
)  # whole numbers up to here survive every JSON parser (RFC 8259, section 6), llguidance's too
_APPLICATORS = ("anyOf", "oneOf", "$ref")

Schema = dict[str, Any] | bool


class JsonGrammar:
    """Collects schemas for one grammar. Their definitions get names of their own, and so do not collide."""

    def __init__(self) -> None:
        self._definitions: dict[str, Schema] = {}
        self._names: dict[tuple[int, str, bool], str] = {}
        self._roots: list[Any] = []
        self._pending: list[tuple[str, _Place, bool]] = []
        self._located: list[tuple[str, Schema]] = []  # innermost first
        self._n_nodes = 0
        self._multiples: set[int] = set()
        self.patterns: list[str] = []  # of all schemas
        self._has_composites = False

    def add(self, schema: Any, *, name: str = "") -> Schema:
        """The schema made ready, with references to definitions that lark() writes.

        Objects that list properties and say nothing of others are closed. name: what errors call it. Raises
        ConstraintError naming the keyword and its JSON pointer.
        """
        self._roots.append(schema)
        result = self._convert(_Place(schema, len(self._roots) - 1, f"{name}#"), closed=True, depth=0)
        while self._pending:
            definition, place, closed = self._pending.pop()
            self._definitions[definition] = self._convert(place, closed=closed, depth=0)
        if self._has_composites and math.lcm(*self._multiples) > MAX_MULTIPLE_OF:
            raise ConstraintError("multipleOf cannot be combined with allOf and other values of multipleOf")
        return result

    def lark(self, schema: Schema) -> str:
        """An expression of a Lark grammar that matches `schema`."""
        body = schema if isinstance(schema, dict) else ({} if schema else {"enum": []})
        return "%json " + json.dumps(
            {**body, "$defs": self._definitions, "x-guidance": _STYLE}, ensure_ascii=False
        )

    def check(self, schema: Schema) -> None:
        """Raises ConstraintError, naming the innermost subschema at fault, if llguidance refuses `schema`."""
        problem = self._problem(schema)
        if problem is None:
            return
        for pointer, inner in self._located[:_MAX_LOCATED]:
            inner_problem = self._problem(inner)
            if inner_problem is not None and inner is not False:
                raise ConstraintError(f"the schema at {pointer} cannot be enforced: {inner_problem}")
        raise ConstraintError(f"the schema cannot be enforced: {problem}")

    def _problem(self, schema: Schema) -> str | None:
        message = bounded(lambda: LLMatcher.validate_grammar(f"start: {self.lark(schema)}"))
        if not message or message.startswith("WARNING"):
            return None
        message = message.split("failed to compile JSON schema: ", 1)[-1].split("\n   1 | ", 1)[0]
        return " ".join(message.split())[:500]

    def _convert(self, place: _Place, *, closed: bool, depth: int) -> Schema:
        node = place.value
        self._n_nodes += 1
        if self._n_nodes > _MAX_NODES:
            raise ConstraintError(f"the schema has more than {_MAX_NODES} subschemas")
        if depth > MAX_DEPTH:
            raise ConstraintError(
                f"the schema is nested more than {MAX_DEPTH} levels deep at {place.pointer}"
            )
        if isinstance(node, bool):
            return node
        if not isinstance(node, Mapping):
            raise ConstraintError(
                f"{place.pointer} must be a schema (an object or a boolean), not {node!r:.80}"
            )
        result: dict[str, Any] = {}
        composite = self._is_composite(node)
        self._has_composites |= composite
        for key, value in node.items():
            if key in ANNOTATIONS or str(key).startswith("x-"):
                continue
            if key not in KEYWORDS:
                raise _unsupported(place, key, "" if key in KNOWN_UNSUPPORTED else " (or unknown)")
            result[key] = self._keyword(place, key, value, closed and not composite, depth)
        _check_duplicates_can_be_counted(place, result)
        if result.get("format") in EXACT_DATES:
            self._make_dates_exact(result)
        if "type" not in result and "enum" not in result and "const" not in result and not composite:
            implied = {IMPLIED_TYPES[key] for key in result if key in IMPLIED_TYPES}
            if len(implied) == 1:
                result["type"] = implied.pop()
        if closed:
            self._close(place, result, composite)
        self._located.append((place.pointer, result))
        return result

    def _keyword(self, place: _Place, key: str, value: Any, closed: bool, depth: int) -> Any:
        shape = KEYWORDS[key]
        inner = place.child(key, value)
        if shape == "schema":
            return self._convert(inner, closed=closed, depth=depth + 1)
        if shape == "schemas":
            if not isinstance(value, (list, tuple)) or (not value and key != "prefixItems"):
                raise ConstraintError(f"{inner.pointer} must be a list of schemas")
            return [
                self._convert(inner.child(str(i), item), closed=closed, depth=depth + 1)
                for i, item in enumerate(value)
            ]
        if shape == "named schemas":
            if not isinstance(value, Mapping):
                raise ConstraintError(f"{inner.pointer} must be an object of schemas")
            if len(value) > _MAX_PROPERTIES:
                raise ConstraintError(
                    f"{inner.pointer} has {len(value)} entries; at most {_MAX_PROPERTIES} work"
                )
            # What stands below a property is a value of its own, whatever it is combined with here.
            return {
                name: self._convert(inner.child(name, item), closed=True, depth=depth + 1)
                for name, item in value.items()
            }
        if shape == "reference":
            return f"#/$defs/{self._reference(inner, closed)}"
        return self._plain(inner, key, shape, value)

    def _plain(self, inner: _Place, key: str, shape: str, value: Any) -> Any:
        if shape == "count":
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
                raise ConstraintError(f"{inner.pointer} must be a whole number from 0, not {value!r:.80}")
        elif shape == "number":
            value = _number(inner, key, value)
            if key == "multipleOf":
                self._multiples.add(_multiple_of(inner, value))
        elif shape == "text":
            if not isinstance(value, str):
                raise ConstraintError(f"{inner.pointer} must be a string, not {value!r:.80}")
            if key == "pattern":
                self.patterns.append(value)
            if key == "format" and value not in FORMATS:
                raise ConstraintError(
                    f"unsupported format {value!r} at {inner.pointer}; supported: {', '.join(FORMATS)}"
                )
        elif shape == "names":
            if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
                raise ConstraintError(f"{inner.pointer} must be a list of strings")
            value = list(dict.fromkeys(value))
        elif shape == "type":
            names = [value] if isinstance(value, str) else value
            if not isinstance(names, (list, tuple)) or not names or any(name not in TYPES for name in names):
                raise ConstraintError(f"{inner.pointer} must be of {', '.join(TYPES)}, not {value!r:.80}")
        elif shape == "values":
            if not isinstance(value, (list, tuple)) or not value:
                raise ConstraintError(f"{inner.pointer} must be a list of at least one value")
            _check_exact(inner, value)
        elif shape == "value":
            _check_exact(inner, value)
        elif shape == "must be false" and value is not False:
            raise _unsupported(inner.parent, key)
        return value

    def _reference(self, place: _Place, closed: bool) -> str:
        """The name of the definition that stands for a $ref."""
        target = self._resolve(place)
        key = (place.root, target.pointer, closed)
        if key not in self._names:
            self._names[key] = f"d{len(self._names)}"
            self._pending.append((self._names[key], target, closed))
        return self._names[key]

    def _resolve(self, place: _Place) -> _Place:
        reference = place.value
        if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
            raise ConstraintError(
                f"unsupported $ref {reference!r:.80} at {place.pointer}: only references into the schema "
                "itself (#/...) are followed"
            )
        prefix = place.pointer.partition("#")[0]
        target = _Place(self._roots[place.root], place.root, f"{prefix}#")
        for part in reference.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            value = target.value
            if isinstance(value, Mapping) and name in value:
                target = target.child(name, value[name])
            elif isinstance(value, (list, tuple)) and name.isdecimal() and int(name) < len(value):
                target = target.child(name, value[int(name)])
            else:
                raise ConstraintError(f"$ref {reference!r:.80} at {place.pointer} leads nowhere")
        return target

    @staticmethod
    def _is_composite(node: Mapping[str, Any]) -> bool:
        """Whether several schemas apply to one value: each must allow the properties of the others."""
        all_of = node.get("allOf")
        n_all_of = len(all_of) if isinstance(all_of, (list, tuple)) else 0
        n_applied = n_all_of + sum(key in node for key in _APPLICATORS)
        own = any(IMPLIED_TYPES.get(key) == "object" for key in node)
        return n_applied + own > 1

    def _close(self, place: _Place, result: dict[str, Any], composite: bool) -> None:
        """Forbids properties that the schema does not list, as OpenAI's strict mode does.

        An object of which nothing is listed at all stays open: closed, only {} would be left of it.
        """
        if not composite:
            if "additionalProperties" in result or not (
                "properties" in result or "patternProperties" in result
            ):
                return
            if "patternProperties" not in result:
                properties = result["properties"]
                result["properties"] = {
                    **properties,
                    **{name: True for name in result.get("required", ()) if name not in properties},
                }
            result["additionalProperties"] = False
            return
        names: dict[str, bool] = {}
        if self._collect_names(place, names, set()) and names:
            closing = {"properties": names, "additionalProperties": False}
            result["allOf"] = [*result.get("allOf", ()), closing]

    def _collect_names(self, place: _Place, names: dict[str, bool], seen: set[str]) -> bool:
        """Adds the properties of all schemas that apply here; False if one of them speaks of others."""
        node = place.value
        if not isinstance(node, Mapping) or place.pointer in seen:
            return True
        seen.add(place.pointer)
        if "additionalProperties" in node or "patternProperties" in node:
            return False
        names.update(dict.fromkeys(node.get("properties", ()), True))
        names.update(dict.fromkeys(node.get("required", ()), True))
        inner = [
            place.child(key, node[key]).child(str(i), item)
            for key in ("allOf", "anyOf", "oneOf")
            for i, item in enumerate(node.get(key, ()))
        ]
        if "$ref" in node:
            inner.append(self._resolve(place.child("$ref", node["$ref"])))
        return all(self._collect_names(other, names, seen) for other in inner)

    @staticmethod
    def _make_dates_exact(result: dict[str, Any]) -> None:
        """llguidance's own formats have a 29th of February in every year."""
        pattern = {"pattern": EXACT_DATES[result.pop("format")]}
        if "pattern" in result:
            result["allOf"] = [*result.get("allOf", ()), pattern]
        else:
            result.update(pattern)


class _Place:
    """A value inside of a schema, and where it stands."""

    def __init__(self, value: Any, root: int, pointer: str, parent: _Place | None = None) -> None:
        self.value = value
        self.root = root
        self.pointer = pointer
        self.parent = parent or self

    def child(self, key: str, value: Any) -> _Place:
        escaped = str(key).replace("~", "~0").replace("/", "~1")
        return _Place(value, self.root, f"{self.pointer}/{escaped}", self)


def _unsupported(place: _Place, key: str, remark: str = "") -> ConstraintError:
    return ConstraintError(f"unsupported{remark} keyword {key!r} at {place.child(key, None).pointer}")


def _number(place: _Place, key: str, given: Any) -> int | float:
    if not isinstance(given, (int, float)) or isinstance(given, bool) or not math.isfinite(given):
        raise ConstraintError(f"{place.pointer} must be a number, not {given!r:.80}")
    value: int | float = given
    if key in ("minimum", "exclusiveMinimum"):
        value = max(value, -_MAX_EXACT)
    elif key in ("maximum", "exclusiveMaximum"):
        value = min(value, _MAX_EXACT)
    if abs(value) > _MAX_EXACT:
        raise ConstraintError(f"{place.pointer} is beyond 2**53: it cannot be enforced exactly")
    return value


def _multiple_of(place: _Place, value: int | float) -> int:
    """The value's digits as a whole number; llguidance needs a state for each."""
    digits = str(value)
    whole, _, fraction = digits.partition(".")
    n_decimals = len(fraction.rstrip("0"))
    scaled = int(whole + fraction) if "e" not in digits else 0
    if fraction:
        scaled //= 10 ** (len(fraction) - n_decimals)
    if not 0 < scaled <= MAX_MULTIPLE_OF:
        raise ConstraintError(
            f"multipleOf {value!r} at {place.pointer} cannot be enforced: its digits must make up a number "
            f"from 1 to {MAX_MULTIPLE_OF}"
        )
    return scaled


def _check_exact(place: _Place, value: Any) -> None:
    """Raises ConstraintError for numbers in a constant that llguidance would round."""
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_exact(place.child(str(i), item), item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_exact(place.child(key, item), item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) > _MAX_EXACT:
        raise ConstraintError(f"{place.pointer} is beyond 2**53: it cannot be written exactly")


def _check_duplicates_can_be_counted(place: _Place, result: Mapping[str, Any]) -> None:
    """A grammar cannot keep a property that is not listed from coming twice, and then it counts only once."""
    if result.get("minProperties", 0) > max(1, len(result.get("required", ()))):
        raise _unsupported(place, "minProperties", " value of")
