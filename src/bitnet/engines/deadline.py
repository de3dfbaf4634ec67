"""Ends generations that take longer than they may. One thread watches all of them, and ends with the last."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
import weakref

from bitnet.engines.generation import Generation, abandon
from bitnet.errors import DeadlineError

_condition = threading.Condition()
_watched: list[tuple[float, int, weakref.ref[Generation], float]] = []  # a heap: the next to end is first
_numbers = itertools.count()
_running = False


def watch(generation: Generation, seconds: float) -> None:
    """End `generation` with DeadlineError, unless it is done within that time."""
    global _running
    entry = (time.monotonic() + seconds, next(_numbers), weakref.ref(generation), seconds)
    with _condition:
        heapq.heappush(_watched, entry)
        if not _running:
            _running = True
            threading.Thread(target=_run, name="bitnet-deadlines", daemon=True).start()
        elif _watched[0] is entry:
            _condition.notify()


def _run() -> None:
    global _running
    while True:
        with _condition:
            while _watched and _is_over(_watched[0][2]):  # most are before their time
                heapq.heappop(_watched)
            if not _watched:
                _running = False
                return
            when, _, reference, seconds = _watched[0]
            remaining = when - time.monotonic()
            if remaining > 0:
                _condition.wait(min(remaining, 1.0))
                continue
            heapq.heappop(_watched)
        generation = reference()
        if generation is not None:
            abandon(generation, DeadlineError(_message(seconds)))
        del generation  # or it would live on while this waits


def _is_over(reference: weakref.ref[Generation]) -> bool:
    generation = reference()
    return generation is None or generation.done


def _message(seconds: float) -> str:
    return (
        f"the answer was not complete after {seconds:g} s; allow more time (timeout.total) or fewer tokens "
        "(max_tokens)"
    )


def _after_fork() -> None:
    """In the child: the thread is in the parent, and so are the generations."""
    global _condition, _running
    _condition = threading.Condition()
    _watched.clear()
    _running = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
