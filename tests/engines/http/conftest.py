"""Scripted servers, and models that ask them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from scripted_server import KEY, ScriptedServer, openai_routes

from bitnet import BitNet

Scripted = Callable[..., ScriptedServer]
Connect = Callable[..., BitNet]

# So short that a test may wait for them.
QUICK = {"initial_wait_ms": 5, "max_wait_ms": 20}


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """Starts servers with routes: openai_routes() and what is given."""
    with contextlib.ExitStack() as stack:

        def start(routes: Mapping[str, Any] | None = None, port: int = 0, **more: Any) -> ScriptedServer:
            server = ScriptedServer({**(openai_routes() if routes is None else routes), **more}, port)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Models that ask a server, with quick retries."""
    with contextlib.ExitStack() as stack:

        def start(server: ScriptedServer | str, **options: Any) -> BitNet:
            url = server if isinstance(server, str) else server.url
            options = {"api_key": KEY, "retry": QUICK, "lazy": True, **options}
            return stack.enter_context(BitNet(base_url=url, **options))

        yield start
