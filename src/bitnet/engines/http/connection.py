"""Requests to one server: sent, sent again where that is safe, and taken apart as they are answered.

Everything here runs in the event loop of loop.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import tenacity

from bitnet.errors import (
    BitNetError,
    ModelNotFoundError,
    ServerError,
    ServerUnreachableError,
    StreamInterruptedError,
    ValidationError,
)

from .answers import Answers, odd_reason, together
from .bodies import Call
from .faults import NoSuchPathError, Refusal, in_stream, refusal
from .loop import ClientLoop
from .options import Address, Retry, Secret, Timeout
from .servers import Server, identify
from .sse import EventParser

logger = logging.getLogger("bitnet")

Result = TypeVar("Result")

_MAX_BODY_BYTES = 256 * 2**20
_MAX_ERROR_BYTES = 64 * 2**10
_MAX_REDIRECTS = 5
_SECONDS_TO_END = 0.25  # for a server to end its response after it said that it is done
# Servers close connections that are not used: uvicorn after five seconds. One that is just being closed
# cannot be told from one that works.
_KEEP_IDLE_SECONDS = 4.0


class Connection:
    """What a client knows of its server. May be used from one ClientLoop at a time."""

    def __init__(
        self,
        address: Address,
        *,
        model: str | None,
        key: Secret | None,
        timeout: Timeout,
        retry: Retry,
        verify: bool | str,
        proxy: Secret | None,
    ) -> None:
        self.address = address
        self._model = model
        self._key = key
        self._timeout = timeout
        self._retry = retry
        self._verify = verify
        self._proxy = proxy
        self._no_stream_options = False  # the server refuses them
        self.server: Server | None = None

    def make_client(self) -> httpx.AsyncClient:
        """A client with the key and the addresses of proxies in it."""
        headers = {"user-agent": "bitnet-cpp", "accept-encoding": "identity"}
        auth: httpx.Auth | None = None
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key.reveal()}"
        elif self.address.password is not None or self.address.username:
            password = "" if self.address.password is None else self.address.password.reveal()
            auth = httpx.BasicAuth(self.address.username, password)
        proxy = None if self._proxy is None else self._proxy.reveal()
        return httpx.AsyncClient(
            headers=headers,
            auth=auth,
            verify=self._tls(),
            proxy=proxy or None,
            trust_env=proxy != "",
            timeout=httpx.Timeout(None, connect=self._timeout.connect_seconds),
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=64, keepalive_expiry=_KEEP_IDLE_SECONDS
            ),
            follow_redirects=False,
        )

    def _tls(self) -> ssl.SSLContext | bool:
        if self._verify is False:
            logger.warning("the certificate of %s is not verified (verify=False)", self.address.root)
            return False
        if isinstance(self._verify, str):
            try:
                if os.path.isdir(self._verify):
                    return ssl.create_default_context(capath=self._verify)
                return ssl.create_default_context(cafile=self._verify)
            except OSError as error:
                raise ValidationError(
                    f"verify: cannot read certificates from {self._verify!r}: {error}", field="verify"
                ) from None
        # Without TLS there is nothing to verify, and it takes long to read all certificates.
        return not (self.address.root.startswith("http:") and self._proxy is None)

    async def identify(self, loop: ClientLoop, deadline: float | None, *, again: bool = False) -> Server:
        """The server, asked what it is when that is not known yet. Raises what asking raises."""
        if self.server is None or again:
            async with loop.lock:  # one of those who wait asks
                if self.server is None or again:
                    self.server = await self._identify(loop, deadline)
        return self.server

    async def _identify(self, loop: ClientLoop, deadline: float | None) -> Server:
        root = self.address.root
        models, product, api = None, "", f"{root}/v1"
        for prefix in (f"{root}/v1",) if self.address.says_v1 else (f"{root}/v1", root):
            try:
                models, product = await self.get(loop, f"{prefix}/models", deadline)
            except (NoSuchPathError, ModelNotFoundError):
                continue
            api = prefix
            break
        props = None
        with contextlib.suppress(BitNetError):  # anything but a llama-server answers what it likes
            props, _ = await self.get(loop, f"{root}/props", deadline, again=False)
        server = identify(root, api, self._model, models, props, product)
        logger.debug("%s is %s, model %r", root, server.title, server.model)
        return server

    async def get(
        self, loop: ClientLoop, url: str, deadline: float | None, *, again: bool = True
    ) -> tuple[Any, str]:
        """The JSON at `url`, and the name of the server's software."""

        async def once() -> tuple[Any, str]:
            async with self._response(loop, "GET", url, None) as response:
                return await _json(response), response.headers.get("server", "")

        return await self._repeat(once, deadline) if again else await self._only(once)

    async def post(self, loop: ClientLoop, url: str, body: Mapping[str, Any], deadline: float | None) -> Any:
        """The JSON that answers `body`."""
        content = _encode(body)

        async def once() -> Any:
            async with self._response(loop, "POST", url, content) as response:
                return await _json(response)

        return await self._repeat(once, deadline)

    async def stream(
        self, loop: ClientLoop, call: Call, answers: Callable[[], Answers], deadline: float | None
    ) -> None:
        """The answers to `call`, told to what `answers` gives; that is asked anew for each attempt."""

        async def once() -> None:
            current = answers()
            body = dict(call.body)
            if self._no_stream_options:
                body.pop("stream_options", None)
            try:
                async with self._response(loop, "POST", call.url, _encode(body)) as response:
                    await self._read(response, current)
            except Refusal as refused:
                if current.started:
                    raise _interrupted(str(refused.error), current) from None
                if "stream_options" in body and "stream_options" in str(refused.error):
                    self._no_stream_options = True
                    await once()
                    return
                raise
            except ServerError as error:
                if current.started:
                    raise _interrupted(str(error), current) from None
                raise

        await self._repeat(once, deadline)

    async def _read(self, response: httpx.Response, answers: Answers) -> None:
        events = _events(response)
        async with contextlib.aclosing(events):
            async for name, data in events:
                if data == "[DONE]":
                    # What is left is the end of the body: read, so that the connection can be kept.
                    with contextlib.suppress(asyncio.TimeoutError, httpx.TransportError):
                        await asyncio.wait_for(_rest(events), _SECONDS_TO_END)
                    break
                try:
                    chunk = json.loads(data)
                except (ValueError, RecursionError):
                    raise ServerError(f"the server sent something that is not JSON: {data[:80]!r}") from None
                if not isinstance(chunk, Mapping):
                    raise ServerError(f"the server sent something that is no answer: {data[:80]!r}")
                if chunk.get("error") or name == "error" or chunk.get("object") == "error":
                    raise in_stream(chunk, self._key)
                answers.take(chunk)
                if answers.complete:
                    return
            else:
                if not answers.finished:
                    raise Refusal(ServerUnreachableError("the server closed the connection too early"), True)
        if (reason := odd_reason(answers)) is not None:
            raise _interrupted(f"the server ended the answer with finish_reason {reason!r}", answers)

    async def _repeat(self, once: Callable[[], Awaitable[Result]], deadline: float | None) -> Result:
        """`once`, and again while it raises a Refusal that allows that. Raises the last one's error."""
        policy = self._retry
        most = policy.max_retries + 1 if policy.enabled else 1

        def refused(state: tenacity.RetryCallState) -> Refusal:
            error = state.outcome.exception() if state.outcome is not None else None
            assert isinstance(error, Refusal)
            return error

        def is_enough(state: tenacity.RetryCallState) -> bool:
            wait = policy.shortest_wait(state.attempt_number, refused(state).retry_after)
            # Better the server's own words now than a timeout after waiting for nothing.
            too_late = deadline is not None and time.monotonic() + wait >= deadline
            return state.attempt_number >= most or too_late

        def wait(state: tenacity.RetryCallState) -> float:
            return policy.wait(state.attempt_number, refused(state).retry_after)

        def tell(state: tenacity.RetryCallState) -> None:
            logger.info("attempt %d: %s; trying again", state.attempt_number, refused(state).error)

        retrying = tenacity.AsyncRetrying(
            sleep=asyncio.sleep,
            stop=is_enough,
            wait=wait,
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, Refusal) and error.again),
            before_sleep=tell,
            reraise=True,
        )
        return await self._only(lambda: retrying(once))

    async def _only(self, once: Callable[[], Awaitable[Result]]) -> Result:
        try:
            return await once()
        except Refusal as refused:
            error = refused.error
        raise error

    @contextlib.asynccontextmanager
    async def _response(
        self, loop: ClientLoop, method: str, url: str, content: bytes | None
    ) -> AsyncIterator[httpx.Response]:
        """The response with a status below 300, its body not read. Raises Refusal and ServerError."""
        try:
            response = await self._send(loop, method, url, content)
            try:
                if response.status_code >= 300:
                    body = await _body(response, _MAX_ERROR_BYTES, cut=True)
                    raise refusal(response.status_code, response.headers, body, self._key)
                yield response
            finally:
                await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            why = str(error) or "it took too long"
            root = self.address.root
            raise Refusal(ServerUnreachableError(f"no connection to {root}: {why}"), True) from None
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            raise Refusal(ServerUnreachableError(f"the connection was lost: {why}"), True) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerError(f"the server's answer cannot be read: {error}") from None

    async def _send(self, loop: ClientLoop, method: str, url: str, content: bytes | None) -> httpx.Response:
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._send_once(loop, method, url, content)
            location = response.headers.get("location")
            if response.status_code not in (301, 302, 303, 307, 308) or location is None:
                return response
            await response.aclose()
            target = str(httpx.URL(url).join(location))
            # The key is for this server only, and a POST must not become a GET.
            if _origin(target) != _origin(url) or (method == "POST" and response.status_code < 307):
                shown = "{0.scheme}://{0.netloc}{0.path}".format(urlsplit(target))
                raise ServerError(f"the server wants to be asked at {shown}; set base_url to where it is")
            url = target
        raise ServerError(f"the server sends from one address to the next: {url}")

    async def _send_once(
        self, loop: ClientLoop, method: str, url: str, content: bytes | None
    ) -> httpx.Response:
        headers = {"accept": "text/event-stream, application/json"}
        if content is not None:
            headers["content-type"] = "application/json"
        opened: list[Any] = []
        while True:
            fresh = False

            async def trace(name: str, information: dict[str, Any]) -> None:
                nonlocal fresh
                fresh = fresh or name.startswith("connection.")
                if name == "connection.connect_tcp.complete":
                    opened.append(information["return_value"])
                loop.trace(name, information)

            request = loop.client.build_request(
                method, url, content=content, headers=headers, extensions={"trace": trace}
            )
            try:
                return await loop.client.send(request, stream=True)
            except asyncio.CancelledError:
                for stream in opened:  # httpcore forgets one that it has only just made
                    await stream.aclose()
                raise
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                # A connection that was kept, and that the server closed at the same moment: nothing was
                # computed, and there are only so many of them.
                if fresh:
                    raise


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


