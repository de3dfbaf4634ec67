"""Who stops listening stops the computation, within one step of the engine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from bitnet import BitNet
from bitnet.testing import FakeReply
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from langchain_bitnet import BitNetLLM, ChatBitNet
from tests.fakes import scripted, settles

SLOW = FakeReply(["word "] * 200, delay=0.02)  # four seconds
Watched = tuple[BitNet, ChatBitNet]


@pytest.fixture
def watched() -> Iterator[Watched]:
    """The bundled model, which would go on for a thousand tokens, and a look at what its engine does.

    A step computes one token here: with guesses it may be eleven, in a story that repeats itself."""
    with BitNet(speculate=False) as model:
        model.chat([{"role": "user", "content": "Hi"}], max_tokens=1)  # loaded, and used once
        yield model, ChatBitNet(client=model, temperature=1, seed=1, max_tokens=900)


def tokens_after(model: BitNet) -> int:
    """How many tokens are computed from now on, if nothing is to be computed any more."""
    before = model._engine.health().n_tokens
    until = time.monotonic() + 5
    while model._engine.health().running and time.monotonic() < until:
        time.sleep(0.001)
    assert model._engine.health().running == 0
    return model._engine.health().n_tokens - before


def endless(chat: ChatBitNet) -> Any:
    return chat.bind(ignore_eos=True)


def raise_for(_: Any) -> None:
    raise ZeroDivisionError


def test_leaving_a_stream(watched: Watched) -> None:
    model, chat = watched
    for n, _ in enumerate(endless(chat).stream("Tell me a story.")):
        if n == 3:
            break
    assert tokens_after(model) <= 3


def test_closing_a_stream(watched: Watched) -> None:
    model, chat = watched
    stream = endless(chat).stream("Tell me a story.")
    next(stream)
    stream.close()
    assert tokens_after(model) <= 3


def test_an_error_of_whoever_listens(watched: Watched) -> None:
    model, chat = watched
    with pytest.raises(ZeroDivisionError):
        list(map(raise_for, endless(chat).stream("Tell me a story.")))
    assert tokens_after(model) <= 3


async def test_leaving_an_async_stream(watched: Watched) -> None:
    model, chat = watched
    stream = endless(chat).astream("Tell me a story.")
    async with contextlib.aclosing(stream):
        async for _ in stream:
            break
    assert await asyncio.to_thread(tokens_after, model) <= 3


async def test_leaving_an_async_stream_that_nobody_closes(watched: Watched) -> None:
    model, chat = watched
    async for _ in endless(chat).astream("Tell me a story."):
        break
    await asyncio.sleep(0.05)  # the loop finalizes it
    assert await asyncio.to_thread(tokens_after, model) <= 3


async def test_waiting_no_longer(watched: Watched) -> None:
    model, chat = watched
    answer = asyncio.create_task(endless(chat).ainvoke("Tell me a story."))
    while not model._engine.health().running:
        await asyncio.sleep(0.001)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(answer, 0.02)  # a fast machine has all 900 tokens in half a second
    assert await asyncio.to_thread(tokens_after, model) <= 3


async def test_waiting_no_longer_for_a_model_with_tools() -> None:
    engine, chat = scripted(SLOW)
    asked = chat.bind_tools([{"name": "f", "description": "", "input_schema": {"type": "object"}}])
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(asked.ainvoke("Hi"), 0.2)
    assert len(engine.requests) == 1
    assert await asyncio.to_thread(settles, engine)


async def test_cancelling_one_of_many() -> None:
    engine, chat = scripted(lambda request: SLOW if "slow" in request.messages[0].content else "quick")
    slow = asyncio.create_task(chat.ainvoke("slow"))
    await asyncio.sleep(0.05)
    assert (await chat.ainvoke("fast")).content == "quick"
    assert engine.health().running == 1
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert await asyncio.to_thread(settles, engine)


def test_cancelling_a_chain_that_ends_in_the_model() -> None:
    """Behind a parser LangChain reads a sync stream to its end when it is closed, for its traces."""
    engine, chat = scripted(SLOW)
    stream = (ChatPromptTemplate.from_template("{text}") | chat).stream({"text": "Hi"})
    assert next(stream).content == "word "
    stream.close()  # type: ignore[attr-defined]
    assert settles(engine)
    assert engine.health().n_tokens < 200


async def test_cancelling_an_async_chain() -> None:
    engine, chat = scripted(SLOW)
    async with contextlib.aclosing((chat | StrOutputParser()).astream("Hi")) as stream:  # type: ignore[type-var]
        assert await anext(stream) == "word "
    assert await asyncio.to_thread(settles, engine)
    assert engine.health().n_tokens < 200


async def test_cancelling_a_batch() -> None:
    engine, chat = scripted(SLOW)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(chat.abatch(["a", "b", "c", "d"]), 0.1)
    assert len(engine.requests) == 4
    assert await asyncio.to_thread(settles, engine)


async def test_the_text_model() -> None:
    engine, chat = scripted(SLOW)
    llm = BitNetLLM(client=chat.client)
    stream = llm.stream("Hi")
    assert next(stream) == "word "
    stream.close()
    assert settles(engine)
    async with contextlib.aclosing(llm.astream("Hi")) as words:  # type: ignore[type-var]
        async for _ in words:
            break
    assert await asyncio.to_thread(settles, engine)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(llm.agenerate(["a", "b", "c"]), 0.1)
    assert await asyncio.to_thread(settles, engine)


def test_one_error_ends_the_other_prompts() -> None:
    engine, chat = scripted(
        lambda request: FakeReply(error=ZeroDivisionError()) if request.prompt == "bad" else SLOW
    )
    llm = BitNetLLM(client=chat.client)
    with pytest.raises(ZeroDivisionError):
        llm.generate(["bad", "good", "good"])
    assert settles(engine)
