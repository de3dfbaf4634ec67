"""with_structured_output: every method, every kind of schema, whole, raw, streamed and cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from bitnet import ToolCall
from bitnet.testing import FakeReply
from langchain_core.exceptions import OutputParserException
from pydantic import BaseModel, Field
from pydantic.v1 import BaseModel as BaseModelV1
from typing_extensions import TypedDict

from langchain_bitnet import ChatBitNet, TruncatedOutputError
from tests.fakes import scripted

METHODS = ["json_schema", "function_calling", "json_mode"]
ANNA = {"name": "Anna", "age": 31}


class Person(BaseModel):
    """A person."""

    name: str = Field(description="The full name.")
    age: int


class PersonV1(BaseModelV1):
    """A person."""

    name: str
    age: int


class PersonDict(TypedDict):
    """A person."""

    name: str
    age: int


class Tree(BaseModel):
    """A tree, which has trees."""

    name: str
    children: list[Tree] = []


JSON_SCHEMA = {**Person.model_json_schema(), "title": "Person"}
OPENAI_FUNCTION = {"name": "Person", "description": "A person.", "parameters": Person.model_json_schema()}
SCHEMAS = [Person, PersonV1, PersonDict, JSON_SCHEMA, OPENAI_FUNCTION]


def answer(method: str, value: dict[str, Any], name: str = "Person") -> FakeReply:
    if method == "function_calling":
        return FakeReply(tool_calls=[ToolCall("1", name, value)])  # type: ignore[arg-type]
    text = json.dumps(value)
    return FakeReply([text[:9], text[9:20], text[20:]])


@pytest.mark.parametrize("schema", SCHEMAS, ids=["pydantic", "v1", "typeddict", "json_schema", "function"])
@pytest.mark.parametrize("method", METHODS)
async def test_every_method_and_schema(method: Any, schema: Any) -> None:
    name = schema.__name__ if isinstance(schema, type) else "Person"
    engine, chat = scripted(answer(method, ANNA, name))
    structured = chat.with_structured_output(schema, method=method)
    results = [
        structured.invoke("Anna is 31."),
        await structured.ainvoke("Anna is 31."),
        list(structured.stream("Anna is 31."))[-1],
        [chunk async for chunk in structured.astream("Anna is 31.")][-1],
    ]
    for result in results:
        if isinstance(schema, type) and issubclass(schema, (BaseModel, BaseModelV1)):
            assert isinstance(result, schema)
            assert (result.name, result.age) == ("Anna", 31)  # type: ignore[attr-defined]
        else:
            assert result == ANNA
    request = engine.requests[0]
    if method == "function_calling":
        assert [tool.name for tool in request.tools] == [name]
        assert request.tool_choice in ("required", request.tool_choice)
        assert request.response_format is None
        enforced = request.tools[0].parameters
    else:
        assert request.tools == ()
        assert request.response_format is not None
        assert request.response_format["type"] == "json_schema"
        enforced = request.response_format["json_schema"]["schema"]
    assert set(enforced["properties"]) == {"name", "age"}
    assert set(enforced["required"]) == {"name", "age"}


def test_json_mode_without_a_schema() -> None:
    engine, chat = scripted('{"a": 1}')
    assert chat.with_structured_output(method="json_mode").invoke("Hi") == {"a": 1}
    assert engine.requests[0].response_format == {"type": "json_object"}


def test_wrong_arguments() -> None:
    _, chat = scripted()
    with pytest.raises(ValueError, match="needs a schema"):
        chat.with_structured_output()
    with pytest.raises(ValueError, match="method must be one of"):
        chat.with_structured_output(Person, method="yaml")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strict", [None, True, False])
def test_strict_is_accepted(method: Any, strict: bool | None) -> None:
    _, chat = scripted(answer(method, ANNA))
    assert chat.with_structured_output(Person, method=method, strict=strict).invoke("Hi") == Person(
        name="Anna", age=31
    )


def test_a_schema_that_contains_itself() -> None:
    engine, chat = scripted('{"name": "a", "children": [{"name": "b", "children": []}]}')
    tree = chat.with_structured_output(Tree).invoke("Hi")
    assert tree == Tree(name="a", children=[Tree(name="b")])
    assert "$defs" in (engine.requests[0].response_format or {})["json_schema"]["schema"]


def test_dicts_grow_in_a_stream_and_objects_do_not() -> None:
    _, chat = scripted(answer("json_schema", ANNA))
    growing = list(chat.with_structured_output(JSON_SCHEMA).stream("Hi"))
    assert growing[-1] == ANNA
    assert len(growing) > 1
    assert list(chat.with_structured_output(Person).stream("Hi")) == [Person(name="Anna", age=31)]


@pytest.mark.parametrize("method", METHODS)
def test_raw(method: Any) -> None:
    _, chat = scripted(answer(method, ANNA))
    result = chat.with_structured_output(Person, method=method, include_raw=True).invoke("Hi")
    assert isinstance(result, dict)
    assert result["parsed"] == Person(name="Anna", age=31)
    assert result["parsing_error"] is None
    assert result["raw"].response_metadata["model_name"] == "fake"


@pytest.mark.parametrize("method", METHODS)
def test_raw_where_validation_fails(method: Any) -> None:
    """What no schema can say, such as a validator in Python, is found by the parser."""
    _, chat = scripted(answer(method, {"name": "Anna", "age": "old"}))
    result = chat.with_structured_output(Person, method=method, include_raw=True).invoke("Hi")
    assert isinstance(result, dict)
    assert result["parsed"] is None
    assert "age" in str(result["parsing_error"])
    with pytest.raises(ValueError, match="age"):
        chat.with_structured_output(Person, method=method).invoke("Hi")


@pytest.mark.parametrize("include_raw", [False, True])
@pytest.mark.parametrize("schema", [Person, JSON_SCHEMA], ids=["pydantic", "json_schema"])
@pytest.mark.parametrize("method", METHODS)
async def test_cut_json_is_never_accepted(method: Any, schema: Any, include_raw: bool) -> None:
    """At whatever token it is cut: LangChain's parsers alone would take most of these for whole."""
    value = {"age": 31, "name": "Anna Bella"}
    reply = answer(method, value)
    n_tokens = sum(len(piece.encode()) for piece in reply.pieces)
    if method == "function_calling":
        n_tokens -= len("}</tool_call>")  # behind the arguments; without it the call is whole, or is not
    _, chat = scripted(reply)

    def at(max_tokens: int) -> Any:
        limited = chat.model_copy(update={"max_tokens": max_tokens})
        return limited.with_structured_output(schema, method=method, include_raw=include_raw)

    for max_tokens in range(1, n_tokens, 5):
        cut = at(max_tokens)
        with pytest.raises(TruncatedOutputError):
            cut.invoke("Hi")
        with pytest.raises(TruncatedOutputError):
            list(cut.stream("Hi"))
    with pytest.raises(TruncatedOutputError) as caught:
        await at(20).ainvoke("Hi")
    assert isinstance(caught.value, OutputParserException)
    if method != "function_calling":
        assert caught.value.llm_output == json.dumps(value)[:20]


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_json_that_a_stop_string_cut(method: Any) -> None:
    _, chat = scripted('{"name": "Anna. Bella", "age": 31}', stop=["."])
    structured = chat.with_structured_output(JSON_SCHEMA, method=method)
    with pytest.raises(TruncatedOutputError):
        structured.invoke("Hi")
    with pytest.raises(TruncatedOutputError):
        list(structured.stream("Hi"))
    _, chat = scripted('{"name": "Anna", "age": 31}', stop=["."])
    assert chat.with_structured_output(JSON_SCHEMA, method=method).invoke("Hi") == ANNA


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_real_engine_closes_what_it_begins(method: Any, seed: int) -> None:
    """Hot and with few tokens: what comes is what the schema says, or TruncatedOutputError."""
    chat = ChatBitNet(temperature=3, seed=seed, max_tokens=60)
    person = chat.with_structured_output(Person, method=method).invoke("Anna is 31 years old.")
    assert isinstance(person, Person)
