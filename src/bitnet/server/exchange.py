"""One HTTP request and its response, on plain ASGI: reading JSON, sending JSON or a stream of events.

It notes what the log and the metrics tell of a request. Which requests get in is for the gate to say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from bitnet.server import strict_json
from bitnet.server.errors import ApiError, ClientGone
from bitnet.values import Usage

if TYPE_CHECKING:
    from bitnet.server.service import Service

Message = MutableMapping[str, Any]
Headers = tuple[tuple[bytes, bytes], ...]

PARAMETER_NAMES: Mapping[str, str] = {"template_args": "chat_template_kwargs"}
_JSON = (b"content-type", b"application/json")
_EVENTS: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events otherwise
)
# How many times the largest body that is allowed is read and thrown away before an error is sent.
_DISCARDED_BODIES = 4


class Exchange:
    """A request and its response.

    id: in the log, in the header x-request-id and in errors. tenant: salt that keeps what is computed for one
    API key apart from the others'; "" = everybody's. route: the endpoint, for metrics; "" = none.
    status: that was sent, 0 = none yet; `ended`: the whole response was sent. names: what parameters are
    called here, by their names as options of BitNet.
    """

    __slots__ = (
        "_more_body",
        "ended",
        "id",
        "method",
        "model",
        "names",
        "path",
        "receive",
        "route",
        "scope",
        "send",
        "service",
        "started_at",
        "status",
        "tenant",
        "usage",
    )

    def __init__(
        self,
        service: Service,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        request_id: str,
    ) -> None:
        self.service = service
        self.scope = scope
        self.receive = receive
        self.send = send
        self.id = request_id
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.started_at = time.perf_counter()
        self._more_body = True
        self.tenant = ""
        self.route = ""
        self.status = 0
        self.ended = False
        self.model = ""
        self.usage: Usage | None = None
        self.names: Mapping[str, str] = PARAMETER_NAMES

    def header(self, name: bytes) -> str | None:
        """The value of a header, its name in lower case; the first if there are several."""
        for key, value in self.scope["headers"]:
            if key == name:
                return str(value.decode("latin-1"))
        return None

    async def read_json(self) -> dict[str, Any]:
        """The JSON object in the body. Raises ApiError and ClientGone."""
        limit = self.service.limits.max_body_bytes
        announced = self.header(b"content-length")
        if announced is not None and announced.isdigit() and int(announced[:20]) > limit:
            raise _too_large(limit)
        chunks: list[bytes] = []
        size = 0
        while self._more_body:
            chunks.append(await self._receive_body())
            size += len(chunks[-1])
            if size > limit:
                raise _too_large(limit)
        return strict_json.parse(chunks[0] if len(chunks) == 1 else b"".join(chunks))

    async def _receive_body(self) -> bytes:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        self._more_body = message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk

    async def _discard_body(self) -> None:
        """Read what is left of the body, unless that is very much.

        A client that is still sending when the connection is closed may never see why.
        """
        rest = _DISCARDED_BODIES * self.service.limits.max_body_bytes
        while self._more_body and rest > 0:
            rest -= len(await self._receive_body())

    async def send_json(self, value: Any, status: int = 200, headers: Headers = ()) -> None:
        await self.send_bytes(strict_json.dump(value), (_JSON, *headers), status)

    async def send_bytes(self, body: bytes, headers: Headers, status: int = 200) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, (*headers, length))
        await self.write(body, last=True)

    async def send_error(self, error: ApiError) -> None:
        await self._discard_body()
        close: Headers = ((b"connection", b"close"),) if self._more_body else ()
        await self.send_json(error.to_dict(), error.status, (*error.headers, *close))

    async def start_events(self) -> None:
        await self.start(200, _EVENTS)

    async def start(self, status: int, headers: Headers) -> None:
        self.status = status
        own: list[tuple[bytes, bytes]] = [*headers, (b"x-request-id", self.id.encode())]
        own.append((b"x-content-type-options", b"nosniff"))
        if self.service.draining:
            own.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": status, "headers": own})

    async def write(self, body: bytes, *, last: bool = False) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": not last})
        self.ended = last


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body has more than the {limit} bytes that are allowed here", code="too_large")


class EventStream:
    """Server-sent events. The response starts with the first of them, or with a comment that keeps it alive.

    Until it has started, an error can still be an ordinary response.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._heartbeat_seconds = exchange.service.limits.heartbeat_seconds
        self._loop = asyncio.get_running_loop()
        self._wrote_at = self._loop.time()
        self._timer = self._loop.call_later(self._heartbeat_seconds, self._tick)
        self._beat: asyncio.Task[None] | None = None
        self._writing = False

    @property
    def started(self) -> bool:
        return self._exchange.status != 0

    async def write(self, events: bytes, *, last: bool = False) -> None:
        if self._beat is not None:
            await self._beat  # one at a time
            self._beat = None
        await self._write(events, last)

    async def _write(self, events: bytes, last: bool) -> None:
        self._writing = True
        try:
            if not self._exchange.status:
                await self._exchange.start_events()
            await self._exchange.write(events, last=last)
        finally:
            self._writing = False
            self._wrote_at = self._loop.time()

    def close(self) -> None:
        self._timer.cancel()
        if self._beat is not None:
            self._beat.cancel()

    def _tick(self) -> None:
        quiet_for = self._loop.time() - self._wrote_at
        if self._writing:  # to a client that is slow to read
            quiet_for = 0
        elif quiet_for >= self._heartbeat_seconds:
            self._beat = self._loop.create_task(self._write(b": still computing\n\n", False))
            quiet_for = 0
        self._timer = self._loop.call_later(self._heartbeat_seconds - quiet_for, self._tick)
