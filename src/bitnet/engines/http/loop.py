"""An event loop on a thread of its own, and the HTTP client that lives in it.

Everything that waits for a server waits here, so that no loop of a caller is ever held up, and none is kept.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import httpx

Result = TypeVar("Result")

_SECONDS_TO_CLOSE = 5.0
# Ask a silent server after a minute, and take it for gone after six questions in a minute more.
_KEEP_ALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))


class ClientLoop:
    """Runs coroutines for callers on any thread. client: to be used by those coroutines only."""

    def __init__(self, make_client: Callable[[], httpx.AsyncClient]) -> None:
        self.client = make_client()
        self.lock = asyncio.Lock()  # for those who would all do the same
        self._loop = asyncio.new_event_loop()
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self._tasks: set[asyncio.Task[Any]] = set()  # the loop itself holds them weakly
        self._sockets: list[Any] = []  # of the client's connections, see `trace`
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="bitnet-http", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        await self._stopped
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(Exception):  # whatever a connection says while it is being closed
            await asyncio.wait_for(self.client.aclose(), _SECONDS_TO_CLOSE)

    def spawn(
        self,
        work: Coroutine[Any, Any, None],
        ended: Callable[[asyncio.Task[None]], None],
        seconds: float | None,
    ) -> Callable[[], None]:
        """Run `work` as a task, cancelled after so many seconds; `ended` is called with it in the end.

        Returns a function that cancels it, from any thread and without waiting for locks. Raises
        RuntimeError if this loop is closed.
        """
        tasks: list[asyncio.Task[None]] = []

        def start() -> None:
            task = self._loop.create_task(work)
            tasks.append(task)
            self._tasks.add(task)
            timer = None if seconds is None else self._loop.call_later(seconds, cancel_task)

            def end(task: asyncio.Task[None]) -> None:
                if timer is not None:
                    timer.cancel()
                self._tasks.discard(task)
                ended(task)

            task.add_done_callback(end)

        def cancel_task() -> None:
            # Once only: another time would interrupt httpx while it closes the connection, and leave it open.
            while tasks:
                tasks.pop().cancel()

        def cancel() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the task over
                self._loop.call_soon_threadsafe(cancel_task)

        if self._closing:
            work.close()
            raise RuntimeError("closed")
        try:
            self._loop.call_soon_threadsafe(start)
        except RuntimeError:
            work.close()
            raise
        return cancel

    def submit(self, work: Coroutine[Any, Any, Result]) -> concurrent.futures.Future[Result]:
        """Run `work`; its result, to be waited for anywhere. Cancelling the future cancels the work."""
        future: concurrent.futures.Future[Result] = concurrent.futures.Future()

        async def run() -> None:
            result = await work
            with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled meanwhile
                future.set_result(result)

        def ended(task: asyncio.Task[None]) -> None:
            if task.cancelled():
                future.cancel()
            elif (error := task.exception()) is not None:
                with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled meanwhile
                    future.set_exception(error)

        cancel = self.spawn(run(), ended, None)
        future.add_done_callback(lambda future: cancel() if future.cancelled() else None)
        return future

    def trace(self, name: str, information: dict[str, Any]) -> None:
        """Takes the events of httpcore's trace extension, and notes the sockets of new connections."""
        if name == "connection.connect_tcp.complete":
            self._sockets = [kept for kept in self._sockets if kept.fileno() >= 0]
            connected = information["return_value"].get_extra_info("socket")
            if connected is not None:
                self._sockets.append(connected)
                # A server that is gone without a word is noticed even where there is no total timeout.
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for name, value in _KEEP_ALIVE:
                    if hasattr(socket, name):
                        connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def stop(self, *, wait: bool) -> None:
        """Cancel everything and close the connections. wait: until that is done."""

        def end() -> None:
            if not self._stopped.done():
                self._stopped.set_result(None)

        self._closing = True
        with contextlib.suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(end)
        if wait and self._thread is not threading.current_thread():
            self._thread.join(2 * _SECONDS_TO_CLOSE)

    def leave_behind(self) -> None:
        """In a child process, right after the fork: the thread is in the parent, the connections are shared.

        As long as this process has them open as well, the server does not notice when the parent closes one.
        """
        nothing = os.open(os.devnull, os.O_RDWR)
        for connected in self._sockets:
            if (descriptor := connected.fileno()) >= 0:
                os.dup2(nothing, descriptor)  # not closed: whoever has the number would close another file
        os.close(nothing)
        # Its destructors would take the parent's sockets out of the epoll that both processes share.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
