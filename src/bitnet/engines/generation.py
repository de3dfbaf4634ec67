"""One answer under way: produced on an engine's thread, consumed on any other thread or event loop.

`Outlet` is the engine's end and `Generation` the user's. The engine never holds a Generation, so that one
which nobody holds any more is noticed and cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

from bitnet.errors import CancelledError, EngineClosedError
from bitnet.values import Delta, Reply

Result = TypeVar("Result")


class Outlet(Generic[Result]):
    """Deltas and one final result or error, handed from an engine's thread to whoever asks.

    What comes after the end is dropped: the consumer may have given up before the engine knew.
    """

    def __init__(self) -> None:
        # Set by `cancel` of the consumer, without a lock: a garbage collection may do it at any point of
        # any thread.
        self.cancelled = False
        self._condition = threading.Condition()
        self._deltas: deque[Delta] = deque()
        self._done = False
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._wakers: list[Callable[[], None]] = []
        _outlets.add(self)

    @property
    def done(self) -> bool:
        return self._done

    def push(self, delta: Delta) -> None:
        with self._condition:
            if not self._done:
                self._deltas.append(delta)
                self._wake()

    def finish(self, result: Result) -> None:
        self._end(result, None)

    def fail(self, error: BaseException) -> None:
        self._end(None, error)

    def _end(self, result: Result | None, error: BaseException | None) -> None:
        with self._condition:
            if not self._done:
                self._result, self._error = result, error
                self._done = True  # the last, because it is read without the lock
                self._wake()

    def leave_behind(self) -> None:
        """In a child process, right after the fork: the engine's thread is in the parent."""
        self._condition = threading.Condition()  # somebody who does not exist here may hold the other one
        self._wakers.clear()
        self.fail(EngineClosedError("this computation went on in the parent process; ask again in this one"))

    def _wake(self) -> None:
        self._condition.notify_all()
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def take(self) -> Delta | None:
        """The next delta, waited for; None after the last. Raises the engine's error."""
        with self._condition:
            while not self._deltas and not self._done:
                self._condition.wait()
            return self._take()

    async def atake(self) -> Delta | None:
        """`take`, without blocking the running event loop."""
        while True:
            with self._condition:
                if self._deltas or self._done:
                    return self._take()
            await self._change(lambda: bool(self._deltas) or self._done)

    def take_queued(self) -> list[Delta]:
        """The deltas that are there already."""
        with self._condition:
            deltas = list(self._deltas)
            self._deltas.clear()
            return deltas

    def _take(self) -> Delta | None:
        if self._deltas:
            return self._deltas.popleft()
        if self._error is not None:
            raise self._error
        return None

    def result(self, timeout: float | None = None) -> Result:
        """The result, waited for. timeout: seconds. Raises TimeoutError, or the engine's error."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._condition:
            while not self._done:
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    raise TimeoutError(f"no result within {timeout:g} s")
                self._condition.wait(remaining)
        return self._outcome()

    async def aresult(self) -> Result:
        """`result`, without blocking the running event loop."""
        while not self._done:
            await self._change(lambda: self._done)
        return self._outcome()

    def _outcome(self) -> Result:
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    async def _change(self, ready: Callable[[], bool]) -> None:
        """Wait until something is handed out. The future lives for this wait only, in the waiting loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def change() -> None:
            if not future.done():
                future.set_result(None)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # that loop was closed while it waited
                loop.call_soon_threadsafe(change)

        with self._condition:
            if ready():
                return
            self._wakers.append(wake)
        await future


