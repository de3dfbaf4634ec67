"""Chat completions, through the official client, on the bundled model and on scripted answers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any, Literal

import openai
import pydantic
import pytest
from hosting import ANSWER, QUESTION, Hosted

from bitnet import BitNet, ToolCall
from bitnet.testing import FakeReply

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def official(server: Hosted) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_whole(client: openai.OpenAI, model: BitNet) -> None:
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0)
    expected = model.chat(QUESTION, temperature=0)
    assert answer.choices[0].message.content == expected.text == ANSWER
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == expected.usage.completion_tokens
    assert answer.usage.total_tokens == expected.usage.total_tokens


def test_streamed(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert [c.choices[0].finish_reason for c in chunks if c.choices if c.choices[0].finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 5


def test_streamed_without_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=2, stream=True)
    chunks = list(stream)
    assert all(chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_prompts_are_computed_once(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Tell me a story about a brave fox and a lazy dog. " * 3}]
    client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    again = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert cached >= 32


def test_max_completion_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, max_completion_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_same_seed_same_answer(client: openai.OpenAI, model: BitNet) -> None:
    how: dict[str, Any] = {"temperature": 1.5, "seed": 11, "max_tokens": 20}
    first = client.chat.completions.create(model="tiny", messages=QUESTION, **how)
    assert first.choices[0].message.content == model.chat(QUESTION, **how).text


def test_stop(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0, stop=[" is"])
    assert answer.choices[0].message.content == "The capital of France"
    assert answer.choices[0].finish_reason == "stop"


def test_several_answers(client: openai.OpenAI, model: BitNet) -> None:
    how: dict[str, Any] = {"temperature": 1.5, "seed": 5, "max_tokens": 12, "n": 3}
    whole = client.chat.completions.create(model="tiny", messages=QUESTION, **how)
    expected = [sample.text for sample in model.chat(QUESTION, **how).samples]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert [choice.message.content for choice in whole.choices] == expected
    streamed = ["", "", ""]
    reasons = {}
    for chunk in client.chat.completions.create(model="tiny", messages=QUESTION, stream=True, **how):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert streamed == expected
    assert set(reasons) == {0, 1, 2}


def test_logprobs(client: openai.OpenAI, model: BitNet) -> None:
    how: dict[str, Any] = {"temperature": 0, "logprobs": True, "top_logprobs": 3, "max_tokens": 6}
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, **how)
    expected = model.chat(QUESTION, **how).logprobs
    logprobs = answer.choices[0].logprobs
    assert expected is not None
    assert logprobs is not None
    assert logprobs.content is not None
    assert [entry.logprob for entry in logprobs.content] == [entry.logprob for entry in expected]
    assert all(math.isfinite(entry.logprob) and entry.logprob <= 0 for entry in logprobs.content)
    assert [len(entry.top_logprobs) for entry in logprobs.content] == [3] * len(expected)
    # Greedy: each token is its place's likeliest.
    assert [entry.top_logprobs[0].token for entry in logprobs.content] == [e.token for e in logprobs.content]
    text = b"".join(bytes(entry.bytes or ()) for entry in logprobs.content).decode()
    assert text.strip() == (answer.choices[0].message.content or "").strip()
    streamed = []
    for chunk in client.chat.completions.create(model="tiny", messages=QUESTION, stream=True, **how):
        if chunk.choices and chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content or []
    assert [(e.token, e.logprob) for e in streamed] == [(e.token, e.logprob) for e in logprobs.content]


def test_logit_bias(client: openai.OpenAI, model: BitNet) -> None:
    (token_id,) = model.tokenize("Paris", add_special=False)[:1]
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, temperature=0, logit_bias={str(token_id): -100}
    )
    assert "Paris" not in (answer.choices[0].message.content or "")


def test_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "size": {"type": "integer", "maximum": 9}},
        "required": ["city", "size"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "place", "schema": schema, "strict": True},
        },
    )
    value = json.loads(answer.choices[0].message.content or "")
    assert value["city"] in ("Paris", "Rome")
    assert value["size"] <= 9


class Place(pydantic.BaseModel):
    city: Literal["Paris", "Rome"]
    small: bool


def test_parse(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="tiny", messages=QUESTION, response_format=Place)
    assert isinstance(answer.choices[0].message.parsed, Place)


def test_parse_streamed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=QUESTION, response_format=Place) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Place)


def test_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, response_format={"type": "json_object"}, max_tokens=60
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_a_tool_must_be_called(client: openai.OpenAI) -> None:
    question: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    how: dict[str, Any] = {"tools": [WEATHER], "tool_choice": choice, "seed": 3, "parallel_tool_calls": False}
    answer = client.chat.completions.create(model="tiny", messages=question, **how)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    assert answer.choices[0].message.tool_calls is not None
    (call,) = answer.choices[0].message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    # And back, as a client's next turn sends it.
    turn: Any = answer.choices[0].message.model_dump()
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "It is raining."}
    reply = client.chat.completions.create(
        model="tiny", messages=[*question, turn, result], tools=[WEATHER], max_tokens=10
    )
    assert reply.choices[0].message.content is not None
    # Streamed: the same call in pieces.
    with client.chat.completions.stream(model="tiny", messages=question, **how) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.tool_calls is not None
    (streamed,) = final.choices[0].message.tool_calls
    assert streamed.function.name == "get_weather"
    assert streamed.function.arguments == call.function.arguments


def test_pieces_of_several_calls(serve: Callable[..., Hosted]) -> None:
    calls = (ToolCall("a", "f", {"x": 1}), ToolCall("b", "g", {"y": "ü\u2028"}))
    tools: Any = [
        {"type": "function", "function": {"name": "f"}},
        {"type": "function", "function": {"name": "g"}},
    ]
    running = serve(lambda request: FakeReply("Let me see. ", tool_calls=calls))
    with official(running) as client:
        chunks = list(client.chat.completions.create(model="m", messages=QUESTION, tools=tools, stream=True))
        whole = client.chat.completions.create(model="m", messages=QUESTION, tools=tools)
    pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    for index, call in enumerate(calls):
        own = [piece for piece in pieces if piece.index == index]
        assert [piece.function.name for piece in own if piece.function and piece.function.name] == [call.name]
        assert [piece.id is not None for piece in own] == [True] + [False] * (len(own) - 1)
        text = "".join(piece.function.arguments or "" for piece in own if piece.function)
        assert json.loads(text) == call.parsed
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Let me see. "
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    message = whole.choices[0].message
    assert message.content == "Let me see. "
    assert message.tool_calls is not None
    assert [call.id for call in message.tool_calls if call.type == "function"] != []
    assert [
        json.loads(call.function.arguments) for call in message.tool_calls if call.type == "function"
    ] == [call.parsed for call in calls]


def test_what_clients_send_reaches_the_engine(serve: Callable[..., Hosted]) -> None:
    from bitnet.testing import FakeEngine

    engine = FakeEngine(lambda request: "ok")
    with official(serve(engine)) as client:
        client.chat.completions.create(
            model="m",
            messages=[
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c", "refusal": None},
                {"role": "user", "content": "d", "name": "Ann"},
            ],
            temperature=0.5,
            top_p=0.25,
            presence_penalty=1,
            frequency_penalty=-1,
            seed=-3,
            stop="x",
            user="somebody",
            store=True,
            metadata={"a": "b"},
            service_tier="auto",
            extra_body={"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "cache_salt": "s"},
        )
    (request,) = engine.requests
    assert request.messages is not None
    assert [(message.role, message.content) for message in request.messages] == [
        ("system", "Be brief."),
        ("user", "ab"),
        ("assistant", "c"),
        ("user", "d"),
    ]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.25, 3, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert (sampling.repetition_penalty, sampling.seed) == (1.1, 2**64 - 3)
    assert request.stop == ("x",)
    assert request.cache_salt == ":s"


def test_text_survives(serve: Callable[..., Hosted]) -> None:
    pieces = ["a\u2028b\u2029c\x85d", '\x00\x1f"\\/', "ü漢🦊", "\r\n\t", "data: x\n\n"]
    with official(serve(lambda request: FakeReply(pieces))) as client:
        chunks = client.chat.completions.create(model="m", messages=QUESTION, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "".join(pieces)
        whole = client.chat.completions.create(model="m", messages=QUESTION)
        assert whole.choices[0].message.content == "".join(pieces)


def test_async(server: Hosted, model: BitNet) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:

            async def one(seed: int) -> str:
                stream = await client.chat.completions.create(
                    model="tiny", messages=QUESTION, seed=seed, temperature=1, max_tokens=16, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(one, range(8)))

    expected = [model.chat(QUESTION, seed=seed, temperature=1, max_tokens=16).text for seed in range(8)]
    assert asyncio.run(ask()) == expected


def test_models(client: openai.OpenAI, model: BitNet) -> None:
    client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=1)
    assert [model.id for model in client.models.list()] == ["tiny"]
    found = client.models.retrieve("tiny")
    assert found.id == "tiny"
    assert found.model_dump()["max_model_len"] == model.info.n_ctx
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4' here; known: tiny"):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=QUESTION)
    assert caught.value.code == "model_not_found"


def test_without_the_prefix(server: Hosted) -> None:
    """As Orbit's api mode asks: base_url without /v1."""
    with openai.OpenAI(base_url=server.url, api_key="not-needed") as client:
        answer = client.chat.completions.create(
            model="tiny", messages=QUESTION, temperature=0, top_p=0.9, max_tokens=1024
        )
        assert answer.choices[0].message.content == ANSWER
        assert [model.id for model in client.models.list()] == ["tiny"]
