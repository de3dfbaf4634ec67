"""The app on a real socket, in a thread, under the same uvicorn protocol as `bitnet serve`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from bitnet.server.app import service_of
from bitnet.server.protocol import protocol_class
from bitnet.server.runner import Listening
from bitnet.server.service import Service

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@dataclass
class Hosted:
    """A running server. url: without /v1."""

    app: FastAPI
    port: int
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def service(self) -> Service:
        return service_of(self.app)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def client(self, **options: Any) -> httpx.Client:
        # To read the system's certificates would take longer than many a test.
        return httpx.Client(base_url=self.url, timeout=60, verify=False, trust_env=False, **options)


@contextlib.contextmanager
def hosted(
    app: FastAPI, listening: Listening | None = None, send_buffer: int | None = None
) -> Iterator[Hosted]:
    """send_buffer: bytes the system keeps for a client that does not read; None = as many as it likes."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=512)
    if send_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    config = uvicorn.Config(
        app,
        http=protocol_class(listening or Listening()),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[sock])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="hosted")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            thread.join(0.005)
        yield Hosted(app, sock.getsockname()[1], loops[0])
    finally:
        server.should_exit = True
        thread.join(20)
        sock.close()
        assert not thread.is_alive(), "the server did not stop"
