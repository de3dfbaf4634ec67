"""The fake engine for users' tests: what a script can say, and what is recorded."""

from __future__ import annotations

import asyncio
import pickle
import time
from typing import Any

import numpy as np
import pytest

import bitnet.testing
from bitnet import BitNet, EngineClosedError, Generation, OverloadedError
from bitnet.testing import FakeEngine, FakeReply


def test_the_example_in_its_docstring() -> None:
    example = (bitnet.testing.__doc__ or "").split("\n\n")[1]
    namespace: dict[str, Any] = {**vars(bitnet.testing), "BitNet": BitNet}
    exec("\n".join(line[4:] for line in example.splitlines()), namespace)
    with pytest.raises(OverloadedError, match="busy"):
        namespace["model"].generate("And now?")


def test_one_reply_for_all() -> None:
    with BitNet.from_engine(FakeEngine("Hi there")) as model:
        for _ in range(3):
            reply = model.generate("Hello")
            assert (reply.text, reply.finish_reason) == ("Hi there", "stop")
            assert reply.usage.prompt_tokens == 6
            assert reply.usage.completion_tokens == 8
        assert isinstance(model.stream("Hello"), Generation)
        assert repr(model) == "BitNet('', 0.0 M parameters, n_ctx=2048)"
    assert repr(model).endswith(", closed)")
    with pytest.raises(EngineClosedError):
        model.generate("Hello")


def test_replies_in_order() -> None:
    engine = FakeEngine(["one", FakeReply("two", finish_reason="length")])
    model = BitNet.from_engine(engine)
    assert model.generate("a").text == "one"
    assert model.chat([{"role": "user", "content": "b"}], seed=3).finish_reason == "length"
    with pytest.raises(AssertionError, match="request 3 to a FakeEngine with a script of 2 replies"):
        model.generate("c")
    assert [request.prompt for request in engine.requests] == ["a", None, "c"]
    assert engine.requests[1].messages is not None
    assert engine.requests[1].messages[0].content == "b"
    assert engine.requests[1].sampling.seed == 3


def test_replies_by_function() -> None:
    model = BitNet.from_engine(FakeEngine(lambda request: f"You said {request.prompt}"))
    assert model.generate("hello").text == "You said hello"


def test_pieces_and_delays() -> None:
    model = BitNet.from_engine(FakeEngine(FakeReply(["Hel", "lo", ""], delay=0.02)))
    start = time.monotonic()
    assert [delta.text for delta in model.stream("Hi")] == ["Hel", "lo", ""]
    assert time.monotonic() - start >= 0.08
    start = time.monotonic()
    slow = BitNet.from_engine(FakeEngine(FakeReply("late", delay=60)))
    generation = slow.stream("Hi")
    generation.cancel()
    assert generation.result().finish_reason == "cancelled"
    assert time.monotonic() - start < 5


def test_errors() -> None:
    script = [
        FakeReply(["half", " an"], error=OverloadedError("tired")),
        FakeReply(refuse=OverloadedError("busy")),
    ]
    model = BitNet.from_engine(FakeEngine(script))
    generation = model.stream("Hi")
    assert [next(generation).text, next(generation).text] == ["half", " an"]
    with pytest.raises(OverloadedError, match="tired"):
        next(generation)
    with pytest.raises(OverloadedError, match="tired"):
        generation.result()
    with pytest.raises(OverloadedError, match="busy"):
        model.stream("Hi")


def test_limits_are_kept() -> None:
    model = BitNet.from_engine(FakeEngine(FakeReply(["Hello ", "wörld, ", "end"])))
    assert model.generate("Hi", max_tokens=7).text == "Hello w"
    reply = model.generate("Hi", max_tokens=8)  # half of a character
    assert (reply.text, reply.finish_reason, len(reply.token_ids)) == ("Hello w\ufffd", "length", 8)
    reply = model.generate("Hi", stop="rld")
    assert (reply.text, reply.finish_reason, reply.stop_string) == ("Hello wö", "stop", "rld")
    assert model.generate("Hi", stop="endless").text == "Hello wörld, end"
    small = BitNet.from_engine(FakeEngine("x" * 100, n_ctx=10))
    reply = small.generate("Hello", max_tokens=None)
    assert (len(reply.text), reply.finish_reason) == (4, "length")


def test_no_more_than_it_may_take() -> None:
    model = BitNet.from_engine(FakeEngine(FakeReply("slow", delay=60), n_batch=2, max_waiting=1))
    generations = [model.stream("Hi") for _ in range(3)]
    with pytest.raises(OverloadedError, match="3 under way"):
        model.stream("Hi")
    assert model._engine.health().running == 3
    model.close()
    for generation in generations:
        with pytest.raises(EngineClosedError):
            generation.result()


def test_embeddings() -> None:
    engine = FakeEngine(embeddings={"a": [3, 4], "b": [0, 2]}, embedding_dim=2)
    model = BitNet.from_engine(engine)
    np.testing.assert_allclose(model.embed(["a", "b"], kind="query"), [[0.6, 0.8], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(model.embed("a", normalize=False), [[3, 4]])
    assert [request.kind for request in engine.embedding_requests] == ["query", "document"]
    length = BitNet.from_engine(FakeEngine(embeddings=lambda text: [len(text), 1]))
    assert length.embed(["abc"], normalize=False).tolist() == [[3, 1]]
    hashed = BitNet.from_engine(FakeEngine(embedding_dim=5))
    assert hashed.embed(["x", "y"]).shape == (2, 5)
    assert np.array_equal(
        hashed.embed("x", dimensions=3, normalize=False), hashed.embed("x", normalize=False)[:, :3]
    )
    assert np.array_equal(hashed.embed("x"), BitNet.from_engine(FakeEngine(embedding_dim=5)).embed("x"))


def test_async() -> None:
    model = BitNet.from_engine(FakeEngine(FakeReply(["a", "b"], delay=0.01)))

    async def everything() -> None:
        assert [delta.text async for delta in model.astream("Hi")] == ["a", "b"]
        assert (await model.agenerate("Hi")).text == "ab"
        task = asyncio.create_task(model.achat([{"role": "user", "content": "Hi"}]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for _ in range(3):
        asyncio.run(everything())


def test_replies_are_plain_values() -> None:
    reply = FakeReply("text", finish_reason="length", delay=0.5)
    assert pickle.loads(pickle.dumps(reply)) == reply
