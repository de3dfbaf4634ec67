"""What a chat model makes of bitnet's answers: metadata, usage, logprobs, reasoning, and what is refused."""

from __future__ import annotations

from typing import Any

import bitnet
import pytest
from bitnet import ToolCall
from bitnet.testing import FakeReply
from langchain_core.exceptions import ContextOverflowError as CoreContextOverflowError
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.tools import tool

from langchain_bitnet import ChatBitNet, ContextOverflowError, TruncatedOutputError
from tests.fakes import scripted

CALL = FakeReply("Let me see.", tool_calls=[ToolCall("x", "get_weather", {"city": "Paris"})])


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"It is sunny in {city}."


def test_invoke() -> None:
    _, chat = scripted("Hello!")
    message = chat.invoke("Hi")
    assert message.content == "Hello!"
    n_prompt = len("user: Hi\nassistant: ") + 1
    assert message.usage_metadata == {
        "input_tokens": n_prompt,
        "output_tokens": 6,
        "total_tokens": n_prompt + 6,
        "input_token_details": {"cache_read": 0},
    }
    metadata = dict(message.response_metadata)
    assert metadata.pop("timings")["decode"] >= 0
    assert metadata == {"model_name": "fake", "model_provider": "bitnet", "finish_reason": "stop"}


def test_a_stream_tells_everything_once() -> None:
    _, chat = scripted(FakeReply(["Hel", "lo", "!"]))
    chunks = list(chat.stream("Hi"))
    assert [chunk.content for chunk in chunks] == ["Hel", "lo", "!", ""]
    assert [bool(chunk.response_metadata) for chunk in chunks] == [False, False, False, True]
    assert [bool(chunk.usage_metadata) for chunk in chunks] == [False, False, False, True]
    whole: AIMessageChunk = sum(chunks[1:], chunks[0])
    assert whole.content == "Hello!"
    assert whole.response_metadata["model_name"] == "fake"
    assert whole.response_metadata["finish_reason"] == "stop"
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 6


def test_usage_in_streams_is_optional() -> None:
    _, chat = scripted("Hello!", stream_usage=False)
    assert not any(chunk.usage_metadata for chunk in chat.stream("Hi"))
    assert any(chunk.usage_metadata for chunk in chat.stream("Hi", stream_usage=True))


def test_cache_read_is_what_the_engine_reused() -> None:
    chat = ChatBitNet(temperature=0, max_tokens=2)
    prompt = "Tell me what a very long road to the sea looks like when nobody walks on it any more."
    chat.invoke(prompt)
    usage = chat.invoke(prompt).usage_metadata
    assert usage is not None
    assert usage["input_token_details"]["cache_read"] == usage["input_tokens"] - 1


def test_logprobs_whole_and_streamed() -> None:
    _, chat = scripted(FakeReply(["é", "!"], logprob=-0.5), top_logprobs=1)
    content = chat.invoke("Hi").response_metadata["logprobs"]["content"]
    assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9], [ord("!")]]
    assert content[2] == {
        "token": "!",
        "logprob": -0.5,
        "bytes": [33],
        "top_logprobs": [{"token": "!", "logprob": -0.5, "bytes": [33]}],
    }
    chunks = list(chat.stream("Hi"))
    whole: AIMessageChunk = sum(chunks[1:], chunks[0])
    assert whole.response_metadata["logprobs"]["content"] == content
    assert "logprobs" not in chat.invoke("Hi", logprobs=False).response_metadata


def test_several_answers_to_one_prompt() -> None:
    engine, chat = scripted(["one", "two", "three"], n=3)
    result = chat.generate([[HumanMessage("Hi")]])
    assert sorted(generation.text for generation in result.generations[0]) == ["one", "three", "two"]
    assert engine.requests[0].n == 3
    with_usage = [g.message.usage_metadata for g in result.generations[0] if g.message.usage_metadata]  # type: ignore[union-attr]
    assert [usage["output_tokens"] for usage in with_usage] == [11]
    with pytest.raises(ValueError, match="a stream has one answer"):
        list(chat.stream("Hi"))


def test_reasoning_is_told_apart() -> None:
    reply = FakeReply(["<thi", "nk> It is", " easy. </think", ">\n\nFour."])
    _, chat = scripted(reply, reasoning=True)
    message = chat.invoke("What is 2 + 2?")
    assert (message.content, message.additional_kwargs) == ("Four.", {"reasoning_content": "It is easy."})
    chunks = list(chat.stream("What is 2 + 2?"))
    whole: AIMessageChunk = sum(chunks[1:], chunks[0])
    assert (whole.content, whole.additional_kwargs) == ("Four.", {"reasoning_content": "It is easy."})
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]
    assert chat.invoke("2 + 2?", reasoning=False).content == "<think> It is easy. </think>\n\nFour."


