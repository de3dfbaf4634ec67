"""The app: which endpoint answers which path."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from bitnet.model import BitNet
from bitnet.server import chat, completions, embeddings, page, responses, text, watching
from bitnet.server.errors import ApiError
from bitnet.server.exchange import Exchange, Message
from bitnet.server.gate import Gate
from bitnet.server.keys import ApiKeys
from bitnet.server.limits import Limits
from bitnet.server.service import Service
from bitnet.server.serving import ModelSource, ServedModels

Endpoint = Callable[[Exchange], Awaitable[None]]

# Each also under /v1. The busiest come first: they are looked through in this order.
ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/chat/completions", chat.chat_completions),
    ("POST", "/completions", completions.completions),
    ("POST", "/embeddings", embeddings.embeddings),
    ("POST", "/responses", responses.responses),
    ("POST", "/tokenize", text.tokenize),
    ("POST", "/detokenize", text.detokenize),
    ("POST", "/apply-template", text.apply_template),
    ("GET", "/models", watching.models),
    ("GET", "/models/{name:path}", watching.one_model),
    ("GET", "/health", watching.health),
    ("GET", "/health/live", watching.health),
    ("GET", "/health/ready", watching.ready),
    ("GET", "/metrics", watching.metrics),
)


def create_app(
    models: BitNet | Mapping[str, BitNet | ModelSource],
    *,
    api_keys: Iterable[str] | ApiKeys = (),
    limits: Limits | None = None,
    allowed_hosts: Collection[str] | None = None,
    keep_alive: float = -1,
) -> FastAPI:
    """The server as an ASGI app, for uvicorn or any other host.

        app = create_app(BitNet("model.gguf"))

    models: one, under the name it has in its file, or several by name. Functions are called for a BitNet made
        with lazy=True when somebody first asks for it.
    api_keys: who sends one of them gets in; none = everybody does.
    allowed_hosts: names in the Host header that are answered, None = all. Where everybody gets in and the
        server listens on this machine only, name it, or web pages can reach it by DNS rebinding.
    keep_alive: seconds a model stays loaded without requests; negative = as long as the app runs. Only models
        from functions are unloaded: a BitNet belongs to whoever made it.
    """
    keys = api_keys if isinstance(api_keys, ApiKeys) else ApiKeys(api_keys)
    if isinstance(models, BitNet):
        models = {models.info.name: models}
    sources = {name: _source(model) for name, model in models.items()}
    served = ServedModels(sources, keep_alive=keep_alive)
    service = Service(served, limits or Limits(), keys)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await served.close()

    # No pages about the API: they would fetch scripts from elsewhere.
    app = FastAPI(title="bitnet", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.bitnet = service
    for method, path, endpoint in ROUTES:
        route = _AsApp(endpoint, path)
        for prefix in ("/v1", ""):
            app.router.routes.append(Route(prefix + path, route, methods=[method]))
    app.router.routes.append(Route("/", _AsApp(page.page, "/"), methods=["GET"]))
    app.router.redirect_slashes = False
    app.add_exception_handler(HTTPException, _not_found)
    app.add_middleware(Gate, service=service, allowed_hosts=allowed_hosts)
    return app


def service_of(app: FastAPI) -> Service:
    """What the requests to an app of `create_app` share."""
    service = app.state.bitnet
    assert isinstance(service, Service)
    return service


def _source(model: BitNet | ModelSource) -> ModelSource:
    if isinstance(model, BitNet):
        own = copy.copy(model)  # another lease: to close it leaves theirs open
        return lambda: own
    return model


class _AsApp:
    """An endpoint as an ASGI app, which Starlette calls without anything in between."""

    def __init__(self, endpoint: Endpoint, route: str) -> None:
        self._endpoint = endpoint
        self._route = route

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        exchange: Exchange = scope["bitnet.exchange"]
        exchange.route = self._route
        await self._endpoint(exchange)


async def _not_found(request: Request, error: Exception) -> JSONResponse:
    """Paths that do not exist, and methods that they do not have."""
    assert isinstance(error, HTTPException)
    raise ApiError(
        error.status_code,
        f"there is no {request.method} {request.url.path[:200]!r} here",
        code="not_found",
        headers=tuple((k.lower().encode(), v.encode()) for k, v in (error.headers or {}).items()),
    )
