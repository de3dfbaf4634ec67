"""uvicorn around the app, for `bitnet serve`: listening, logging, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from bitnet.errors import BitNetError
from bitnet.server.app import service_of
from bitnet.server.protocol import protocol_class

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger("bitnet.server")

# Making tokens of prompts and compiling grammars; more than cores, because hostile grammars take seconds.
_N_WORKERS = 32
# For the last bytes to reach their clients once all computations have ended.
_FLUSH_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where to listen, and how long to wait for whom.

    drain_seconds: for requests under way, when the server is told to stop.
    receive_seconds: for a client to send a whole request, or to begin with one. stall_seconds: for a client
    to read what it was sent. idle_seconds: for the next request on a connection. max_connections: in all.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    drain_seconds: float = 30.0
    receive_seconds: float = 30.0
    stall_seconds: float = 30.0
    idle_seconds: float = 75.0
    max_connections: int = 1024


def run(app: FastAPI, listening: Listening) -> None:
    """Serve until SIGTERM or SIGINT (Ctrl-C), then until running requests are answered; a second ends it at
    once, with KeyboardInterrupt.

    The default model is loaded before anything is answered. Raises BitNetError: what loading raises, or that
    the port cannot be listened on.
    """
    sock = _listen(listening.host, listening.port)
    try:
        forced = _run(_serve(app, sock, listening))
    finally:
        sock.close()
    if forced:
        raise KeyboardInterrupt


def _run(main: Coroutine[Any, Any, bool]) -> bool:
    """In a new event loop, that of uvloop where there is one: it takes less time per request and token."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such port"
        raise BitNetError(f"cannot listen on {_address(host, port)}: {reason or error}") from None


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Server(uvicorn.Server):
    """Signals are ours: uvicorn would stop listening at once, and end with the signal's status."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(app: FastAPI, sock: socket.socket, listening: Listening) -> bool:
    """Returns whether it was told to end at once."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_N_WORKERS, thread_name_prefix="bitnet-server"))
    service = service_of(app)
    config = uvicorn.Config(
        app,
        http=protocol_class(listening),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(listening.idle_seconds),
        timeout_graceful_shutdown=int(_FLUSH_SECONDS),
    )
    server = _Server(config)
    told_to_stop = asyncio.Event()

    def stop() -> None:
        if told_to_stop.is_set():
            server.force_exit = True
            for watch in list(service.watches):
                watch.stop("shutdown")
        told_to_stop.set()

    with _signals(lambda: loop.call_soon_threadsafe(stop)):
        await service.models.default.load()
        names = ", ".join(service.models)
        host, port = sock.getsockname()[:2]
        logger.info("serving %s on http://%s (OpenAI's API under /v1)", names, _address(host, port))

        async def drain() -> None:
            await told_to_stop.wait()
            logger.info(
                "stopping: %d requests under way get %g s", service.n_requests, listening.drain_seconds
            )
            if not await service.drain(listening.drain_seconds):
                logger.warning("stopped what was not answered within %g s", listening.drain_seconds)
            server.should_exit = True

        draining = loop.create_task(drain())
        try:
            await server.serve(sockets=[sock])
        finally:
            draining.cancel()
    logger.info("stopped")
    return server.force_exit


@contextlib.contextmanager
def _signals(stop: Any) -> Iterator[None]:
    """Calls `stop` for each signal to end; in the main thread only, where Python handles signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