def test_options_of_a_call_win() -> None:
    engine, chat = scripted("Hello", temperature=0.25, seed=1, stop=["X"], max_tokens=50, top_k=3)
    chat.invoke("Hi")
    chat.invoke("Hi", temperature=0.5, seed=2, stop=["Y"], max_tokens=9)
    chat.invoke("Hi", stop=[])
    chat.bind(seed=3).invoke("Hi")
    seen = [(r.sampling.temperature, r.sampling.seed, r.stop, r.max_tokens) for r in engine.requests]
    assert seen == [
        (0.25, 1, ("X",), 50),
        (0.5, 2, ("Y",), 9),
        (0.25, 1, (), 50),
        (0.25, 3, ("X",), 50),
    ]
    assert {r.sampling.top_k for r in engine.requests} == {3}


def test_an_option_nobody_knows_is_refused() -> None:
    _, chat = scripted("Hello")
    with pytest.raises(bitnet.ValidationError, match="temprature"):
        chat.invoke("Hi", temprature=0)
    with pytest.raises(ValueError, match="temprature"):
        ChatBitNet(temprature=0)  # type: ignore[call-arg]


def test_another_model_for_one_call(other_model: str) -> None:
    engine, chat = scripted("Hello", max_tokens=4)
    message = chat.invoke("Hi", model=other_model)
    assert message.response_metadata["model_name"] == other_model
    assert engine.requests == []
    assert chat.invoke("Hi").response_metadata["model_name"] == "fake"


def test_a_prompt_that_does_not_fit() -> None:
    _, chat = scripted("Hello", engine={"n_ctx": 32})
    prompt = "x" * 50
    with pytest.raises(ContextOverflowError) as caught:
        chat.invoke(prompt)
    assert isinstance(caught.value, CoreContextOverflowError)
    assert isinstance(caught.value, bitnet.ContextOverflowError)
    assert (caught.value.n_prompt_tokens, caught.value.n_ctx) == (69, 32)
    with pytest.raises(CoreContextOverflowError):
        list(chat.stream(prompt))


async def test_a_prompt_that_does_not_fit_in_an_event_loop() -> None:
    _, chat = scripted("Hello", engine={"n_ctx": 32})
    with pytest.raises(ContextOverflowError):
        await chat.ainvoke("x" * 50)
    with pytest.raises(ContextOverflowError):
        [chunk async for chunk in chat.astream("x" * 50)]


async def test_a_call_that_was_cut_is_an_error() -> None:
    _, chat = scripted(CALL)
    with_tools = chat.bind_tools([get_weather], tool_choice="get_weather")
    assert with_tools.invoke("Weather?").tool_calls[0]["args"] == {"city": "Paris"}
    for max_tokens in (5, 40, 60, 70):  # before the call, in its head, in its arguments
        options: dict[str, Any] = {"max_tokens": max_tokens}
        with pytest.raises(TruncatedOutputError, match="a tool call was cut off"):
            with_tools.invoke("Weather?", **options)
        with pytest.raises(TruncatedOutputError):
            list(with_tools.stream("Weather?", **options))
        with pytest.raises(TruncatedOutputError):
            await with_tools.ainvoke("Weather?", **options)
        with pytest.raises(TruncatedOutputError):
            [chunk async for chunk in with_tools.astream("Weather?", **options)]


def test_where_the_model_decides_text_may_be_cut_and_calls_may_not() -> None:
    _, chat = scripted(CALL)
    with_tools = chat.bind_tools([get_weather])
    assert with_tools.invoke("Weather?", max_tokens=5).content == "Let m"
    for max_tokens in (60, 70):
        with pytest.raises(TruncatedOutputError):
            with_tools.invoke("Weather?", max_tokens=max_tokens)


def test_tool_calls_stream_name_and_id_first() -> None:
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Pa'
    _, chat = scripted(FakeReply(["Well. ", call, "ris", '"}}</tool_call>']))
    chunks = list(chat.bind_tools([get_weather]).stream("Weather?"))
    pieces = [piece for chunk in chunks for piece in chunk.tool_call_chunks]
    assert [piece["name"] for piece in pieces] == ["get_weather", None, None]
    assert {piece["index"] for piece in pieces} == {0}
    assert "".join(piece["args"] or "" for piece in pieces) == '{"city": "Paris"}'
    whole: AIMessageChunk = sum(chunks[1:], chunks[0])
    assert [(c["name"], c["args"]) for c in whole.tool_calls] == [("get_weather", {"city": "Paris"})]
    assert whole.tool_calls[0]["id"] == pieces[0]["id"]
    assert whole.content == "Well. "


def test_callbacks_hear_every_token_once() -> None:
    from langchain_core.callbacks import BaseCallbackHandler

    class Listener(BaseCallbackHandler):
        def __init__(self) -> None:
            self.tokens: list[Any] = []

        def on_llm_new_token(self, token: Any, **_: Any) -> None:
            self.tokens.append(token)

    for fields in ({}, {"streaming": True}):
        _, chat = scripted(FakeReply(["Hel", "lo"]), **fields)
        streamed, invoked = Listener(), Listener()
        n_chunks = len(list(chat.stream("Hi", config={"callbacks": [streamed]})))
        chat.invoke("Hi", config={"callbacks": [invoked]})
        assert len(streamed.tokens) == n_chunks == 3
        assert [t for t in invoked.tokens if t] == (["Hel", "lo"] if fields else [])
