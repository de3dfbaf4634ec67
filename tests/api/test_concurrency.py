"""Many requests on one model: they run together, do not influence each other, and end one by one."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitnet import BitNet, EngineClosedError, Generation, OverloadedError, Reply, ValidationError
from bitnet.engines import Engine
from bitnet.engines.native import NativeEngine
from bitnet.runtime.scheduler import Scheduler
from bitnet.runtime.sequence import LogitsSequence

Wait = Callable[[Callable[[], bool]], None]


def engine(model: BitNet) -> Engine:
    return model._engine


def is_idle(model: BitNet) -> bool:
    health = engine(model).health()
    return health.running == health.waiting == 0 and health.free_blocks == health.n_blocks


def test_two_generations_interleave_and_equal_their_solo_outputs(random_path: Path) -> None:
    with BitNet(random_path, n_batch=2) as loaded:

        def start(seed: int) -> Generation:
            return loaded.stream(
                f"Prompt number {seed}", max_tokens=200, seed=seed, temperature=2, ignore_eos=True
            )

        solo = [start(seed).result() for seed in (1, 2)]
        steps_before = engine(loaded).health().n_steps
        first, second = start(1), start(2)
        order: list[str] = []
        threads = [
            threading.Thread(target=lambda name=name, g=generation: order.extend(name for _ in g))
            for name, generation in (("first", first), ("second", second))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        steps = engine(loaded).health().n_steps - steps_before
    assert [first.result().token_ids, second.result().token_ids] == [reply.token_ids for reply in solo]
    assert [first.result().text, second.result().text] == [reply.text for reply in solo]
    assert steps < 300  # one after the other would be 400
    assert set(order[:250]) == {"first", "second"}


def test_a_crowd_gets_what_each_would_get_alone(model: BitNet) -> None:
    prompts = [f"Tell me about {'x' * (i * 13)} number {i}" for i in range(12)]

    def ask(i: int) -> Generation:
        return model.stream(
            prompts[i], max_tokens=10 + i, seed=i, temperature=1.2, logprobs=True, ignore_eos=True
        )

    alone = [ask(i).result() for i in range(12)]
    crowd = [generation.result() for generation in [ask(i) for i in range(12)]]
    assert [reply.token_ids for reply in crowd] == [reply.token_ids for reply in alone]
    assert [reply.logprobs for reply in crowd] == [reply.logprobs for reply in alone]
    assert is_idle(model)


def test_a_small_store_changes_no_answer(random_path: Path) -> None:
    """Four requests that together need twice the store: some make way, and are computed again."""
    options = {"max_tokens": 200, "temperature": 1, "ignore_eos": True}
    with BitNet(random_path, n_ctx=256, n_batch=4) as large:
        expected = [large.generate([i + 1] * 40, seed=i, **options).token_ids for i in range(4)]
        kv_bytes = large.info.kv_bytes
    with BitNet(random_path, n_ctx=256, n_batch=4, kv_tokens=500, speculate=False) as small:
        assert small.info.kv_bytes == kv_bytes // 2
        generations = [small.stream([i + 1] * 40, seed=i, **options) for i in range(4)]
        assert [generation.result().token_ids for generation in generations] == expected
        # More was computed than the tokens of four requests.
        assert engine(small).health().n_tokens > 4 * 240
    with pytest.raises(ValidationError, match="kv_tokens=255 is less than one context of n_ctx=256"):
        BitNet(random_path, n_ctx=256, kv_tokens=255)


def test_logits_beside_a_generation(random_path: Path) -> None:
    ids = [i % 250 for i in range(300)]
    with BitNet(random_path) as loaded:
        logits = loaded.logits(ids)
        solo = loaded.generate("Hello", max_tokens=100, seed=5, ignore_eos=True)
        generation = loaded.stream("Hello", max_tokens=100, seed=5, ignore_eos=True)
        next(generation)
        assert np.array_equal(loaded.logits(ids), logits)
        assert generation.result().token_ids == solo.token_ids


def test_many_threads_ask_at_once(model: BitNet) -> None:
    expected = model.generate("Hello", max_tokens=8, temperature=0).token_ids
    replies: list[Reply] = []

    def ask() -> None:
        for _ in range(5):
            replies.append(model.generate("Hello", max_tokens=8, temperature=0))

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.token_ids for reply in replies] == [expected] * 50
    assert is_idle(model)


def test_the_queue_is_first_come_first_served_and_bounded(random_path: Path) -> None:
    with BitNet(random_path, n_batch=1, max_waiting=2) as loaded:
        running = loaded.stream("Hello", max_tokens=400, temperature=0, ignore_eos=True)
        next(running)  # it left the queue
        waiting = [loaded.stream("Hello", max_tokens=3, temperature=0, ignore_eos=True) for _ in range(2)]
        with pytest.raises(OverloadedError, match="1 under way, 2 waiting") as caught:
            loaded.stream("Hello")
        assert caught.value.status == 503
        first, second = (generation.result() for generation in waiting)
        assert running.done
        assert 0 < first.timings.queue < second.timings.queue
        loaded.generate("Hello", max_tokens=1)


def test_a_model_without_a_queue_takes_what_it_can_run(random_path: Path) -> None:
    with BitNet(random_path, n_batch=2, max_waiting=0) as loaded:
        running = [loaded.stream("Hello", max_tokens=None, ignore_eos=True) for _ in range(2)]
        with pytest.raises(OverloadedError, match="too many requests"):
            loaded.stream("Hello")
        for generation in running:
            generation.cancel()
            generation.result()
        loaded.generate("Hello", max_tokens=1)


class BrokenSequence(LogitsSequence):
    """Fails after its forward pass."""

    def advance(self, *arguments: object) -> bool:
        raise RuntimeError("broken on purpose")


def test_an_error_of_one_request_does_not_touch_the_others(random_path: Path) -> None:
    with BitNet(random_path, n_batch=4) as loaded:
        native = engine(loaded)
        assert isinstance(native, NativeEngine)
        scheduler: Scheduler = native._scheduler
        solo = loaded.generate("Hello", max_tokens=200, seed=3, ignore_eos=True)
        generation = loaded.stream("Hello", max_tokens=200, seed=3, ignore_eos=True)
        next(generation)
        broken = BrokenSequence([1, 2, 3], 288)
        refused = LogitsSequence([1, 288, 3], 288)  # no such token: the forward pass itself fails
        scheduler.submit(broken)
        scheduler.submit(refused)
        with pytest.raises(RuntimeError, match="broken on purpose"):
            broken.outlet.result(10)
        with pytest.raises(ValidationError):
            refused.outlet.result(10)
        assert generation.result().token_ids == solo.token_ids
        assert is_idle(loaded)


def test_close_ends_what_runs_and_what_waits(slow_path: Path) -> None:
    loaded = BitNet(slow_path, n_batch=1)
    running = loaded.stream([1] * 2000, max_tokens=40, ignore_eos=True)
    waiting = loaded.stream("Hello")
    errors: list[BaseException] = []

    def consume() -> None:
        try:
            running.result()
        except EngineClosedError as error:
            errors.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    closers = [threading.Thread(target=loaded.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()
    assert running.done
    assert waiting.done
    consumer.join()
    assert len(errors) == 1
    with pytest.raises(EngineClosedError, match="closed before the answer was complete"):
        next(waiting)


def test_close_leaves_finished_generations_alone(random_path: Path) -> None:
    loaded = BitNet(random_path)
    generation = loaded.stream("Hello", max_tokens=5, temperature=0, ignore_eos=True)
    reply = generation.result()
    loaded.close()
    assert generation.result() == reply
    assert sum(len(delta.token_ids) for delta in generation) == 5


LEAVE_WHILE_GENERATING = """
import sys, bitnet
model = bitnet.BitNet(sys.argv[1])
generations = [model.stream("Hello", max_tokens=None, ignore_eos=True) for _ in range(4)]
next(generations[0])
print("leaving")
"""


def test_the_interpreter_may_end_while_generations_run(slow_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LEAVE_WHILE_GENERATING, str(slow_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    # The random model's repairs are not logged: the library has no handler of its own.
    assert (run.returncode, run.stdout, run.stderr) == (0, "leaving\n", "")
