"""What every engine promises, checked on the native one, on the public fake, and on both behind a server."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet import BitNet, CapabilityError, ContextOverflowError, EngineClosedError, Request, ValidationError
from bitnet.engines import Engine
from bitnet.engines.http import HttpEngine
from bitnet.engines.native import NativeEngine
from bitnet.server import create_app
from bitnet.testing import FakeEngine, FakeReply
from server.hosting import hosted

Wait = Callable[[Callable[[], bool]], None]

WORDS = tuple(f"word{i} " for i in range(60))
N_CTX = 256


def native(path: Path) -> Engine:
    return NativeEngine(
        path,
        n_ctx=N_CTX,
        n_threads=0,
        n_batch=4,
        use_mmap=True,
        use_mlock=False,
        kv_tokens=None,
        max_waiting=64,
    )


def fake() -> Engine:
    return FakeEngine(lambda asked: FakeReply(WORDS, delay=0.001), n_ctx=N_CTX)


@pytest.fixture(params=["fake", "native", "fake over http", "native over http"])
def engine(request: pytest.FixtureRequest, random_path: Path, eventually: Wait) -> Iterator[Engine]:
    kind, _, remote = request.param.partition(" ")
    made = fake() if kind == "fake" else native(random_path)
    if not remote:
        yield made
        made.close()
        return
    with BitNet.from_engine(made) as model, hosted(create_app({"m": model})) as server:
        model.load()
        client = HttpEngine(server.url, proxy="")
        client.connect()
        yield client
        client.close()
        eventually(lambda: is_idle(made))  # what nobody waits for is not computed


def ask(prompt: Any = "Hello", **options: Any) -> Request:
    return Request.build(prompt=prompt, options={"temperature": 0, "ignore_eos": True, **options})


def is_idle(engine: Engine) -> bool:
    health = engine.health()
    return health.running == health.waiting == 0 and health.free_blocks == health.n_blocks


def test_an_answer(engine: Engine) -> None:
    request = ask(max_tokens=20)
    generation = engine.submit(request)
    deltas = list(generation)
    reply = generation.result()
    assert generation.done
    assert list(generation) == []
    assert generation.result() is reply
    assert "".join(delta.text for delta in deltas) == reply.text
    assert tuple(token for delta in deltas for token in delta.token_ids) == reply.token_ids
    assert (len(reply.token_ids), reply.finish_reason) == (20, "length")
    assert reply.usage.completion_tokens == 20
    assert reply.usage.prompt_tokens == engine.count_tokens(request) == len(engine.tokenize("Hello"))
    assert reply.text == engine.detokenize(reply.token_ids)
    assert reply.logprobs is None
    assert reply.timings.time_to_first_token >= 0
    assert engine.submit(request).result().text == reply.text
    assert engine.submit(ask(engine.tokenize("Hello"), max_tokens=20)).result().text == reply.text


def test_a_conversation(engine: Engine) -> None:
    request = Request.build(messages=[{"role": "user", "content": "Hi"}], options={"max_tokens": 3})
    reply = engine.submit(request).result()
    assert reply.usage.prompt_tokens == engine.count_tokens(request) > len(engine.tokenize("Hi"))
    assert reply.usage.completion_tokens <= 3


def test_stop_strings(engine: Engine) -> None:
    whole = engine.submit(ask(max_tokens=30)).result().text
    stop = whole[8:12]
    generation = engine.submit(ask(max_tokens=30, stop=[stop, "never to be found"]))
    text = "".join(delta.text for delta in generation)
    reply = generation.result()
    assert text == reply.text == whole[: whole.index(stop)]
    assert (reply.finish_reason, reply.stop_string) == ("stop", stop)


def test_logprobs(engine: Engine) -> None:
    generation = engine.submit(ask(max_tokens=5, logprobs=True, top_logprobs=3))
    entries = [entry for delta in generation for entry in delta.logprobs]
    reply = generation.result()
    assert tuple(entries) == reply.logprobs
    assert [entry.token_id for entry in entries] == list(reply.token_ids)
    for entry in entries:
        assert entry.logprob <= 0
        # OpenAI's shape of completions maps texts to numbers: tokens of the same text are one there.
        assert len(entry.top) == 3 or (isinstance(engine, HttpEngine) and entry.top)
        assert [top.logprob for top in entry.top] == sorted((top.logprob for top in entry.top), reverse=True)


def test_cancel(engine: Engine, eventually: Wait) -> None:
    generation = engine.submit(ask(max_tokens=None))
    seen = [next(generation), next(generation)]
    generation.cancel()
    seen += generation
    reply = generation.result()
    assert reply.finish_reason == "cancelled"
    assert "".join(delta.text for delta in seen) == reply.text
    generation.cancel()
    assert generation.result() is reply
    eventually(lambda: is_idle(engine))
    for _ in engine.submit(ask(max_tokens=None)):
        break  # dropped
    engine.submit(ask(max_tokens=None))
    gc.collect()
    eventually(lambda: is_idle(engine))
    with pytest.raises(TimeoutError):
        engine.submit(ask(max_tokens=None)).result(timeout=0.005)
    eventually(lambda: is_idle(engine))


def test_async(engine: Engine, eventually: Wait) -> None:
    expected = engine.submit(ask(max_tokens=12)).result()

    async def everything() -> None:
        generation = engine.submit(ask(max_tokens=12))
        assert "".join([delta.text async for delta in generation]) == expected.text
        assert (await generation.aresult()).token_ids == expected.token_ids
        replies = await asyncio.gather(*(engine.submit(ask(max_tokens=12)).aresult() for _ in range(6)))
        assert {reply.text for reply in replies} == {expected.text}
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.submit(ask(max_tokens=None)).aresult(), 0.005)

    for _ in range(3):
        asyncio.run(everything())
    eventually(lambda: is_idle(engine))


def test_many_threads(engine: Engine, eventually: Wait) -> None:
    expected = engine.submit(ask(max_tokens=6)).result().text
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(engine.submit(ask(max_tokens=6)).result().text))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [expected] * 12
    eventually(lambda: is_idle(engine))


def test_bad_requests(engine: Engine) -> None:
    with pytest.raises(ContextOverflowError) as caught:
        engine.submit(ask([1] * N_CTX))
    assert (caught.value.n_prompt_tokens, caught.value.n_ctx) == (N_CTX, N_CTX)
    size = engine.info.vocab_size
    for bad in (ask([size]), ask(logit_bias={size: 1})):
        with pytest.raises(ValidationError, match=f"token id {size} is outside"):
            engine.submit(bad)
    if not isinstance(engine, HttpEngine):  # there is no such thing in OpenAI's API
        with pytest.raises(ValidationError):
            engine.logits([size])
        with pytest.raises(ContextOverflowError):
            engine.logits([1] * (N_CTX + 1))
    assert is_idle(engine)


def test_tokens(engine: Engine) -> None:
    text = "Hello, wörld 🙂"
    assert engine.detokenize(engine.tokenize(text)) == text
    assert len(engine.tokenize(text)) >= len(engine.tokenize(text, add_special=False))
    assert engine.detokenize(engine.tokenize(text), skip_special=False).endswith(text)


def test_logits(engine: Engine) -> None:
    if isinstance(engine, HttpEngine):
        with pytest.raises(CapabilityError, match="does not have logits"):
            engine.logits([1])
        return
    logits = engine.logits([1, 2, 3])
    assert (logits.shape, logits.dtype) == ((3, engine.info.vocab_size), np.float32)
    assert np.array_equal(engine.logits([1, 2]), logits[:2])
    assert not np.array_equal(engine.logits([2, 2]), logits[:2])


def test_embeddings(engine: Engine) -> None:
    model = BitNet.from_engine(engine)
    vectors = model.embed(["one", "two", "one"])
    assert (vectors.shape, vectors.dtype) == ((3, engine.info.hidden_size), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.array_equal(vectors[0], vectors[2])
    assert not np.array_equal(vectors[0], vectors[1])
    assert np.array_equal(asyncio.run(model.aembed(["two"])), vectors[1:2])
    raw = model.embed("one", normalize=False)
    np.testing.assert_allclose(
        raw[0] / math.sqrt(float((raw.astype(np.float64) ** 2).sum())), vectors[0], 1e-5
    )
    assert model.embed([]).shape == (0, engine.info.hidden_size)
    for bad in ([""], [3]):
        with pytest.raises(ValidationError):
            model.embed(bad)  # type: ignore[arg-type]
    with pytest.raises(ContextOverflowError) as caught:
        model.embed(["fine", "x" * 2 * N_CTX])
    assert caught.value.n_prompt_tokens > caught.value.n_ctx == N_CTX


def test_close(engine: Engine) -> None:
    finished = engine.submit(ask(max_tokens=2))
    reply = finished.result()
    under_way = [engine.submit(ask(max_tokens=None)) for _ in range(6)]
    next(under_way[0])
    assert not engine.health().closed
    closers = [threading.Thread(target=engine.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()
    engine.close()
    assert engine.health().closed
    for generation in under_way:
        with pytest.raises(EngineClosedError):
            generation.result()
        with pytest.raises(EngineClosedError):
            list(generation)
    assert finished.result() is reply
    uses: list[Callable[[], object]] = [
        lambda: engine.submit(ask()),
        lambda: BitNet.from_engine(engine).embed(["x"]),
    ]
    if isinstance(engine, HttpEngine):
        uses.append(lambda: engine.tokenize("Hello"))
    else:
        uses.append(lambda: engine.logits([1]))
        assert engine.tokenize("Hello")
    for use in uses:
        with pytest.raises(EngineClosedError):
            use()
    assert engine.info.n_ctx == N_CTX
    if not isinstance(engine, HttpEngine):
        assert not [thread for thread in threading.enumerate() if thread.name == "bitnet-fake"]
