"""Tools and conversations in every form LangChain has, as the engine gets them."""

from __future__ import annotations

from typing import Any, TypedDict

import bitnet
import pytest
from bitnet import Message, NamedTool, ToolCall
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from tests.fakes import scripted


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class GetWeather(BaseModel):
    """The weather of a city."""

    city: str = Field(description="Its name.")


class GetTime(TypedDict):
    """The time in a city."""

    city: str


def get_news(topic: str) -> str:
    """News.

    Args:
        topic: what about.
    """
    return topic


OPENAI = {"type": "function", "function": {"name": "ping", "description": "Ping.", "parameters": {}}}
ANTHROPIC = {
    "name": "pong",
    "description": "Pong.",
    "input_schema": {"type": "object", "properties": {"n": {"type": "integer"}}},
    "cache_control": {"type": "ephemeral"},
}
RESPONSES = {"type": "function", "name": "peng", "parameters": {"type": "object", "properties": {}}}


def test_every_form_of_a_tool() -> None:
    engine, chat = scripted("Hello")
    chat.bind_tools([add, GetWeather, GetTime, get_news, OPENAI, ANTHROPIC, RESPONSES]).invoke("Hi")
    tools = engine.requests[0].tools
    assert [t.name for t in tools] == ["add", "GetWeather", "GetTime", "get_news", "ping", "pong", "peng"]
    assert tools[0].description == "Add two numbers."
    assert set(tools[0].parameters["properties"]) == {"a", "b"}
    assert tools[1].parameters["properties"]["city"]["description"] == "Its name."
    assert tools[3].parameters["properties"]["topic"]["description"] == "what about."
    assert tools[5].parameters["properties"] == {"n": {"type": "integer"}}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, "auto"),
        (False, "auto"),
        ("auto", "auto"),
        ("none", "none"),
        ("any", "required"),
        ("required", "required"),
        (True, "required"),
        ("add", NamedTool("add")),
        ({"type": "function", "function": {"name": "add"}}, NamedTool("add")),
        ({"type": "function", "name": "add"}, NamedTool("add")),
        ({"type": "tool", "name": "add"}, NamedTool("add")),
        ({"type": "any"}, "required"),
        ({"type": "auto"}, "auto"),
    ],
)
def test_every_form_of_the_choice(choice: Any, expected: Any) -> None:
    engine, chat = scripted("Hello")
    chat.bind_tools([add, GetWeather], tool_choice=choice).invoke("Hi")
    assert engine.requests[0].tool_choice == expected


@pytest.mark.parametrize("choice", ["subtract", {"type": "function", "function": {"name": "subtract"}}, 3])
def test_a_choice_that_is_none(choice: Any) -> None:
    _, chat = scripted("Hello")
    with pytest.raises(ValueError, match=r"tool_choice .* add"):
        chat.bind_tools([add], tool_choice=choice)


def test_a_tool_of_a_provider() -> None:
    _, chat = scripted("Hello")
    with pytest.raises(ValueError, match="run by the provider"):
        chat.bind_tools([{"type": "web_search_preview"}])


@pytest.mark.parametrize("choice", [None, "auto", "any", "none"])
def test_no_tools_at_all(choice: str | None) -> None:
    engine, chat = scripted("Hello")
    assert chat.bind_tools([], tool_choice=choice).invoke("Hi").content == "Hello"
    assert (engine.requests[0].tools, engine.requests[0].tool_choice) == ((), "auto")


@pytest.mark.parametrize("strict", [None, True, False])
def test_strict_is_accepted(strict: bool | None) -> None:
    engine, chat = scripted("Hello")
    chat.bind_tools([add], strict=strict).invoke("Hi")
    assert engine.requests[0].tools[0].parameters["required"] == ["a", "b"]


def test_one_call_at_a_time_unless_asked_for() -> None:
    engine, chat = scripted("Hello")
    chat.bind_tools([add]).invoke("Hi")
    chat.bind_tools([add], parallel_tool_calls=True).invoke("Hi")
    chat.model_copy(update={"parallel_tool_calls": True}).bind_tools([add]).invoke("Hi")
    assert [request.parallel_tool_calls for request in engine.requests] == [False, True, True]


