"""A server that does what a test says: speaks OpenAI's API or llama-server's, or breaks it in every way.

Plain HTTP/1.1 on asyncio, on a thread of its own, so that every byte and every hang-up can be chosen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

KEY = "sk-secret-key-of-the-tests"


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)


class Talk:
    """The server's end of one exchange."""

    def __init__(self, server: ScriptedServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._server = server
        self._reader = reader
        self._writer = writer
        self.keep = True

    async def head(self, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        """A response whose end is the end of the connection."""
        self.keep = False
        await self.send(_head(status, {"content-type": kind, "connection": "close", **_named(headers)}))

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def event(self, value: Any) -> None:
        await self.send(b"data: " + json.dumps(value).encode() + b"\n\n")

    async def whole(
        self, content: bytes, status: int = 200, kind: str = "application/json", **headers: str
    ) -> None:
        """A response with its length, after which the connection is kept."""
        length = str(len(content))
        await self.send(_head(status, {"content-type": kind, "content-length": length, **_named(headers)}))
        await self.send(content)

    async def json(self, value: Any, status: int = 200, **headers: str) -> None:
        await self.whole(json.dumps(value).encode(), status, **headers)

    async def until_gone(self) -> None:
        """Waits until the client hangs up, and notes it."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(1024):
                pass
        self._server.n_gone += 1
        self.keep = False

    def hang_up(self) -> None:
        self.keep = False
        self._writer.transport.abort()


Script = Callable[[Asked, Talk], Awaitable[None]]


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class ScriptedServer:
    """requests: all that came. n_gone: clients that hung up while `until_gone` waited. n_connections: made"""

    def __init__(
        self, routes: Mapping[str, Script | Any], port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        """routes: "GET /path" to a script, or to the JSON that is answered."""
        self.requests: list[Asked] = []
        self.n_gone = 0
        self.n_connections = 0
        self.port = port
        self._tls = tls
        self._routes = dict(routes)
        self._once: dict[str, list[Script]] = {}
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="scripted-server", daemon=True
        )
        self._thread.start()
        started.wait()

    def on(self, route: str, *scripts: Script) -> None:
        """Answer the next requests of this route by these, one after the other, before its usual script."""
        self._once.setdefault(route, []).extend(scripts)

    def replace(self, route: str, script: Script | Any) -> None:
        self._routes[route] = script

    def asked(self, path: str) -> list[Asked]:
        return [request for request in self.requests if request.path == path]

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)

        async def start() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
            self.port = self._server.sockets[0].getsockname()[1]

        self._loop.run_until_complete(start())
        started.set()
        self._loop.run_forever()
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    @property
    def n_open(self) -> int:
        """Connections that are open."""
        return len(self._writers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        self._writers.add(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        asked = Asked(method, path, headers, content)
        self.requests.append(asked)
        talk = Talk(self, reader, writer)
        route = f"{method} {path}"
        waiting = self._once.get(route)
        script = waiting.pop(0) if waiting else self._routes.get(route)
        if script is None:
            await talk.json({"error": {"message": f"no {path}", "type": "not_found_error"}}, 404)
        elif callable(script):
            await script(asked, talk)
        else:
            await talk.json(script)
        return talk.keep


def chat_chunk(
    text: str | None = None, reason: str | None = None, index: int = 0, **more: Any
) -> dict[str, Any]:
    delta: dict[str, Any] = {} if text is None else {"content": text}
    delta |= more.pop("delta", {})
    choice = {"index": index, "delta": delta, "finish_reason": reason, **more}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}},
}


def speak(*texts: str, usage: bool = True, reason: str = "stop") -> Script:
    """A stream of chunks of a conversation."""

    async def script(asked: Asked, talk: Talk) -> None:
        await talk.head()
        await talk.event(chat_chunk(delta={"role": "assistant", "content": ""}))
        for text in texts:
            await talk.event(chat_chunk(text))
        await talk.event(chat_chunk(reason=reason))
        if usage:
            await talk.event(USAGE)
        await talk.send(b"data: [DONE]\n\n")

    return script


def say(status: int, message: str = "not now", **headers: str) -> Script:
    """An error in OpenAI's shape."""

    async def script(asked: Asked, talk: Talk) -> None:
        await talk.json({"error": {"message": message, "type": "error", "code": None}}, status, **headers)

    return script


def send(*pieces: bytes, kind: str = "text/event-stream", hang_up: bool = False) -> Script:
    """These bytes, each in a packet of its own where that can be done."""

    async def script(asked: Asked, talk: Talk) -> None:
        await talk.head(kind=kind)
        for piece in pieces:
            await talk.send(piece)
            await asyncio.sleep(0.002)
        if hang_up:
            talk.hang_up()

    return script


def openai_routes(names: Iterable[str] = ("tiny",)) -> dict[str, Any]:
    models = [{"id": name, "object": "model", "owned_by": "somebody"} for name in names]
    return {
        "GET /v1/models": {"object": "list", "data": models},
        "POST /v1/chat/completions": speak("Hel", "lo", "!"),
    }


def llama_routes(*, modern: bool = True) -> dict[str, Any]:
    """As llama-server answers. modern=False: as that of bitnet.cpp."""
    settings = (
        {"n_ctx": 128, "params": {"temperature": 0.8}} if modern else {"n_ctx": 128, "temperature": 0.8}
    )
    props: dict[str, Any] = {
        "default_generation_settings": settings,
        "total_slots": 2,
        "chat_template": "...",
    }
    entry: dict[str, Any] = {"id": "model.gguf", "object": "model", "owned_by": "llamacpp"}
    meta = {"vocab_type": 1, "n_vocab": 300, "n_ctx_train": 512, "n_embd": 4, "n_params": 1000, "size": 1}
    entry["meta"] = meta
    routes: dict[str, Any] = {
        "GET /v1/models": {"object": "list", "data": [entry]},
        "GET /props": {**props, "build_info": "b9999-abcdef"} if modern else props,
        "POST /v1/chat/completions": speak("Hel", "lo", "!"),
        "POST /completion": _completion(modern),
        "POST /tokenize": _tokenize,
        "POST /detokenize": _detokenize,
    }
    if modern:
        routes["POST /apply-template"] = _apply_template
    return routes


def _completion(modern: bool) -> Script:
    async def script(asked: Asked, talk: Talk) -> None:
        await talk.head()
        text = f"seed {asked.body.get('seed')}" if "seed" in asked.body else "abc"
        for character in text:
            chunk: dict[str, Any] = {"index": 0, "content": character, "stop": False}
            if modern:
                chunk |= {"tokens": [ord(character)]}
            if asked.body.get("n_probs"):
                entry = {"id": ord(character), "token": character, "bytes": [ord(character)], "logprob": -0.5}
                top = [{**entry, "logprob": -0.5 - rank} for rank in range(asked.body["n_probs"])]
                chunk["completion_probabilities"] = [{**entry, "top_logprobs": top}]
            await talk.event(chunk)
        end: dict[str, Any] = {
            "index": 0,
            "content": "",
            "stop": True,
            "tokens_evaluated": 7,
            "tokens_predicted": len(text),
            "truncated": False,
            "stopping_word": "",
            "timings": {"cache_n": 3, "prompt_per_second": 200.0, "predicted_per_second": 50.0},
        }
        end |= {"stop_type": "limit"} if modern else {"stopped_limit": True, "stopped_eos": False}
        await talk.event(end)

    return script


async def _tokenize(asked: Asked, talk: Talk) -> None:
    begin = [1] if asked.body.get("add_special") else []
    await talk.json({"tokens": begin + list(asked.body["content"].encode())})


async def _detokenize(asked: Asked, talk: Talk) -> None:
    await talk.json({"content": bytes(asked.body["tokens"]).decode()})


async def _apply_template(asked: Asked, talk: Talk) -> None:
    lines = [f"{message['role']}: {message['content']}\n" for message in asked.body["messages"]]
    await talk.json({"prompt": "".join(lines) + "assistant: "})
