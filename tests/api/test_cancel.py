"""Cancel means stop: from every side, in the answer and in the prompt, without harm to the neighbours."""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bitnet import BitNet, Generation
from bitnet.errors import CancelledError
from bitnet.runtime.sequence import LogitsSequence

Wait = Callable[[Callable[[], bool]], None]


@pytest.fixture(scope="module")
def endless(random_path: Path) -> Iterator[BitNet]:
    with BitNet(random_path, n_batch=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def slow(slow_path: Path) -> Iterator[BitNet]:
    with BitNet(slow_path, n_ctx=0, n_batch=2) as loaded:
        yield loaded


def is_idle(model: BitNet) -> bool:
    health = model._engine.health()
    return health.running == health.waiting == 0 and health.free_blocks == health.n_blocks


@contextlib.contextmanager
def interrupt_soon() -> Iterator[None]:
    """Ctrl-C in a tenth of a second; it must be felt at once."""
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGINT))
    start_time = time.perf_counter()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    assert time.perf_counter() - start_time < 1


def start(model: BitNet) -> Generation:
    """An answer that goes on to the end of the context."""
    return model.stream("Hello", max_tokens=None, temperature=0, ignore_eos=True)


def assert_stopped(model: BitNet, eventually: Wait) -> None:
    """Nothing is computed any more, long before the context was full, and all blocks are back."""
    eventually(lambda: is_idle(model))
    n_tokens = model._engine.health().n_tokens
    time.sleep(0.05)
    assert model._engine.health().n_tokens == n_tokens


def test_cancel_gives_what_there_is(endless: BitNet, eventually: Wait) -> None:
    generation = start(endless)
    seen = [next(generation) for _ in range(3)]
    generation.cancel()
    seen += generation
    reply = generation.result()
    assert reply.finish_reason == "cancelled"
    assert 3 <= len(reply.token_ids) < 400
    assert reply.text == "".join(delta.text for delta in seen)
    assert_stopped(endless, eventually)
    generation.cancel()
    assert generation.result() == reply


def test_dropping_the_iterator_cancels(endless: BitNet, eventually: Wait) -> None:
    before = endless._engine.health().n_tokens
    for _ in start(endless):
        break
    assert_stopped(endless, eventually)
    iterator = iter(start(endless))
    next(iterator)
    del iterator
    assert_stopped(endless, eventually)
    start(endless)  # never looked at
    assert_stopped(endless, eventually)
    assert endless._engine.health().n_tokens - before < 3 * 400


def test_a_dropped_cycle_cancels_in_the_garbage_collector(endless: BitNet, eventually: Wait) -> None:
    before = endless._engine.health().n_tokens
    gc.disable()
    try:
        cycle: list[object] = [start(endless)]
        cycle.append(cycle)
        del cycle
        gc.collect()
    finally:
        gc.enable()
    assert_stopped(endless, eventually)
    assert endless._engine.health().n_tokens - before < 400


def test_closing_cancels(endless: BitNet, eventually: Wait) -> None:
    with contextlib.closing(start(endless)) as generation:
        next(generation)
    assert generation.result().finish_reason == "cancelled"
    assert_stopped(endless, eventually)


def test_a_timeout_cancels(slow: BitNet, eventually: Wait) -> None:
    generation = start(slow)
    with pytest.raises(TimeoutError, match=r"0\.05 s"):
        generation.result(timeout=0.05)
    assert generation.result(timeout=10).finish_reason == "cancelled"
    assert_stopped(slow, eventually)


def test_an_interrupt_of_the_consumer_cancels(slow: BitNet, eventually: Wait) -> None:
    for consume in (lambda generation: generation.result(), lambda generation: list(generation)):
        generation = slow.stream([1] * 4000, max_tokens=None, ignore_eos=True)
        with interrupt_soon():
            consume(generation)
        assert generation.result().finish_reason == "cancelled"
        assert_stopped(slow, eventually)


def test_cancel_stops_inside_of_a_piece_of_prompt(slow: BitNet, eventually: Wait) -> None:
    start_time = time.perf_counter()
    slow.generate([2] * 512, max_tokens=1)  # no other test had these: nothing of it is cached
    whole_piece = time.perf_counter() - start_time
    n_steps, n_tokens = slow._engine.health().n_steps, slow._engine.health().n_tokens
    delays = []
    for _ in range(5):
        generation = slow.stream([1] * 4000, max_tokens=1)
        eventually(lambda: slow._engine.health().running == 1)
        time.sleep(whole_piece / 5)
        start_time = time.perf_counter()
        generation.cancel()
        reply = generation.result()
        delays.append(time.perf_counter() - start_time)
        assert (reply.finish_reason, reply.token_ids) == ("cancelled", ())
        assert_stopped(slow, eventually)
    # The piece under way was given up, not finished.
    assert slow._engine.health().n_steps - n_steps < 5
    assert slow._engine.health().n_tokens - n_tokens < 5 * 512
    assert min(delays) < whole_piece / 2


def test_cancel_in_the_queue(slow: BitNet, eventually: Wait) -> None:
    running = [start(slow) for _ in range(2)]
    for generation in running:
        next(generation)
    waiting = [start(slow) for _ in range(3)]
    waiting[1].cancel()
    reply = waiting[1].result(timeout=10)
    assert (reply.finish_reason, reply.text, reply.usage.completion_tokens) == ("cancelled", "", 0)
    assert reply.timings.prefill == 0
    assert not running[0].done
    assert slow._engine.health().waiting == 2
    for generation in running + waiting:
        generation.cancel()
    assert_stopped(slow, eventually)


def test_cancel_does_not_disturb_the_neighbour(slow: BitNet, eventually: Wait) -> None:
    def neighbour() -> Generation:
        return slow.stream("Neighbour", max_tokens=40, seed=4, temperature=2, ignore_eos=True)

    alone = neighbour().result()
    generation = neighbour()
    for _ in range(6):
        other = slow.stream([1] * 3000, max_tokens=5)
        next(generation)
        other.cancel()
        assert other.result().finish_reason == "cancelled"
    assert generation.result().token_ids == alone.token_ids
    assert_stopped(slow, eventually)


def test_cancelled_logits(slow: BitNet, eventually: Wait) -> None:
    with interrupt_soon():
        slow.logits([1] * 4000)
    assert_stopped(slow, eventually)
    sequence = LogitsSequence([1] * 4000, slow.info.vocab_size)
    scheduler = slow._engine._scheduler  # type: ignore[attr-defined]
    scheduler.submit(sequence)
    sequence.outlet.cancelled = True
    scheduler.notice_cancel()
    with pytest.raises(CancelledError):
        sequence.outlet.result(10)


def test_a_thousand_generations_leave_nothing_behind(endless: BitNet, eventually: Wait) -> None:
    threads_before = threading.active_count()
    for i in range(1000):
        generation = endless.stream("Hello", max_tokens=1 + i % 3, seed=i)
        if i % 3 == 0:
            generation.cancel()
        elif i % 3 == 1:
            next(generation, None)
        if i % 5 == 0:
            generation.result()
    del generation
    assert_stopped(endless, eventually)
    assert threading.active_count() == threads_before
