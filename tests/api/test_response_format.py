"""Answers held to a format by the engine: what comes back always parses, or says that it was cut."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from bitnet import BitNet
from bitnet.errors import ConstraintError, ValidationError

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
QUESTION = [{"role": "user", "content": "My name is Bob and I am 34 years old."}]


@pytest.mark.parametrize("seed", range(6))
def test_a_schema_is_obeyed_at_any_temperature(model: BitNet, seed: int) -> None:
    reply = model.chat(
        QUESTION, response_format=FORMAT, temperature=3, top_k=0, top_p=1, seed=seed, max_tokens=120
    )
    assert reply.finish_reason == "stop"
    jsonschema.validate(reply.parsed, SCHEMA)


def test_it_closes_before_the_tokens_run_out(model: BitNet) -> None:
    needed = len(model.tokenize('{"name": "", "age": 0, "tags": []}', add_special=False))
    for max_tokens in range(needed + 4, needed + 12):
        reply = model.chat(
            QUESTION, response_format=FORMAT, temperature=2, top_k=0, seed=1, max_tokens=max_tokens
        )
        assert reply.finish_reason == "stop"
        jsonschema.validate(reply.parsed, SCHEMA)


def test_a_cut_answer_says_so_and_does_not_parse(model: BitNet) -> None:
    reply = model.chat(QUESTION, response_format=FORMAT, temperature=0, max_tokens=4)
    assert reply.finish_reason == "length"
    with pytest.raises(ValidationError, match="not whole"):
        _ = reply.parsed


def test_choices_regex_and_grammar(model: BitNet) -> None:
    choices = ["yes", "no", "perhaps not"]
    for seed in range(5):
        reply = model.chat(
            QUESTION, response_format={"type": "choice", "choices": choices}, temperature=5, seed=seed
        )
        assert reply.text in choices
        assert reply.finish_reason == "stop"
        reply = model.generate(
            "Call",
            response_format={"type": "regex", "pattern": "[0-9]{3}-[0-9]{4}"},
            temperature=5,
            seed=seed,
        )
        assert re.fullmatch("[0-9]{3}-[0-9]{4}", reply.text)
    lark = 'start: "<" WORD ">"\nWORD: /[a-z]{1,5}/'
    reply = model.generate("x", response_format={"type": "grammar", "grammar": lark}, temperature=5, seed=1)
    assert re.fullmatch("<[a-z]{1,5}>", reply.text)


def test_json_object(model: BitNet) -> None:
    reply = model.chat(
        QUESTION, response_format={"type": "json_object"}, temperature=2, seed=3, max_tokens=60
    )
    assert reply.finish_reason == "stop"
    assert isinstance(json.loads(reply.text), dict)


def test_the_stream_is_the_same_text(model: BitNet) -> None:
    options = {"response_format": FORMAT, "seed": 4, "max_tokens": 80}
    reply = model.chat(QUESTION, **options)
    assert "".join(delta.text for delta in model.stream_chat(QUESTION, **options)) == reply.text


def test_free_text_is_free(model: BitNet) -> None:
    free = model.chat(QUESTION, temperature=0)
    assert model.chat(QUESTION, temperature=0, response_format={"type": "text"}).text == free.text


def test_what_cannot_be_enforced_is_refused(model: BitNet) -> None:
    with pytest.raises(ConstraintError, match="uniqueItems"):
        model.chat(
            QUESTION,
            response_format={"type": "json_schema", "schema": {"type": "array", "uniqueItems": True}},
        )
    with pytest.raises(ConstraintError, match="type must be one of"):
        model.chat(QUESTION, response_format={"type": "yaml"})
    with pytest.raises(ValidationError, match="ignore_eos"):
        model.chat(QUESTION, response_format=FORMAT, ignore_eos=True)


def test_what_could_go_on_is_whole_where_the_tokens_end(model: BitNet) -> None:
    digits = {"type": "regex", "pattern": "[0-9]+"}
    reply = model.generate("Number", response_format=digits, temperature=0, max_tokens=3)
    assert re.fullmatch("[0-9]+", reply.text)
    assert reply.finish_reason == "stop"


def test_a_grammar_with_rules_that_are_schemas(model: BitNet) -> None:
    response_format = {
        "type": "grammar",
        "grammar": 'start: "age " age | "tags " tags',
        "schemas": {
            "age": {"type": "integer", "minimum": 10, "maximum": 99},
            "tags": {
                "type": "array",
                "items": {"$ref": "#/$defs/Tag"},
                "maxItems": 3,
                "$defs": {"Tag": {"enum": ["red"]}},
            },
        },
    }
    for seed in range(6):
        reply = model.generate(
            "x", response_format=response_format, temperature=5, top_k=0, seed=seed, max_tokens=40
        )
        assert reply.finish_reason == "stop"
        assert re.fullmatch(r'age [1-9][0-9]|tags \[("red"(, ?"red"){0,2})?\]', reply.text), reply.text


@pytest.mark.parametrize(
    ("schemas", "message"),
    [
        ([], "must map names"),
        ({"Age": {}}, "'Age': a rule's name"),
        ({"age": {"type": "number", "not": {}}}, r"schemas.age: #"),
        ({"tool": {"type": "string"}}, "rule"),
    ],
)
def test_schemas_of_a_grammar_that_cannot_be(model: BitNet, schemas: object, message: str) -> None:
    response_format = {"type": "grammar", "grammar": "start: age\ntool: TEXT\nTEXT: /a/", "schemas": schemas}
    with pytest.raises(ConstraintError, match=message):
        model.generate("x", response_format=response_format)