async def _body(response: httpx.Response, most: int, *, cut: bool = False) -> bytes:
    body = bytearray()
    async for data in response.aiter_bytes():
        body += data
        if len(body) > most:
            if cut:
                break
            raise ServerError(f"the server's answer has more than {most >> 20} MiB")
    return bytes(body[:most])


async def _rest(events: AsyncIterator[object]) -> None:
    async for _ in events:
        pass


async def _json(response: httpx.Response) -> Any:
    body = await _body(response, _MAX_BODY_BYTES)
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        kind = response.headers.get("content-type", "something")
        raise ServerError(f"the server answered {kind} where JSON was expected: {body[:80]!r}") from None


async def _events(response: httpx.Response) -> AsyncGenerator[tuple[str, str], None]:
    """The events of a stream, as (name, data). A body of JSON is one event, whatever it is declared to be."""
    parser = EventParser()
    kind: bytes | None = None  # the first character
    pieces = response.aiter_bytes()
    body = bytearray()
    async for data in pieces:
        if kind is None:
            start = data.lstrip(b"\xef\xbb\xbf \t\r\n")
            if not start:
                continue
            kind = start[:1]
            if kind == b"<":
                raise ServerError("the server answered with a page of HTML; is base_url right?")
        if kind == b"{":
            body += data
            if len(body) > _MAX_BODY_BYTES:
                raise ServerError(f"the server's answer has more than {_MAX_BODY_BYTES >> 20} MiB")
            continue
        for event in parser.feed(data):
            yield event
    if body:
        yield "", body.decode(errors="replace")
        yield "", "[DONE]"
    for event in parser.close():
        yield event


def _interrupted(message: str, answers: Answers) -> StreamInterruptedError:
    return StreamInterruptedError(f"the answer broke off: {message}", together([answers], "cancelled"))
