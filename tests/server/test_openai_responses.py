"""The responses API, through the official client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import openai
import pydantic
import pytest
from hosting import ANSWER, Hosted

from bitnet import BitNet, ToolCall
from bitnet.testing import FakeEngine, FakeReply

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
TEXT = "What is the capital of France?"


def official(server: Hosted) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_text(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="tiny", input=TEXT, temperature=0)
    assert answer.output_text == ANSWER
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.input_tokens > 10
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.temperature == 0


def test_instructions_and_a_conversation(client: openai.OpenAI, model: BitNet) -> None:
    answer = client.responses.create(
        model="tiny",
        instructions="Answer in one sentence.",
        input=[
            {"role": "user", "content": "What is the opposite of hot?"},
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_1",
                "status": "completed",
                "content": [
                    {"type": "output_text", "text": "The opposite of hot is cold.", "annotations": []}
                ],
            },
            {"role": "user", "content": [{"type": "input_text", "text": TEXT}]},
        ],
        temperature=0,
    )
    expected = model.chat(
        [
            {"role": "system", "content": "Answer in one sentence."},
            {"role": "user", "content": "What is the opposite of hot?"},
            {"role": "assistant", "content": "The opposite of hot is cold."},
            {"role": "user", "content": TEXT},
        ],
        temperature=0,
    )
    assert answer.output_text == expected.text


def test_streamed(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="tiny", input=TEXT, temperature=0, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == ANSWER
    assert events[-1].response.usage is not None
    with client.responses.stream(model="tiny", input=TEXT, temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == ANSWER


def test_cut(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="tiny", input=TEXT, max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(model="tiny", input=TEXT, max_output_tokens=2, stream=True))
    assert events[-1].type == "response.incomplete"


class Place(pydantic.BaseModel):
    city: Literal["Paris", "Rome"]


def test_parse(client: openai.OpenAI) -> None:
    answer = client.responses.parse(model="tiny", input=TEXT, text_format=Place)
    assert isinstance(answer.output_parsed, Place)


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="tiny", input=TEXT, temperature=0, include=["message.output_text.logprobs"], top_logprobs=2
    )
    (item,) = answer.output
    assert item.type == "message"
    (part,) = item.content
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert answer.usage is not None
    assert len(part.logprobs) == answer.usage.output_tokens
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)


def test_tool(client: openai.OpenAI) -> None:
    how: dict[str, Any] = {
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "name": "get_weather"},
        "parallel_tool_calls": False,
        "extra_body": {"seed": 3},
    }
    question: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
    answer = client.responses.create(model="tiny", input=question, **how)
    (call,) = answer.output
    assert call.type == "function_call"
    assert call.name == "get_weather"
    assert set(json.loads(call.arguments)) == {"city"}
    # The next turn, with the output as the client has it.
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "It is raining."}
    turn: Any = [*question, *[item.model_dump() for item in answer.output], result]
    reply = client.responses.create(model="tiny", input=turn, tools=[WEATHER], max_output_tokens=10)
    assert reply.output
    with client.responses.stream(model="tiny", input=question, **how) as stream:
        deltas = [e.delta for e in stream if e.type == "response.function_call_arguments.delta"]
        (streamed,) = stream.get_final_response().output
    assert streamed.type == "function_call"
    assert streamed.arguments == call.arguments == "".join(deltas)


def test_text_and_calls(serve: Callable[..., Hosted]) -> None:
    calls = (ToolCall("a", "f", {"x": 1}), ToolCall("b", "f", {"x": 2}))
    tools: Any = [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": None}]
    engine = FakeEngine(lambda request: FakeReply("Let me see. ", tool_calls=calls))
    with official(serve(engine)) as client:
        whole = client.responses.create(model="m", input=TEXT, tools=tools)
        with client.responses.stream(model="m", input=TEXT, tools=tools) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_response()
        turns: Any = [
            {"role": "user", "content": TEXT},
            *[item.model_dump() for item in whole.output],
            {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "3"}]},
        ]
        client.responses.create(model="m", input=turns, tools=tools)
    for response in (whole, streamed):
        assert [item.type for item in response.output] == ["message", "function_call", "function_call"]
        assert response.output_text == "Let me see. "
        arguments = [json.loads(i.arguments) for i in response.output if i.type == "function_call"]
        assert arguments == [{"x": 1}, {"x": 2}]
    assert kinds.count("response.output_item.done") == 3
    assert kinds.count("response.function_call_arguments.done") == 2
    sent = engine.requests[-1].messages
    assert sent is not None
    assert [message.role for message in sent] == ["user", "assistant", "tool"]
    assert [call.parsed for call in sent[1].tool_calls] == [{"x": 1}, {"x": 2}]
    assert sent[2].content == "3"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("background", True),
        ("truncation", "auto"),
        ("reasoning", {"effort": "high"}),
        ("max_output_tokens", 0),
        ("top_logprobs", 2),
        ("tools", [{"type": "web_search"}]),
        ("input", []),
        ("input", [{"type": "reasoning", "id": "r", "summary": []}]),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
        ("text", {"format": {"type": "json_schema", "name": "x"}}),
        ("conversation", "conv_1"),
        ("include", ["file_search_call.results"]),
    ],
)
def test_refused(server: Hosted, option: str, value: Any) -> None:
    with server.client() as http:
        answer = http.post("/v1/responses", json={"model": "tiny", "input": "Hi", option: value})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] in (option, None)


def test_an_error_in_the_middle(serve: Callable[..., Hosted]) -> None:
    with official(serve(lambda request: FakeReply("Hello ", error=RuntimeError("/secret/path")))) as client:
        events = list(client.responses.create(model="m", input=TEXT, stream=True))
    assert events[-2].type == "error"
    assert "internal error" in events[-2].message
    assert "secret" not in events[-2].message
    assert events[-1].type == "response.failed"
    assert events[-1].response.status == "failed"