def test_tools_beside_a_response_format() -> None:
    engine, chat = scripted('{"city": "Paris"}')
    chat.bind_tools([add], response_format=GetWeather).invoke("Hi")
    chat.bind_tools([add], response_format={"type": "json_object"}).invoke("Hi")
    chat.bind_tools([add], response_format=GetWeather.model_json_schema()).invoke("Hi")
    formats = [request.response_format or {} for request in engine.requests]
    assert [form["type"] for form in formats] == ["json_schema", "json_object", "json_schema"]
    assert formats[0]["json_schema"]["schema"]["properties"].keys() == {"city"}
    assert formats[2]["json_schema"]["name"] == "GetWeather"


MESSAGES: list[tuple[BaseMessage, Message]] = [
    (SystemMessage("Be brief."), Message("system", "Be brief.")),
    (HumanMessage("Hi", name="anna"), Message("user", "Hi", name="anna")),
    (
        HumanMessage([{"type": "text", "text": "a"}, "b", {"type": "text", "text": "c"}]),
        Message("user", "abc"),
    ),
    (
        AIMessage("Well.", tool_calls=[{"id": "1", "name": "add", "args": {"a": 1, "b": 2}}]),
        Message("assistant", "Well.", (ToolCall("1", "add", {"a": 1, "b": 2}),)),  # type: ignore[arg-type]
    ),
    (
        AIMessage(
            [
                {"type": "thinking", "thinking": "hm"},
                {"type": "text", "text": "Well."},
                {"type": "tool_use", "id": "1", "name": "add", "input": {}},
            ],
            tool_calls=[{"id": "1", "name": "add", "args": {}}],
        ),
        Message("assistant", "Well.", (ToolCall("1", "add"),)),
    ),
    (
        AIMessage("", invalid_tool_calls=[{"id": "1", "name": "add", "args": "{", "error": "cut"}]),
        Message("assistant", "add({)"),
    ),
    (
        ToolMessage("3", tool_call_id="1", name="add", status="error"),
        Message("tool", "3", tool_call_id="1", name="add"),
    ),
    (FunctionMessage("3", name="add"), Message("tool", "3", name="add")),
    (ChatMessage("Hi", role="human"), Message("user", "Hi")),
    (ChatMessage("Hi", role="developer"), Message("system", "Hi")),
]


@pytest.mark.parametrize(("message", "expected"), MESSAGES)
def test_every_kind_of_message(message: BaseMessage, expected: Message) -> None:
    engine, chat = scripted("Hello")
    chat.invoke([HumanMessage("Hi"), message])
    assert engine.requests[0].messages == (Message("user", "Hi"), expected)


@pytest.mark.parametrize(
    "message",
    [
        HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]),
        HumanMessage([{"type": "text"}]),
        RemoveMessage(id="1"),
        ChatMessage("Hi", role="pirate"),
    ],
)
def test_what_a_text_model_cannot_read(message: BaseMessage) -> None:
    _, chat = scripted("Hello")
    with pytest.raises(ValueError, match=r"text only|cannot be told|role must be"):
        chat.invoke([message])


def test_counting_tokens() -> None:
    _, chat = scripted("Hello")
    assert chat.get_num_tokens("Hé") == 3
    assert chat.get_token_ids("Hi") == [72, 105]
    messages: list[BaseMessage] = [HumanMessage("Hi")]
    assert chat.get_num_tokens_from_messages(messages) == len("user: Hi\nassistant: ") + 1
    assert chat.get_num_tokens_from_messages(messages, [add]) == len("tools: add\nuser: Hi\nassistant: ") + 1


def test_counted_is_what_is_computed() -> None:
    from langchain_bitnet import ChatBitNet

    chat = ChatBitNet(temperature=0, max_tokens=1)
    messages = [SystemMessage("Be brief."), HumanMessage("Hello there")]
    usage = chat.bind_tools([add], tool_choice="auto").invoke(messages).usage_metadata
    assert usage is not None
    assert usage["input_tokens"] == chat.get_num_tokens_from_messages(messages, [add])
    with bitnet.BitNet() as model:
        assert chat.get_token_ids("Hello there") == model.tokenize("Hello there", add_special=False)
