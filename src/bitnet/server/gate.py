"""Who gets in, and what became of them: the outermost layer around all endpoints.

Plain ASGI: a layer of Starlette's BaseHTTPMiddleware would cost more than all the rest, and hide from the
endpoints that a client has gone.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from bitnet.server.errors import ApiError, ClientGone, as_api_error, overloaded, unavailable
from bitnet.server.exchange import Exchange, Message
from bitnet.server.service import Service

access_log = logging.getLogger("bitnet.server.access")

# Told to everybody: they say nothing but that there is a server. Kubernetes and load balancers have no key.
OPEN_PATHS = frozenset({"/", "/health", "/health/live", "/health/ready"})
# Answered while the server drains: those who watch it must be able to.
_WATCHING_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/metrics", "/v1/metrics"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CLIENT_GONE = 499  # nginx's: for the log and the metrics, nobody receives it

App = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


class Gate:
    """ASGI middleware. allowed_hosts: names in the Host header that are answered; None = all."""

    def __init__(self, app: App, service: Service, allowed_hosts: Collection[str] | None) -> None:
        self._app = app
        self._service = service
        self._allowed_hosts = None if allowed_hosts is None else frozenset(map(str.lower, allowed_hosts))

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            else:
                await self._app(scope, receive, send)
            return
        exchange = Exchange(self._service, scope, receive, send, _request_id(scope))
        scope["bitnet.exchange"] = exchange
        service = self._service
        service.enter()
        status = 0
        try:
            try:
                self._admit(exchange)
                await self._app(scope, receive, send)
            except ClientGone:
                status = _CLIENT_GONE
            except Exception as error:
                if exchange.status:
                    raise  # in the middle of a response: the host of this app closes the connection
                with contextlib.suppress(ClientGone):  # nobody is left to be told
                    await exchange.send_error(as_api_error(error, exchange.id, exchange.names))
        finally:
            service.leave()
            self._note(exchange, status or exchange.status or 500)

    def _admit(self, exchange: Exchange) -> None:
        """Raises ApiError for whoever does not get in."""
        service = self._service
        self._check_browser(exchange)
        tenant = service.keys.tenant(exchange.header(b"authorization"))
        if tenant is None and exchange.path not in OPEN_PATHS:
            raise ApiError(
                401,
                "a valid API key is needed: send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers=((b"www-authenticate", b"Bearer"),),
            )
        exchange.tenant = tenant or ""
        if exchange.path in _WATCHING_PATHS:
            return
        if service.draining:
            raise unavailable("the server is shutting down and takes no new requests")
        if service.n_requests > service.limits.max_requests:
            raise overloaded(
                f"more than {service.limits.max_requests} requests are under way; try again later"
            )

    def _check_browser(self, exchange: Exchange) -> None:
        """Keep web pages of others away from a server that trusts whoever reaches it.

        A page cannot choose these two headers. The Host tells the name that the browser believes to talk to:
        a foreign one that was made to point here (DNS rebinding) is not among the allowed ones. The Origin
        tells whose page sends a request.
        """
        host = exchange.header(b"host") or ""
        if self._allowed_hosts is not None and _host_name(host) not in self._allowed_hosts:
            raise ApiError(
                403,
                f"this server does not answer under the name {_host_name(host)!r:.200}; if it should, start "
                "it with --allowed-host",
                code="host_not_allowed",
            )
        origin = exchange.header(b"origin")
        if origin is not None and not self._service.keys and urlsplit(origin).netloc != host:
            raise ApiError(
                403,
                "pages of other sites may not use this server (CORS is off)",
                code="origin_not_allowed",
            )

    def _note(self, exchange: Exchange, status: int) -> None:
        seconds = time.perf_counter() - exchange.started_at
        self._service.metrics.ended(exchange, status, seconds)
        if access_log.isEnabledFor(logging.INFO):
            client = exchange.scope.get("client")
            usage = exchange.usage
            access_log.info(
                "%s %s %.200s %d %.1f ms%s%s id=%s",
                client[0] if client else "-",
                exchange.method,
                # Printable and without a query string: a log line is one line, and keeps no secrets.
                exchange.path.encode("unicode_escape").decode(),
                status,
                seconds * 1e3,
                f" model={exchange.model}" if exchange.model else "",
                ""
                if usage is None
                else f" tokens={usage.prompt_tokens}({usage.cached_tokens})+{usage.completion_tokens}",
                exchange.id,
            )


def _request_id(scope: MutableMapping[str, Any]) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(text):
                return str(text)
    return secrets.token_hex(8)


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
