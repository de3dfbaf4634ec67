"""The same calls on event loops: any number of loops, tasks that are cancelled, and a loop that never
waits."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bitnet import BitNet, ContextOverflowError, Delta, EngineClosedError, Generation, Reply

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
Wait = Callable[[Callable[[], bool]], None]


@pytest.fixture(scope="module")
def endless(random_path: Path) -> Iterator[BitNet]:
    with BitNet(random_path, n_batch=2) as loaded:
        yield loaded


def is_idle(model: BitNet) -> bool:
    health = model._engine.health()
    return health.running == health.waiting == 0 and health.free_blocks == health.n_blocks


def start(model: BitNet) -> Generation:
    return model.astream("Hello", max_tokens=None, temperature=0, ignore_eos=True)


async def collect(generation: Generation) -> list[Delta]:
    return [delta async for delta in generation]


def test_async_equals_sync_on_three_loops(model: BitNet) -> None:
    text = model.generate("The capital of", max_tokens=20, temperature=0)
    chat = model.chat(QUESTION, temperature=0)

    async def everything() -> None:
        assert (
            await model.agenerate("The capital of", max_tokens=20, temperature=0)
        ).token_ids == text.token_ids
        assert (await model.achat(QUESTION, temperature=0)).text == chat.text
        generation = model.astream("The capital of", max_tokens=20, temperature=0)
        assert "".join(delta.text for delta in await collect(generation)) == text.text
        assert (await generation.aresult()).token_ids == text.token_ids
        pieces = [delta.text async for delta in model.astream_chat(QUESTION, temperature=0)]
        assert "".join(pieces) == chat.text

    for _ in range(3):
        asyncio.run(everything())


def test_tasks_run_together(endless: BitNet) -> None:
    async def ask() -> list[Reply]:
        return await asyncio.gather(
            *(endless.agenerate(f"Prompt {i}", max_tokens=60, seed=i, ignore_eos=True) for i in range(6))
        )

    alone = [endless.generate(f"Prompt {i}", max_tokens=60, seed=i, ignore_eos=True) for i in range(6)]
    before = endless._engine.health().n_steps
    together = asyncio.run(ask())
    assert [reply.token_ids for reply in together] == [reply.token_ids for reply in alone]
    assert endless._engine.health().n_steps - before < 6 * 60 * 2 / 3


def test_errors_reach_the_task(endless: BitNet, random_path: Path) -> None:
    async def overflow() -> None:
        with pytest.raises(ContextOverflowError):
            await endless.agenerate([1] * 5000)
        with pytest.raises(ContextOverflowError):
            await endless.astream([1] * 5000).aresult()

    asyncio.run(overflow())

    async def close_meanwhile() -> None:
        loaded = BitNet(random_path)
        generation = start(loaded)
        await generation.__anext__()
        await asyncio.to_thread(loaded.close)
        with pytest.raises(EngineClosedError):
            await collect(generation)
        with pytest.raises(EngineClosedError):
            await generation.aresult()

    asyncio.run(close_meanwhile())


def test_cancelling_the_task_cancels_the_computation(slow_path: Path, eventually: Wait) -> None:
    with BitNet(slow_path, n_ctx=0) as slow:

        async def cancel(call: Callable[[], object]) -> None:
            # What `call` returns is awaitable; its type, the same for all callers, does not say so.
            task = asyncio.ensure_future(call())  # type: ignore[call-overload]
            while slow._engine.health().running == 0:  # it begins on another thread
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        async def timeout() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(slow.agenerate([1] * 4000, max_tokens=1), 0.05)

        asyncio.run(cancel(lambda: slow.agenerate([1] * 4000, max_tokens=1)))
        eventually(lambda: is_idle(slow))
        asyncio.run(cancel(lambda: collect(slow.astream([1] * 4000, max_tokens=1))))
        eventually(lambda: is_idle(slow))
        asyncio.run(timeout())
        eventually(lambda: is_idle(slow))
        assert slow._engine.health().n_tokens < 3 * 4000


def test_leaving_the_loop_early_cancels(endless: BitNet, eventually: Wait) -> None:
    async def leave() -> None:
        async for _ in start(endless):
            break

    async def close() -> Reply:
        generation = start(endless)
        async with contextlib.aclosing(generation):
            async for _ in generation:
                break
        return await generation.aresult()

    before = endless._engine.health().n_tokens
    asyncio.run(leave())
    eventually(lambda: is_idle(endless))
    assert endless._engine.health().n_tokens - before < 400
    assert asyncio.run(close()).finish_reason == "cancelled"
    eventually(lambda: is_idle(endless))


def test_a_generation_may_change_threads_and_loops(endless: BitNet) -> None:
    generation = endless.stream("Hello", max_tokens=30, temperature=0, ignore_eos=True)
    seen = [next(generation)]

    async def take(n: int) -> None:
        for _ in range(n):
            seen.append(await generation.__anext__())

    asyncio.run(take(10))
    thread = threading.Thread(target=lambda: asyncio.run(take(10)))
    thread.start()
    thread.join()
    seen += generation
    assert "".join(delta.text for delta in seen) == generation.result().text
    assert sum(len(delta.token_ids) for delta in seen) == 30


def test_several_tasks_may_share_a_generation(endless: BitNet) -> None:
    async def share() -> None:
        generation = endless.astream("Hello", max_tokens=50, temperature=0, ignore_eos=True)
        parts = await asyncio.gather(*(collect(generation) for _ in range(4)))
        assert sum(len(delta.token_ids) for part in parts for delta in part) == 50

    asyncio.run(share())


def test_a_loop_that_ended_does_no_harm(slow_path: Path) -> None:
    with BitNet(slow_path) as slow:
        generation = slow.stream([1] * 1500, max_tokens=5, temperature=0, ignore_eos=True)
        loop = asyncio.new_event_loop()
        waiting = loop.create_task(generation.__anext__())
        loop.call_later(0.02, loop.stop)
        loop.run_forever()
        # A loop that is closed with a task in it: the wake-up of that task finds nobody.
        # asyncio would log the pending task; the attribute is its own switch, unknown to the stubs.
        waiting._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()
        assert len(generation.result().token_ids) == 5


def test_the_event_loop_is_never_late(model: BitNet) -> None:
    late: list[float] = []

    async def tick() -> None:
        while True:
            start_time = time.perf_counter()
            await asyncio.sleep(0.005)
            late.append(time.perf_counter() - start_time - 0.005)

    async def run() -> None:
        ticker = asyncio.create_task(tick())
        streams = [model.astream(f"Hello {i}", max_tokens=200, seed=i, ignore_eos=True) for i in range(4)]
        await asyncio.gather(*(collect(stream) for stream in streams))
        ticker.cancel()

    asyncio.run(run())
    assert len(late) > 3
    assert sorted(late)[len(late) * 9 // 10] < 0.05
