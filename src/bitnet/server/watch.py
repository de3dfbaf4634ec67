"""Stops a computation that nobody waits for any more, or not any longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

from bitnet.server.errors import ApiError, ClientGone, unavailable
from bitnet.server.exchange import Exchange

Reason = Literal["disconnect", "deadline", "shutdown"]


class Watch:
    """While it is open: calls `cancel` once, when the client goes away, time is up or the server stops.

    The body of the request must have been read: from then on the only thing that a client can say is goodbye.
    """

    def __init__(self, exchange: Exchange, cancel: Callable[[], object]) -> None:
        """cancel: called in the event loop; must not wait."""
        self.reason: Reason | None = None
        self._exchange = exchange
        self._cancel = cancel
        loop = asyncio.get_running_loop()
        elapsed = time.perf_counter() - exchange.started_at
        seconds = exchange.service.limits.request_seconds
        self._timer = loop.call_later(max(0.0, seconds - elapsed), self.stop, "deadline")
        self._task = loop.create_task(self._wait_for_goodbye())
        exchange.service.watches.add(self)

    async def _wait_for_goodbye(self) -> None:
        while (await self._exchange.receive())["type"] != "http.disconnect":
            pass
        self.stop("disconnect")

    def stop(self, reason: Reason) -> None:
        if self.reason is None and not self._exchange.ended:
            self.reason = reason
            self._exchange.service.metrics.stopped(reason)
            self._cancel()

    def check(self) -> None:
        """Raises what the client is to be told, if the computation was stopped."""
        if self.reason == "disconnect":
            raise ClientGone
        if self.reason == "deadline":
            seconds = self._exchange.service.limits.request_seconds
            raise ApiError(
                504, f"the request took longer than the {seconds:g} s it may take", code="deadline_exceeded"
            )
        if self.reason == "shutdown":
            raise unavailable("the server is shutting down")

    def close(self) -> None:
        self._timer.cancel()
        self._task.cancel()
        self._exchange.service.watches.discard(self)
