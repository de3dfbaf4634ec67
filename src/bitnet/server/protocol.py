"""uvicorn's HTTP protocol, with time limits for clients: it has none for those that send or read slowly.

A connection that exceeds one is aborted, which the request on it sees as a client that went away.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet.server.runner import Listening

# Of the request line and all headers; h11, uvicorn's other parser, has the same limit.
MAX_HEAD_BYTES = 64 << 10


def protocol_class(listening: Listening) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn.Config(http=...): on httptools where it is installed, else on h11."""
    base: Any
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as base
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as base

    class Limited(_Limits, base):  # type: ignore[misc]
        limits = listening

    return Limited


class _Limits(asyncio.Protocol):
    """In front of one of uvicorn's protocol classes."""

    limits: Listening
    # Of uvicorn's classes.
    transport: asyncio.Transport
    connections: set[Any]
    cycle: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receiving: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._n_head_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self.transport.abort()
            return
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        if self._receiving is None:
            self._expect_request()
        if before is None or before.response_complete:
            self._n_head_bytes += len(data)
        super().data_received(data)
        cycle = self.cycle
        if cycle is not before:
            self._n_head_bytes = 0
        elif self._n_head_bytes > MAX_HEAD_BYTES and (cycle is None or cycle.response_complete):
            self.transport.abort()
            return
        if cycle is not None and not cycle.more_body and self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None

    def _expect_request(self) -> None:
        loop = asyncio.get_running_loop()
        self._receiving = loop.call_later(self.limits.receive_seconds, self._abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            loop = asyncio.get_running_loop()
            self._stalled = loop.call_later(self.limits.stall_seconds, self._abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _abort(self) -> None:
        self.transport.abort()

    def _stop_timers(self) -> None:
        for timer in (self._receiving, self._stalled):
            if timer is not None:
                timer.cancel()
        self._receiving = self._stalled = None
