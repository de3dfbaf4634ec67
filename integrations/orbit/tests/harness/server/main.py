"""The routes that chats take, and what happens on the way: how Orbit's server starts, which arguments its
pipeline passes to a provider, how it leaves a stream, and what it answers."""

from __future__ import annotations

import argparse
import asyncio
import copy
import importlib
import json
import logging
import os
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

from ai_services.base import ServiceType
from ai_services.errors import sanitize_provider_error
from ai_services.factory import AIServiceFactory
from ai_services.registry import register_inference_services

logger = logging.getLogger("harness")

SYSTEM = "You are a helpful assistant.\n\nAnswer based on the system prompt. Maintain your persona."


def load_config(path: Path) -> dict[str, Any]:
    """A file and those it imports. Values from the environment are strings, and "" where there are none."""
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    for name in config.pop("import", []):
        config = {**load_config(path.parent / name), **config}
    substituted: dict[str, Any] = _substitute(config)
    return substituted


def _substitute(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_substitute(entry) for entry in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda m: os.environ.get(m[1]) or m[2] or "", value)
    return value


class Server:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.adapter = config["adapters"][0]
        self.stops: dict[str, asyncio.Event] = {}
        self.history: dict[str, list[dict[str, str]]] = {}
        self.provider: Any = None
        self.implementation: Any = None

    async def start(self) -> None:
        """The provider first, which may fail; then the module that implements the adapter."""
        register_inference_services(self.config)
        try:
            await self.preload()
        except ValueError as error:
            logger.error("could not preload: %s", error)
        module, _, name = self.adapter["implementation"].rpartition(".")
        self.implementation = getattr(importlib.import_module(module), name)(copy.deepcopy(self.config))
        await self.implementation.initialize()

    async def preload(self) -> Any:
        if self.provider is None:
            config = copy.deepcopy(self.config)
            self.provider = AIServiceFactory.create_service(ServiceType.INFERENCE, "bitnet", config)
            await self.provider.initialize()  # whatever it returns
        return self.provider

    async def stop(self) -> None:
        await self.implementation.close()
        if self.provider is not None:
            await self.provider.close()

    def arguments(self, session: str, question: str) -> dict[str, Any]:
        turns = [{"role": "system", "content": SYSTEM}, *self.history.get(session, ())]
        return {
            "prompt": f"{SYSTEM}\n\nUser: {question}",
            "messages": [*turns, {"role": "user", "content": question}],
            "cache_prefix_len": len(SYSTEM),
            "web_search": True,
        }

    def remember(self, session: str, question: str, answer: str) -> None:
        self.history.setdefault(session, []).extend(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        )

    async def chat(self, session: str, question: str) -> dict[str, Any]:
        usage: dict[str, Any] = {}
        try:
            provider = await self.preload()
            answer = await provider.generate_tracked(**self.arguments(session, question), usage_sink=usage)
        except Exception as error:
            logger.exception("generation failed")
            return {"error": sanitize_provider_error(error)}
        self.remember(session, question, answer)
        return {"response": answer, "metadata": {"usage": usage}}

    async def pipeline(self, session: str, question: str, stop: asyncio.Event) -> AsyncGenerator[str, None]:
        """Pieces of the answer. A stop is noticed with the next piece, and the provider's stream is left."""
        answer = ""
        try:
            provider = await self.preload()
            stream = provider.generate_stream_tracked(**self.arguments(session, question), usage_sink={})
            async for piece in stream:
                if stop.is_set():
                    return
                answer += piece
                yield piece
                await asyncio.sleep(0)
        except Exception as error:
            logger.exception("streaming failed")
            yield sanitize_provider_error(error)
            return
        self.remember(session, question, answer)

    async def stream(self, session: str, question: str) -> AsyncGenerator[str, None]:
        request_id = str(uuid.uuid4())
        stop = self.stops[request_id] = asyncio.Event()
        try:
            yield _event({"request_id": request_id})
            async for piece in self.pipeline(session, question, stop):
                if stop.is_set():
                    return
                yield _event({"response": piece, "done": False})
            if not stop.is_set():
                yield _event({"done": True})
        finally:
            del self.stops[request_id]


def _event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values)}\n\n"


def make_app(server: Server) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await server.start()
        yield
        await server.stop()

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    async def asked(request: Request) -> tuple[str, str, bool]:
        body = await request.json()
        return request.headers["x-session-id"], body["messages"][-1]["content"], body.get("stream", False)

    @app.post("/v1/chat")
    async def chat(request: Request) -> Any:
        session, question, streamed = await asked(request)
        if streamed:
            return StreamingResponse(server.stream(session, question), media_type="text/event-stream")
        return await server.chat(session, question)

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Any:
        session, question, _ = await asked(request)
        result = await server.chat(session, question)
        if "error" in result:
            raise HTTPException(500, result["error"])
        message = {"role": "assistant", "content": result["response"]}
        return {"choices": [{"message": message}], "usage": result["metadata"]["usage"]}

    @app.post("/v1/chat/stop")
    async def stop(request: Request) -> dict[str, str]:
        event = server.stops.get((await request.json())["request_id"])
        if event is None:
            return {"status": "not_found"}
        event.set()
        return {"status": "cancelled"}

    return app


def create_app() -> FastAPI:
    """For the worker processes of `performance.workers`."""
    return make_app(Server(load_config(Path(os.environ["OIS_CONFIG_PATH"]))))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    path = parser.parse_args().config
    logging.basicConfig(level=logging.INFO)
    config = load_config(path)
    general = config["general"]
    address: dict[str, Any] = {"host": general["host"], "port": int(general["port"])}
    workers = config.get("performance", {}).get("workers", 1)
    if workers > 1:
        os.environ["OIS_CONFIG_PATH"] = str(path)
        uvicorn.run("main:create_app", factory=True, workers=workers, **address)
    else:
        uvicorn.run(make_app(Server(config)), **address)


if __name__ == "__main__":
    main()