class Generation(Iterator[Delta], AsyncIterator[Delta]):
    """An answer under way: a sync and async iterator of Delta, and at the end a Reply.

    Consume it from any thread or event loop; each delta is handed out once. `result` and `aresult` give the
    whole answer, whatever was iterated before. Closing or dropping it, an interrupt or the cancellation of
    the task that waits for it stop the computation.
    """

    def __init__(self, outlet: Outlet[Reply], on_cancel: Callable[[], None], owner: object = None) -> None:
        """on_cancel: called from any thread once the outlet is marked as cancelled; must not wait for locks.
        owner: kept alive while the generation is."""
        self._outlet = outlet
        self._on_cancel = on_cancel
        self.owner = owner

    def __next__(self) -> Delta:
        try:
            delta = self._outlet.take()
        except BaseException:
            self.cancel()
            raise
        if delta is None:
            raise StopIteration
        return delta

    async def __anext__(self) -> Delta:
        try:
            delta = await self._outlet.atake()
        except BaseException:
            self.cancel()
            raise
        if delta is None:
            raise StopAsyncIteration
        return delta

    def queued(self) -> list[Delta]:
        """The deltas that are there already, without waiting: for consumers slower than the engine."""
        return self._outlet.take_queued()

    def result(self, timeout: float | None = None) -> Reply:
        """The whole answer, waited for; after `cancel` what there is of it, with finish_reason "cancelled".

        timeout: seconds; when they have passed, the generation is cancelled. Raises TimeoutError, or the
        engine's error.
        """
        try:
            return self._outlet.result(timeout)
        except BaseException:
            self.cancel()
            raise

    async def aresult(self) -> Reply:
        """`result`, without blocking the event loop."""
        try:
            return await self._outlet.aresult()
        except BaseException:
            self.cancel()
            raise

    @property
    def done(self) -> bool:
        """Whether the answer is complete: `result` will not wait."""
        return self._outlet.done

    def cancel(self) -> None:
        """Stop the computation. Returns at once; the engine stops within one step."""
        if not self._outlet.done:
            self._outlet.cancelled = True
            self._on_cancel()

    def close(self) -> None:
        """`cancel`, under the name contextlib.closing knows."""
        self.cancel()

    async def aclose(self) -> None:
        """`cancel`, under the name contextlib.aclosing knows."""
        self.cancel()

    def __del__(self) -> None:
        self.cancel()


class DeferredGeneration(Generation):
    """A Generation that begins when it is first asked for something, in an event loop without blocking it.

    To make tokens of a long prompt, to compile a grammar or to load the model takes longer than a loop may
    stand still. Errors of the start are raised where it is first asked, and each time after that.
    """

    def __init__(self, start: Callable[[], Generation], at_once: Callable[[], bool]) -> None:
        """at_once: whether `start` is so quick that an event loop may call it."""
        self._start = start
        self._at_once = at_once
        self._lock = threading.Lock()  # held while it starts
        self._inner: Generation | None = None
        self._error: BaseException | None = None
        self._cancelled = False

    def _begin(self) -> Generation:
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._inner is None:
                try:
                    if self._cancelled:
                        raise CancelledError("the generation was cancelled before it began")
                    self._inner = self._start()
                except BaseException as error:
                    self._error = error
                    raise
                if self._cancelled:
                    self._inner.cancel()
            return self._inner

    async def _abegin(self) -> Generation:
        if self._inner is not None:
            return self._inner
        if self._at_once() and not self._lock.locked():
            return self._begin()
        try:
            return await asyncio.to_thread(self._begin)
        except asyncio.CancelledError:
            self.cancel()  # the thread goes on, and finds this when it has begun
            raise

    def __next__(self) -> Delta:
        return next(self._begin())

    async def __anext__(self) -> Delta:
        return await anext(await self._abegin())

    def queued(self) -> list[Delta]:
        return [] if self._inner is None else self._inner.queued()

    def result(self, timeout: float | None = None) -> Reply:
        return self._begin().result(timeout)

    async def aresult(self) -> Reply:
        return await (await self._abegin()).aresult()

    @property
    def done(self) -> bool:
        return self._error is not None or (self._inner is not None and self._inner.done)

    def cancel(self) -> None:
        self._cancelled = True
        if self._inner is not None:
            self._inner.cancel()


def abandon(generation: Generation, error: BaseException) -> None:
    """End a generation with `error`, if it has not ended yet, and stop its computation."""
    if not generation.done:
        generation._outlet.fail(error)
        generation._outlet.cancelled = True
        generation._on_cancel()


_outlets: weakref.WeakSet[Outlet[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for outlet in list(_outlets):
        outlet.leave_behind()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
