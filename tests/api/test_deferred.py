"""Answers asked for in an event loop begin in a thread, but for those that begin in no time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from bitnet import BitNet, CancelledError, EngineClosedError, OverloadedError
from bitnet.engines.generation import DeferredGeneration, Generation
from bitnet.testing import FakeEngine, FakeReply
from bitnet.values import Request

TOOL = {"type": "function", "function": {"name": "now", "description": "The time."}}

Wait = Callable[[Callable[[], bool]], None]


def slow(text: str, seconds: float = 0.2) -> Callable[[Any], str]:
    """A reply whose request takes this long to submit, as one with a grammar or a long prompt does."""

    def reply(request: Any) -> str:
        time.sleep(seconds)
        return text

    return reply


def test_the_loop_goes_on_while_a_request_is_submitted() -> None:
    async def ask() -> tuple[str, int]:
        n_ticks = 0

        async def tick() -> None:
            nonlocal n_ticks
            while True:
                await asyncio.sleep(0.01)
                n_ticks += 1

        ticker = asyncio.create_task(tick())
        texts = [delta.text async for delta in model.astream("Hi")]
        ticker.cancel()
        return "".join(texts), n_ticks

    with BitNet.from_engine(FakeEngine(slow("Hello"))) as model:
        text, n_ticks = asyncio.run(ask())
    assert text == "Hello"
    assert n_ticks > 5


def test_nothing_happens_before_it_is_asked_for() -> None:
    engine = FakeEngine("Hello")
    with BitNet.from_engine(engine) as model:
        generation = model.astream("Hi")
        assert (engine.requests, generation.done) == ([], False)
        # It is an ordinary generation for threads, too.
        assert next(generation).text == "Hello"
        assert generation.result().text == "Hello"
        assert generation.done
        assert len(engine.requests) == 1


def test_cancelled_before_it_began() -> None:
    engine = FakeEngine("Hello")
    with BitNet.from_engine(engine) as model:
        generation = model.astream("Hi")
        generation.cancel()
        with pytest.raises(CancelledError):
            asyncio.run(generation.aresult())
        assert engine.requests == []


def test_an_error_of_the_start_stays() -> None:
    engine = FakeEngine([FakeReply(refuse=OverloadedError("busy")), "not reached"])

    async def ask() -> None:
        generation = model.astream("Hi")
        for _ in range(2):
            with pytest.raises(OverloadedError, match="busy"):
                await generation.aresult()
        with pytest.raises(OverloadedError, match="busy"):
            await anext(generation)
        assert generation.done

    with BitNet.from_engine(engine) as model:
        asyncio.run(ask())
    assert len(engine.requests) == 1


def test_a_task_cancelled_while_it_begins_stops_what_has_begun(eventually: Wait) -> None:
    begun = threading.Event()

    def reply(request: Any) -> FakeReply:
        begun.set()
        time.sleep(0.1)
        return FakeReply(["word "] * 1000, delay=0.01)

    engine = FakeEngine(reply)

    async def ask() -> None:
        task = asyncio.create_task(model.achat([{"role": "user", "content": "Hi"}]))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with BitNet.from_engine(engine) as model:
        asyncio.run(ask())
        eventually(lambda: engine.health().running == 0)
        assert engine.health().n_tokens < 100


def test_dropped_without_being_asked() -> None:
    engine = FakeEngine("Hello")
    with BitNet.from_engine(engine) as model:
        model.astream("Hi")
    assert engine.requests == []


def test_the_model_was_closed_meanwhile() -> None:
    model = BitNet.from_engine(FakeEngine("Hello"))
    generation = model.astream("Hi")
    model.close()
    with pytest.raises(EngineClosedError):
        asyncio.run(generation.aresult())


def test_threads_that_ask_at_once_begin_it_once() -> None:
    engine = FakeEngine(slow("Hello", 0.05))
    with BitNet.from_engine(engine) as model:
        generation = model.astream("Hi")
        assert isinstance(generation, DeferredGeneration)
        threads = [threading.Thread(target=generation.result) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(engine.requests) == 1


class AtOnce(FakeEngine):
    """One that says that it submits within no time, and notes the threads that it does so on."""

    def __init__(self, reply: Any) -> None:
        super().__init__(reply)
        self.threads: list[threading.Thread] = []

    def submits_at_once(self, request: Request) -> bool:
        return True

    def submit(self, request: Request) -> Generation:
        self.threads.append(threading.current_thread())
        return super().submit(request)


def test_what_takes_no_time_begins_in_the_loop() -> None:
    engine = AtOnce("Hello")
    with BitNet.from_engine(engine) as model:
        assert asyncio.run(model.astream("Hi").aresult()).text == "Hello"
    assert engine.threads == [threading.current_thread()]


def test_an_error_of_a_start_in_the_loop_stays() -> None:
    engine = AtOnce([FakeReply(refuse=OverloadedError("busy")), "not reached"])

    async def ask() -> None:
        generation = model.astream("Hi")
        for _ in range(2):
            with pytest.raises(OverloadedError, match="busy"):
                await generation.aresult()

    with BitNet.from_engine(engine) as model:
        asyncio.run(ask())
    assert len(engine.requests) == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"prompt": "Hi"}, True),
        ({"prompt": "word " * 1000}, False),
        ({"prompt": [1] * 100}, True),
        ({"prompt": [1] * 2000}, False),
        ({"messages": [{"role": "user", "content": "Hi"}]}, True),
        ({"messages": [{"role": "user", "content": "word " * 1000}]}, False),
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}] * 20},
            False,
        ),
        ({"prompt": "Hi", "response_format": {"type": "json_object"}}, False),
        ({"messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL]}, False),
        ({"messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL], "tool_choice": "none"}, True),
        ({"prompt": "Hi", "n": 2}, False),
    ],
)
def test_requests_that_begin_in_the_loop(options: dict[str, Any], expected: bool) -> None:
    prompt, messages = options.pop("prompt", None), options.pop("messages", None)
    request = Request.build(prompt=prompt, messages=messages, options=options)
    with BitNet() as model:
        assert model._lease.submits_at_once(request) is expected
    assert model._lease.submits_at_once(request) is False  # closed: it would have to load


def test_a_model_that_is_not_loaded_is_not_loaded_in_the_loop() -> None:
    with BitNet(lazy=True) as model:
        assert not model._lease.submits_at_once(Request.build(prompt="Hi", options={}))
        assert asyncio.run(model.agenerate("Hi", max_tokens=1)).token_ids
