"""Tools told to a model, and calls read out of its answers as they stream."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from vocabularies import Trained

from bitnet.errors import ValidationError
from bitnet.text.chat_template import ChatTemplate
from bitnet.text.tokenizer import Tokenizer
from bitnet.text.tool_call_parser import (
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallEnd,
    ToolCallEvent,
    ToolCallParser,
    ToolCallStart,
)
from bitnet.text.tool_calls import prompt_parts, template_has_tools
from bitnet.values import Message, NamedTool, Tool, ToolCall, as_messages, as_tool_choice, as_tools

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": True,
    },
}
NOW = {"type": "function", "function": {"name": "now"}}


def function(**changes: Any) -> dict[str, Any]:
    merged = {"name": "f", **changes}
    return {"type": "function", "function": {k: v for k, v in merged.items() if v is not ...}}


def test_definitions() -> None:
    weather, now = as_tools([WEATHER, NOW])
    assert weather.name == "get_weather"
    assert weather.description == "The weather at a place."
    assert weather.parameters == WEATHER["function"]["parameters"]  # type: ignore[index]
    assert now == Tool("now", "", {"type": "object", "properties": {}})
    assert as_tools([weather, now]) == (weather, now)
    assert as_tools([function(parameters={"properties": {}}, description=None)])[0].parameters == {
        "type": "object",
        "properties": {},
    }
    anything = {"type": "object", "additionalProperties": True}
    assert as_tools([function(parameters=anything)])[0].parameters == anything
    assert as_tools([]) == ()


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (WEATHER, "tools must be a list"),
        ("f", "tools must be a list"),
        ([{"name": "f"}], 'tools[0] must be {"type": "function"'),
        ([NOW, {"type": "retrieval", "function": {}}], 'tools[1] must be {"type": "function"'),
        ([{**NOW, "x": 1}], "tools[0] has an unknown key 'x'"),
        ([function(params={})], "tools[0].function has an unknown key 'params'"),
        ([function(name=...)], "must be 1 to 64 letters, digits, _ or -, not None"),
        ([function(name="a b")], "not 'a b'"),
        ([function(name="f\n")], "must be 1 to 64"),
        ([function(name="x" * 65)], "must be 1 to 64"),
        ([NOW, NOW], "two tools have the name 'now'"),
        ([function(description=1)], "the description of tool 'f' must be a string"),
        ([function(parameters=[])], "the parameters of tool 'f' must be a schema of type \"object\""),
        ([function(parameters={"type": "string"})], "the parameters of tool 'f'"),
        ([function(name=f"f{i}") for i in range(129)], "at most 128 tools, not 129"),
    ],
)
def test_wrong_definitions(tools: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)) as caught:
        as_tools(tools)
    assert caught.value.field == "tools"


def test_choices() -> None:
    tools = as_tools([WEATHER, NOW])
    assert as_tool_choice(None, tools) == "auto"
    assert [as_tool_choice(name, tools) for name in ("none", "auto", "required")] == [
        "none",
        "auto",
        "required",
    ]
    assert as_tool_choice({"type": "function", "function": {"name": "now"}}, tools) == NamedTool("now")
    assert as_tool_choice(NamedTool("now"), tools) == NamedTool("now")
    assert as_tool_choice("none", ()) == "none"
    assert as_tool_choice(None, ()) == "auto"


@pytest.mark.parametrize(
    ("choice", "n_tools", "message"),
    [
        ("any", 2, "tool_choice must be one of none, auto, required or"),
        (True, 2, "not True"),
        ({"type": "function"}, 2, "not {'type': 'function'}"),
        ({"type": "function", "function": {"name": "nwo"}}, 2, "the tool 'nwo'; known: get_weather, now"),
        ("required", 0, "there are no tools"),
        (NamedTool("now"), 0, "there are no tools"),
    ],
)
def test_wrong_choices(choice: Any, n_tools: int, message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)) as caught:
        as_tool_choice(choice, as_tools([WEATHER, NOW])[:n_tools])
    assert caught.value.field == "tool_choice"


PROMPT = (
    "# Tools\n<tools>\n"
    '{"type": "function", "function": {"name": "now", "description": "", '
    '"parameters": {"type": "object", "properties": {}}}}\n'
    '</tools>\nTo call a tool, reply <tool_call>{"name": ..., "arguments": {...}}</tool_call>'
)


HERMES = (
    "{% if tools %}{{ tools | tojson }} <tool_call>{\"name\": <name>, \"arguments\": <args>}</tool_call>"
    "{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
)  # fmt: skip


@pytest.fixture(scope="module")
def plain(llama3: Trained) -> ChatTemplate:
    """A template that knows nothing of tools."""
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return ChatTemplate(source, Tokenizer.from_metadata(llama3.metadata))


@pytest.fixture(scope="module")
def hermes(llama3: Trained) -> ChatTemplate:
    return ChatTemplate(HERMES, Tokenizer.from_metadata(llama3.metadata))


def test_generic_prompt(plain: ChatTemplate) -> None:
    tools = as_tools([NOW])
    user = {"role": "user", "content": "What time is it?"}
    brief = {"role": "system", "content": "Be brief."}

    def told(*messages: dict[str, Any], tools: tuple[Tool, ...] = tools) -> list[dict[str, Any]]:
        parts = prompt_parts(plain, as_messages(messages), tools)
        assert parts.tools is None
        return parts.messages

    assert told(user) == [{"role": "system", "content": PROMPT}, user]
    assert told(brief, user) == [{"role": "system", "content": f"{PROMPT}\n\nBe brief."}, user]
    assert told({"role": "system", "content": ""}, user)[0]["content"] == PROMPT
    assert told(user, tools=()) == [user]


def call(name: str, arguments: Any, call_id: str = "call_1") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_calls_of_earlier_turns(plain: ChatTemplate, hermes: ChatTemplate) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [call("now", ""), call("get_weather", '{"city": "Köln"}')],
        },
        {"role": "tool", "content": "12:00", "tool_call_id": "call_1"},
        {"role": "assistant", "content": None, "tool_calls": [call("now", {"a": 1})]},
    ]
    before = json.dumps(messages)
    rendered, tools = prompt_parts(plain, as_messages(messages), ())
    assert tools is None
    assert rendered == [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": 'Let me see.\n<tool_call>{"name": "now", "arguments": {}}</tool_call>\n'
            '<tool_call>{"name": "get_weather", "arguments": {"city": "Köln"}}</tool_call>',
        },
        {"role": "tool", "content": "12:00"},
        {"role": "assistant", "content": '<tool_call>{"name": "now", "arguments": {"a": 1}}</tool_call>'},
    ]
    native, tools = prompt_parts(hermes, as_messages(messages), as_tools([NOW]))
    assert tools == [as_tools([NOW])[0].to_dict()]
    assert native[1]["tool_calls"][1]["function"] == {"name": "get_weather", "arguments": {"city": "Köln"}}
    assert native[1]["content"] == "Let me see."
    assert native[2] == messages[2]
    assert prompt_parts(hermes, as_messages(messages), ()).tools is None
    assert json.dumps(messages) == before


def test_calls_are_values() -> None:
    made = ToolCall("call_1", "f", {"city": "Köln", "n": [1, None]})  # type: ignore[arg-type]
    assert made.arguments == '{"city": "Köln", "n": [1, null]}'
    assert made.parsed == {"city": "Köln", "n": [1, None]}
    assert ToolCall("", "now", "").parsed == {}
    message = Message("assistant", "Let me see.", (made,))
    assert as_messages([message.to_dict()]) == (message,)
    answer = Message("tool", "12:00", tool_call_id="call_1", name="now")
    assert as_messages([answer.to_dict()]) == (answer,)


@pytest.mark.parametrize("arguments", ["[1]", "{", 3, {"x": object()}, {"x": float("nan")}])
def test_wrong_arguments_in_messages(arguments: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        as_messages([{"role": "assistant", "content": "", "tool_calls": [call("now", arguments)]}])
    assert str(caught.value).startswith("messages[0]: ")
    assert caught.value.field == "messages"


@pytest.mark.parametrize("bad", [{}, "call", {"function": {"arguments": "{}"}}])
def test_wrong_calls_in_messages(bad: Any) -> None:
    with pytest.raises(ValidationError, match=r"messages\[0\]: tool_calls\[0\] must be"):
        as_messages([{"role": "assistant", "content": "", "tool_calls": [bad]}])


def test_which_templates_present_tools(llama3: Trained) -> None:
    tokenizer = Tokenizer.from_metadata(llama3.metadata)
    llama31 = '{% if tools %}{{ tools | tojson }} {"parameters": ...}{% endif %}{{ messages[0].content }}'
    silent = '{{ messages[0].content }} <tool_call> "arguments"'
    assert template_has_tools(ChatTemplate(HERMES, tokenizer))
    assert not template_has_tools(ChatTemplate(llama31, tokenizer))
    assert not template_has_tools(ChatTemplate(silent, tokenizer))
    assert not template_has_tools(ChatTemplate(None, tokenizer))


def parsed(text: str, cut: Any = None) -> list[ToolCallEvent]:
    """The events for `text`, fed character by character or in pieces of random length."""
    parser = ToolCallParser()
    events: list[ToolCallEvent] = []
    start = 0
    while start < len(text):
        length = 1 if cut is None else cut.randint(1, 12)
        events += parser.feed(text[start : start + length])
        start += length
    return events + parser.flush()


def summary(events: list[ToolCallEvent]) -> list[Any]:
    """Texts and arguments put together: strings, and [name, arguments, whether it ended]."""
    result: list[Any] = []
    for event in events:
        if isinstance(event, TextDelta):
            if result and isinstance(result[-1], str):
                result[-1] += event.text
            else:
                result.append(event.text)
        elif isinstance(event, ToolCallStart):
            assert re.fullmatch("call_[0-9a-f]{24}", event.id)
            result.append([event.name, "", False])
            assert event.index == sum(isinstance(item, list) for item in result) - 1
        elif isinstance(event, ToolCallArgumentsDelta):
            assert event.text
            result[-1][1] += event.text
        else:
            result[-1][2] = True
    return result


CALL = '<tool_call>\n{"name": "f", "arguments": {"a": [1, {"b": "}\\"</tool_call>"}]}}\n</tool_call>'
ARGUMENTS = '{"a": [1, {"b": "}\\"</tool_call>"}]}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n plain <b>text</b> < 3 <tool <tool_cal ", [" \n plain <b>text</b> < 3 <tool <tool_cal "]),
        (CALL, [["f", ARGUMENTS, True]]),
        (f"Sure.\n{CALL}", ["Sure.\n", ["f", ARGUMENTS, True]]),
        (f"{CALL}\n{CALL}\n", [["f", ARGUMENTS, True]] * 2),
        (f"{CALL} and <so on>\n", [["f", ARGUMENTS, True], " and <so on>\n"]),
        (f"{CALL} x{CALL} ", [["f", ARGUMENTS, True], " x", ["f", ARGUMENTS, True]]),
        (
            '<tool_call>{"name":"now","arguments":{}}</tool_call>',
            [["now", "{}", True]],
        ),
        # What is no call is text.
        ("<tool_call> is how it begins", ["<tool_call> is how it begins"]),
        ("<tool_call><tool_call>", ["<tool_call><tool_call>"]),
        ('<tool_call>{"nome": 1}</tool_call>', ['<tool_call>{"nome": 1}</tool_call>']),
        ('<tool_call>{"name": 1}</tool_call>', ['<tool_call>{"name": 1}</tool_call>']),
        ('<tool_call>{"name": "f", "arguments": 1}', ['<tool_call>{"name": "f", "arguments": 1}']),
        (f"<tool_call> no {CALL}", ["<tool_call> no ", ["f", ARGUMENTS, True]]),
        # Cut off: the head is text, arguments are a call without an end.
        ('a <tool_call>{"name": "f', ['a <tool_call>{"name": "f']),
        (CALL[:-17], [["f", ARGUMENTS[:-3], False]]),
        (CALL[:-2], [["f", ARGUMENTS, False]]),
    ],
)
def test_parser(text: str, expected: list[Any]) -> None:
    assert summary(parsed(text)) == expected
    for seed in range(10):
        assert summary(parsed(text, random.Random(seed))) == expected


def test_parser_streams() -> None:
    """The name first, then the arguments as they grow; of text, only what may become a call is held back."""
    parser = ToolCallParser()
    assert parser.feed("Hi <") == [TextDelta("Hi ")]
    assert parser.feed("b>") == [TextDelta("<b>")]
    assert parser.feed(' <tool_call>{"name": "f", "arguments": ') == [TextDelta(" ")]
    start, delta = parser.feed('{"a"')
    assert isinstance(start, ToolCallStart)
    assert (start.index, start.name, delta) == (0, "f", ToolCallArgumentsDelta(0, '{"a"'))
    assert parser.feed(": 1") == [ToolCallArgumentsDelta(0, ": 1")]
    assert parser.feed("}}") == [ToolCallArgumentsDelta(0, "}")]
    assert parser.feed("</tool_") == []
    assert parser.feed("call>\n") == [ToolCallEnd(0)]
    second = parser.feed('<tool_call>{"name": "g", "arguments": {}}</tool_call>')
    assert [type(event) for event in second] == [ToolCallStart, ToolCallArgumentsDelta, ToolCallEnd]
    assert isinstance(second[0], ToolCallStart)
    assert (second[0].index, second[0].name) == (1, "g")
    assert second[0].id != start.id
    assert parser.flush() == []
