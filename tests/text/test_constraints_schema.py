"""JSON schemas: what is closed, what is refused with its name and place, and what hostile ones may cost."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from constrained import accepts, in_bytes
from vocabularies import Trained

from bitnet.errors import ConstraintError
from bitnet.text.constraints import Constraint, compile_constraint
from bitnet.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(llama3: Trained) -> Tokenizer:
    return Tokenizer.from_metadata(llama3.metadata)


def compiled(tokenizer: Tokenizer, schema: Any) -> Constraint:
    constraint = compile_constraint({"type": "json_schema", "schema": schema}, tokenizer)
    assert constraint is not None
    return constraint


def matches(tokenizer: Tokenizer, schema: Any, text: str) -> bool:
    return accepts(compiled(tokenizer, schema), tokenizer, in_bytes(tokenizer, text))


A = {"a": {"type": "integer"}}
X = {"properties": A}
NODE = {
    "$defs": {
        "n/o~de": {"properties": {"next": {"anyOf": [{"$ref": "#/$defs/n~1o~0de"}, {"type": "null"}]}}}
    },
    "$ref": "#/$defs/n~1o~0de",
}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        # Objects that list properties are closed; those that list nothing are open, or only {} would be left.
        ({"type": "object", "properties": A}, ["{}", '{"a":1}'], ['{"b":1}', '{"a":1,"b":1}']),
        ({"type": "object", "properties": {}}, ["{}"], ['{"a":1}']),
        ({"type": "object"}, ["{}", '{"x":[{}]}'], ["[]"]),
        ({"properties": A, "additionalProperties": True}, ['{"a":1, "b":""}'], ['{"a":""}']),
        ({"type": "object", "additionalProperties": {"type": "null"}}, ['{"x":null}'], ['{"x":1}']),
        ({"patternProperties": {"^x": {"type": "null"}}}, ['{"xy":null}'], ['{"y":null}', '{"xy":1}']),
        ({"type": "object", "properties": A, "required": ["a", "b"]}, ['{"a":1,"b":[]}'], ['{"a":1}']),
        # A keyword says which type is meant.
        ({"properties": A, "required": ["a"]}, ['{"a":1}'], ["1", '"x"']),
        ({"minLength": 2}, ['"ab"'], ['"a"', "1"]),
        # Schemas that apply together are closed together.
        ({"allOf": [{"properties": A}, {"properties": {"b": {}}}]}, ['{"a":1,"b":2}'], ['{"c":1}']),
        (
            {"properties": A, "anyOf": [{"required": ["b"]}, {"properties": {"c": {"type": "null"}}}]},
            ['{"a":1,"b":1}', '{"c":null}'],
            ['{"d":1}', '{"a":""}'],
        ),
        (
            {"$defs": {"x": X}, "$ref": "#/$defs/x", "properties": {"b": {"$ref": "#/$defs/x"}}},
            ['{"a":1,"b":{"a":2}}', '{"b":{}}'],
            ['{"c":1}', '{"b":{"b":{}}}'],
        ),
        ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, ["3"], ["2", "3.5"]),
        (NODE, ["{}", '{"next":{"next":null}}'], ['{"next":1}', '{"other":1}']),
        ({"properties": {"up": {"$ref": "#"}}}, ['{"up":{"up":{}}}'], ['{"up":1}']),
        ({"oneOf": [{"const": "a"}, {"type": "integer"}], "discriminator": {}}, ['"a"', "2"], ['"b"']),
        ({"enum": [1, "x", None, {"k": [True]}]}, ["1", '"x"', "null", '{"k":[true]}'], ["2", '{"k":[]}']),
        ({"type": ["string", "null"], "maxLength": 1}, ["null", '"é"', '"\\n"'], ['"ab"', "1"]),
        ({"prefixItems": [{"type": "integer"}], "items": False, "minItems": 1}, ["[1]"], ["[]", "[1,2]"]),
        ({"type": "array", "items": A["a"], "minItems": 1, "maxItems": 2}, ["[1, 2]"], ["[]", "[1,2,3]"]),
        ({"type": "integer", "multipleOf": 25, "exclusiveMinimum": 0}, ["25", "100"], ["0", "30"]),
        ({"type": "number", "minimum": 0.5, "maximum": 1}, ["0.5", "0.75", "1"], ["0.4", "1.1"]),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, ["9007199254740992"], ["9" * 19]),
        ({"type": "string", "pattern": "b+"}, ['"abbc"'], ['"ac"']),
        ({"type": "string", "format": "uuid"}, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123e4567"']),
        ({"format": "date"}, ['"2024-02-29"', '"2000-02-29"'], ['"2023-02-29"', '"1900-02-29"']),
        ({"format": "date"}, ['"0001-01-01"'], ['"0000-01-01"']),
        ({"format": "date", "pattern": "^2"}, ['"2024-01-31"'], ['"1999-01-31"', '"2024-02-31"']),
        ({"format": "date-time"}, ['"2024-12-31T23:59:59.5+01:00"'], ['"2024-12-31T23:59:60Z"']),
        (True, ["1", "{}"], ["x"]),
        # Annotations say nothing; settings of llguidance are not for clients.
        ({"type": "null", "title": "t", "default": 1, "x-any": 1, "deprecated": True}, ["null"], ["1"]),
        ({"type": "array", "x-guidance": {"whitespace_flexible": True}}, ["[1, 2]"], ["[ 1]", "[1,\n2]"]),
    ],
)  # fmt: skip
def test_what_matches(tokenizer: Tokenizer, schema: Any, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not matches(tokenizer, schema, text)] == []
    assert [text for text in bad if matches(tokenizer, schema, text)] == []


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"not": {}}, "unsupported keyword 'not' at #/properties/a~1b/not"),
        ({"uniqueItems": True}, "unsupported keyword 'uniqueItems' at #/properties/a~1b/uniqueItems"),
        ({"if": {}}, "unsupported keyword 'if' at #/properties/a~1b/if"),
        ({"propertyNames": {}}, "unsupported keyword 'propertyNames' at #/properties/a~1b/propertyNames"),
        ({"minimun": 3}, "unsupported (or unknown) keyword 'minimun' at #/properties/a~1b/minimun"),
        ({"items": {"nullable": True}}, "keyword 'nullable' at #/properties/a~1b/items/nullable"),
        ({"anyOf": [{}, {"$id": "x"}]}, "unsupported keyword '$id' at #/properties/a~1b/anyOf/1/$id"),
        (
            {"minProperties": 2},
            "unsupported value of keyword 'minProperties' at #/properties/a~1b/minProperties",
        ),
        (
            {"format": "iri"},
            "unsupported format 'iri' at #/properties/a~1b/format; supported: date-time, time",
        ),
        (
            {"$ref": "https://example.org/x"},
            "unsupported $ref 'https://example.org/x' at #/properties/a~1b/$ref",
        ),
        ({"$ref": "#/$defs/none"}, "$ref '#/$defs/none' at #/properties/a~1b/$ref leads nowhere"),
        ({"pattern": "(?=a)b"}, "the schema at #/properties/a~1b cannot be enforced: regex parse error"),
        ({"oneOf": [{"type": "object"}] * 2}, "the schema at #/properties/a~1b cannot be enforced: oneOf"),
        ({"type": "strin"}, "#/properties/a~1b/type must be of string, integer"),
        ({"type": []}, "#/properties/a~1b/type must be"),
        ({"enum": []}, "#/properties/a~1b/enum must be a list of at least one value"),
        ({"enum": [0, {"k": 2**60}]}, "#/properties/a~1b/enum/1/k is beyond 2**53"),
        ({"minimum": 2**60}, "#/properties/a~1b/minimum is beyond 2**53"),
        ({"minimum": "1"}, "#/properties/a~1b/minimum must be a number, not '1'"),
        ({"exclusiveMinimum": True}, "#/properties/a~1b/exclusiveMinimum must be a number, not True"),
        ({"multipleOf": 0}, "multipleOf 0 at #/properties/a~1b/multipleOf cannot be enforced"),
        ({"multipleOf": 99999999}, "multipleOf 99999999 at #/properties/a~1b/multipleOf cannot be enforced"),
        ({"multipleOf": 1e-300}, "multipleOf 1e-300 at #/properties/a~1b/multipleOf cannot be enforced"),
        ({"minLength": -1}, "#/properties/a~1b/minLength must be a whole number from 0, not -1"),
        ({"maxItems": 1.5}, "#/properties/a~1b/maxItems must be a whole number from 0, not 1.5"),
        ({"pattern": 1}, "#/properties/a~1b/pattern must be a string, not 1"),
        ({"required": "a"}, "#/properties/a~1b/required must be a list of strings"),
        ({"properties": []}, "#/properties/a~1b/properties must be an object of schemas"),
        ({"anyOf": []}, "#/properties/a~1b/anyOf must be a list of schemas"),
        ({"items": [{}]}, "#/properties/a~1b/items must be a schema (an object or a boolean), not [{}]"),
    ],
)
def test_refused_with_name_and_place(tokenizer: Tokenizer, schema: Any, message: str) -> None:
    with pytest.raises(ConstraintError, match=re.escape(message)):
        compiled(tokenizer, {"type": "object", "properties": {"a/b": schema}})


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def chained(length: int) -> dict[str, Any]:
    definitions = {
        f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}, "required": ["a"]}
        for i in range(length)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{length}": {"type": "null"}}}


def doubling(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema, "b": schema}}
    return schema


def integers(count: int) -> dict[str, Any]:
    return {f"p{i}": {"type": "integer"} for i in range(count)}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (False, "Unsatisfiable"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum (5) is greater than maximum (4)"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "no end"),
        ({"properties": {"n": {"$ref": "#"}}, "required": ["n"]}, "matches nothing of a reasonable length"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 10**9}, "reasonable length"),
        ({"type": "string", "minLength": 10**6}, "reasonable length"),
        ({"type": "string", "pattern": "^(a{1000}){1000}$"}, "reasonable length"),
        ({"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}]}, "cannot be combined"),
        ({"type": "object", "properties": integers(501)}, "#/properties has 501 entries; at most 500"),
        (doubling(11), "more than 4000 subschemas"),
        (nested(65), "more than 64 levels deep"),
        (nested(5000), "not plain JSON: maximum recursion depth"),
        ({"enum": ["x" * 1000] * 300}, "characters of JSON; at most 262144"),
        (
            {"allOf": [{"anyOf": [{"required": [f"k{i}{j}"]} for j in range(10)]} for i in range(8)]},
            "schema too large",
        ),
    ],
)
def test_hostile(tokenizer: Tokenizer, schema: Any, message: str) -> None:
    started = time.process_time()
    with pytest.raises(ConstraintError, match=re.escape(message)):
        compiled(tokenizer, schema)
    assert time.process_time() - started < 5  # processor time: other processes do not count


@pytest.mark.parametrize(
    ("schema", "minimum"),
    [
        ({"type": "object", "properties": integers(100), "required": list(integers(100))}, 1000),
        ({"type": "object", "properties": integers(500)}, 2),
        (nested(63), 64),
        (chained(60), 1000),
        ({"enum": [f"x{i}" for i in range(5000)]}, 6),
        ({"type": "string", "minLength": 500}, 502),
    ],
)
def test_large_but_possible(tokenizer: Tokenizer, schema: Any, minimum: int) -> None:
    assert compiled(tokenizer, schema).minimum_tokens() <= minimum


def test_long_chain_of_definitions_does_not_overflow_the_stack(tokenizer: Tokenizer) -> None:
    """llguidance recurses through all 1,500 of them."""
    schema = {"anyOf": [{"$ref": "#/$defs/d0"}, {"type": "null"}], "$defs": chained(1500)["$defs"]}
    assert compiled(tokenizer, schema).minimum_tokens() <= 4


def test_the_schema_is_left_as_it_was(tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "object", "properties": A}}}
    compiled(tokenizer, schema)
    assert schema == {"type": "object", "properties": {"a": {"type": "object", "properties": A}}}
