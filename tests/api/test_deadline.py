"""Answers that take longer than they may: ended on time, and nobody else is."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from bitnet import BitNet, DeadlineError
from bitnet.engines import deadline
from bitnet.testing import FakeEngine, FakeReply


def fake(timeout: float, *, delay: float, pieces: int = 20) -> BitNet:
    model = BitNet.from_engine(FakeEngine(FakeReply(["x"] * pieces, delay=delay)))
    model._set_defaults(timeout, None)
    return model


def test_each_ends_at_its_own_time() -> None:
    started = time.monotonic()
    generations = [
        fake(seconds, delay=0.02, pieces=100).stream("Hi", max_tokens=100) for seconds in (0.4, 0.1, 0.2)
    ]
    took = []
    for generation in (generations[1], generations[2], generations[0]):
        with pytest.raises(DeadlineError):
            generation.result()
        took.append(time.monotonic() - started)
    assert took == sorted(took)
    assert 0.1 <= took[0] < 0.19
    assert 0.4 <= took[2] < 0.7


def test_what_is_done_in_time_is_left_alone() -> None:
    generation = fake(0.3, delay=0.01).stream("Hi")
    assert generation.result().text == "x" * 20
    time.sleep(0.4)
    assert generation.result().finish_reason == "stop"


def test_pieces_that_came_in_time_are_handed_out() -> None:
    generation = fake(0.15, delay=0.04).stream("Hi")
    texts: list[str] = []
    with pytest.raises(DeadlineError):
        texts.extend(delta.text for delta in generation)
    assert 1 <= len(texts) <= 4


def test_async() -> None:
    async def main() -> None:
        with pytest.raises(DeadlineError):
            await fake(0.1, delay=0.05).agenerate("Hi")

    asyncio.run(main())


def test_the_thread_ends_when_there_is_nothing_to_watch(
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    fake(30, delay=0).generate("Hi")
    generation = fake(30, delay=0.1).stream("Hi")
    assert any(thread.name == "bitnet-deadlines" for thread in threading.enumerate())
    del generation  # a watched generation can be dropped
    eventually(lambda: not any(thread.name == "bitnet-deadlines" for thread in threading.enumerate()))
    assert deadline._watched == []
