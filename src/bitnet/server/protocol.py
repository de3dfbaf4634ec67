"""uvicorn's HTTP protocol, with time limits for clients: it has none for those that send or read slowly.

A connection that exceeds one is aborted, which the request on it sees as a client that went away.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Literal

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

    class Limited(_Limits, base):  # type: ignore[misc]  # its base is known when it runs
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
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # asyncio does so only where a socket says that its protocol is TCP, and accepted ones may not.
            # Without it, the second packet of a response waits 40 ms for the client's acknowledgement.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self.limits.max_connections:
            self.transport.abort()
            return
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop("_receiving")
        self._stop("_stalled")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        between_requests = before is None or before.response_complete
        if self._receiving is None:
            self._expect_request()
        if between_requests:
            self._n_head_bytes += len(data)
        super().data_received(data)
        cycle = self.cycle
        if between_requests and cycle is before:  # the head of a request is still coming
            if self._n_head_bytes > MAX_HEAD_BYTES:
                self._abort()
            return
        self._n_head_bytes = 0
        if not cycle.more_body:
            self._stop("_receiving")

    def _expect_request(self) -> None:
        loop = asyncio.get_running_loop()
        self._receiving = loop.call_later(self.limits.receive_seconds, self._abort)

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self._abort()  # closing would wait for a client that does not read
        else:
            super().timeout_keep_alive_handler()  # type: ignore[misc]  # uvicorn's, see protocol_class

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            loop = asyncio.get_running_loop()
            self._stalled = loop.call_later(self.limits.stall_seconds, self._abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("_stalled")

    def _stop(self, name: Literal["_receiving", "_stalled"]) -> None:
        timer = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)

    def _abort(self) -> None:
        self.transport.abort()
