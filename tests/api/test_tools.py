"""Tool calls through the engine: always whole and valid, streamed name first, and part of a conversation."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from bitnet import BitNet, ConstraintError, Generation, Message, NamedTool, Tool, ToolCall, ValidationError
from bitnet.testing import FakeEngine, FakeReply

PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city"],
}
SUM = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}
TOOLS = [
    Tool("get_weather", "Get the weather of a city.", PLACE),
    Tool("add", "Add two numbers.", SUM),
    Tool("now", "Get the time."),
]
SCHEMAS: dict[str, Any] = {tool.name: tool.parameters for tool in TOOLS}
QUESTION = [{"role": "user", "content": "What is the weather in Oslo?"}]
WILD: dict[str, Any] = {"temperature": 3, "top_k": 0, "top_p": 1, "max_tokens": 150}


def assert_valid(calls: tuple[ToolCall, ...]) -> None:
    assert len({call.id for call in calls}) == len(calls)
    for call in calls:
        jsonschema.validate(call.parsed, SCHEMAS[call.name])


@pytest.mark.parametrize("seed", range(4))
def test_required_calls_are_valid_at_any_temperature(model: BitNet, seed: int) -> None:
    reply = model.chat(QUESTION, tools=TOOLS, tool_choice="required", seed=seed, **WILD)
    assert reply.finish_reason == "tool_calls"
    assert reply.tool_calls
    assert reply.text == ""
    assert_valid(reply.tool_calls)


@pytest.mark.parametrize("seed", range(4))
def test_a_named_tool_is_called_once(model: BitNet, seed: int) -> None:
    choice = NamedTool("add") if seed % 2 else {"type": "function", "function": {"name": "add"}}
    reply = model.chat(
        QUESTION, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, seed=seed, **WILD
    )
    assert [call.name for call in reply.tool_calls] == ["add"]
    assert reply.finish_reason == "tool_calls"
    assert_valid(reply.tool_calls)


@pytest.mark.parametrize("seed", range(4))
def test_auto_is_text_or_calls(model: BitNet, seed: int) -> None:
    reply = model.chat(QUESTION, tools=TOOLS, seed=seed, **WILD)
    assert (reply.finish_reason == "tool_calls") == bool(reply.tool_calls)
    assert reply.tool_calls or reply.text
    assert "<tool_call>" not in reply.text
    assert_valid(reply.tool_calls)


@pytest.mark.parametrize("seed", range(4))
def test_calls_or_an_answer_of_a_form(model: BitNet, seed: int) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "schema": schema}
    reply = model.chat(QUESTION, tools=TOOLS, response_format=form, seed=seed, **WILD)
    if reply.tool_calls:
        assert reply.text == ""
        assert_valid(reply.tool_calls)
        with pytest.raises(ValidationError, match="it asks for calls"):
            _ = reply.parsed
    else:
        jsonschema.validate(reply.parsed, schema)


def test_none_does_not_even_tell_of_them(model: BitNet) -> None:
    plain = model.chat(QUESTION, temperature=0)
    reply = model.chat(QUESTION, tools=TOOLS, tool_choice="none", temperature=0)
    assert (reply.text, reply.tool_calls) == (plain.text, ())
    assert reply.usage.prompt_tokens == plain.usage.prompt_tokens
    told = model.render(QUESTION, tools=TOOLS)
    assert "get_weather" in told
    assert "get_weather" not in model.render(QUESTION, tools=TOOLS, tool_choice="none")
    assert model.count_tokens(QUESTION, tools=TOOLS) > plain.usage.prompt_tokens


def streamed_calls(generation: Generation) -> list[list[str]]:
    """[id, name, arguments] of each call, put together from its pieces."""
    calls: list[list[str]] = []
    for delta in generation:
        for piece in delta.tool_calls:
            if piece.index == len(calls):
                assert piece.id
                assert piece.name
                calls.append([piece.id, piece.name, ""])
            else:
                assert (piece.id, piece.name) == (None, None)
            calls[piece.index][2] += piece.arguments
    return calls


def test_the_stream_is_the_same_calls(model: BitNet) -> None:
    generation = model.stream_chat(QUESTION, tools=TOOLS, tool_choice="required", seed=1, **WILD)
    calls = streamed_calls(generation)
    assert calls == [[call.id, call.name, call.arguments] for call in generation.result().tool_calls]
    assert calls


def test_a_call_is_streamed_while_it_is_written(model: BitNet) -> None:
    generation = model.stream_chat(
        QUESTION, tools=TOOLS[:1], tool_choice="required", parallel_tool_calls=False, temperature=0
    )
    pieces = [piece for delta in generation for piece in delta.tool_calls]
    assert pieces[0].name == "get_weather"
    assert len(pieces) > 3


def test_a_stop_string_in_an_argument_stops_nothing(model: BitNet) -> None:
    options: dict[str, Any] = {"tools": TOOLS[:1], "tool_choice": "required", "temperature": 0}
    reply = model.chat(QUESTION, **options)
    assert model.chat(QUESTION, stop=['"', "city", "}"], **options).tool_calls[0].parsed == (
        reply.tool_calls[0].parsed
    )


def test_a_call_that_was_cut_is_no_call(model: BitNet) -> None:
    reply = model.chat(QUESTION, tools=TOOLS, tool_choice="required", max_tokens=6)
    assert (reply.finish_reason, reply.tool_calls) == ("length", ())


def test_it_closes_before_the_tokens_run_out(model: BitNet) -> None:
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": ""}}</tool_call>'
    needed = len(model.tokenize(text, add_special=False, parse_special=True))
    for max_tokens in range(needed + 4, needed + 9):
        reply = model.chat(
            QUESTION,
            tools=TOOLS[:1],
            tool_choice="required",
            seed=max_tokens,
            **{**WILD, "max_tokens": max_tokens},
        )
        assert reply.finish_reason == "tool_calls"
        assert_valid(reply.tool_calls)


def test_calls_and_results_are_turns_of_the_conversation(model: BitNet) -> None:
    first = model.chat(
        QUESTION, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, temperature=0
    )
    (call,) = first.tool_calls
    result = {"role": "tool", "content": "sunny, 12 degrees", "tool_call_id": call.id}
    messages = [*QUESTION, first.message, result]
    told = model.render(messages, tools=TOOLS)
    assert f'"name": "{call.name}"' in told
    assert "sunny, 12 degrees" in told
    # The prompt of the first turn is the beginning of the second one's.
    second = model.chat(messages, tools=TOOLS, tool_choice="none", temperature=0)
    assert second.text
    assert first.message == Message("assistant", "", (call,))


def test_log_probabilities_of_a_forced_call(model: BitNet) -> None:
    reply = model.chat(
        QUESTION, tools=TOOLS, tool_choice="required", temperature=0, logprobs=True, top_logprobs=2
    )
    assert reply.logprobs is not None
    assert len(reply.logprobs) == len(reply.token_ids)
    text = b"".join(entry.token_bytes for entry in reply.logprobs).decode()
    assert json.loads(text.removeprefix("<tool_call>").split("</tool_call>")[0])["name"] in SCHEMAS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": TOOLS, "tool_choice": "some"}, "tool_choice must be one of none, auto, required"),
        ({"tools": TOOLS, "tool_choice": NamedTool("subtract")}, "the tool 'subtract'; known: get_weather"),
        ({"tools": [], "tool_choice": "required"}, "there are no tools"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "two tools have the name 'get_weather'"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            r"tools\[0\]: a tool's name must be",
        ),
        ({"tools": TOOLS, "ignore_eos": True}, "tools say where the answer ends"),
        ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls must be True or False"),
    ],
)
def test_what_is_wrong_is_refused(model: BitNet, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model.chat(QUESTION, **options)


def test_tools_need_messages(model: BitNet) -> None:
    with pytest.raises(ValidationError, match="tools are for messages"):
        model.generate("Hi", tools=TOOLS)
    with pytest.raises(ValidationError, match="template_args are for messages"):
        model.generate("Hi", template_args={"thinking": True})


def test_parameters_that_cannot_be_enforced_name_the_tool(model: BitNet) -> None:
    tool = Tool("f", "", {"type": "object", "properties": {"x": {"not": {}}}})
    with pytest.raises(ConstraintError, match=r"tool 'f': .*unsupported keyword 'not'"):
        model.chat(QUESTION, tools=[tool])


def test_the_fake_engine_calls_too() -> None:
    scripted = FakeReply(
        "Let me see. ",
        tool_calls=[ToolCall("", "add", {"a": 1, "b": 2}), ToolCall("", "now")],  # type: ignore[arg-type]
    )
    with BitNet.from_engine(FakeEngine(scripted)) as model:
        generation = model.stream_chat(QUESTION, tools=TOOLS)
        calls = streamed_calls(generation)
        reply = generation.result()
    assert [call[1:] for call in calls] == [["add", '{"a": 1, "b": 2}'], ["now", "{}"]]
    assert (reply.text, reply.finish_reason) == ("Let me see. ", "tool_calls")
    assert [(call.name, call.parsed) for call in reply.tool_calls] == [("add", {"a": 1, "b": 2}), ("now", {})]
