"""Clients that leave, stall or dawdle: what they asked for is not computed any further."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hosting import QUESTION, Hosted

from bitnet import BitNet
from bitnet.server import Limits
from bitnet.server.runner import Listening
from bitnet.testing import FakeEngine, FakeReply
from bitnet.values import Health
from reference.model_factory import ModelSpec, make_model

CHAT = "/v1/chat/completions"
ENDLESS: dict[str, Any] = {"messages": QUESTION, "ignore_eos": True, "max_tokens": 1900}


def post(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    return b"POST %b HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n%b" % (
        path.encode(),
        len(content),
        content,
    )


def reset(sock: socket.socket) -> None:
    """Close without a goodbye, as a client that is killed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.fixture
def endless(models_folder: Path) -> Iterator[BitNet]:
    """Its answers go on to max_tokens: for more than a second on a fast machine, too."""
    spec = ModelSpec(hidden_size=640, n_heads=10, ffn_size=2560, n_layers=12, context_length=4096)
    with BitNet(make_model(spec, models_folder), n_ctx=2048, n_batch=4) as model:
        yield model


def health(model: BitNet) -> Health:
    found = model.health()
    assert found is not None
    return found


def assert_idle(model: BitNet, eventually: Callable[[Callable[[], bool]], None]) -> None:
    """Nothing runs, nothing waits, all blocks are back, and no step is computed any more."""
    eventually(lambda: health(model).running == 0 and health(model).waiting == 0)
    steps = health(model).n_steps
    time.sleep(0.1)
    assert health(model).n_steps == steps
    assert health(model).free_blocks == health(model).n_blocks


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("leave", [socket.socket.close, reset])
@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
def test_gone_while_answering(
    serve: Callable[..., Hosted],
    endless: BitNet,
    eventually: Callable[[Callable[[], bool]], None],
    stream: bool,
    leave: Callable[[socket.socket], None],
    path: str,
) -> None:
    running = serve(endless)
    sock = running.connect()
    body = {**ENDLESS, "stream": stream}
    if path == "/v1/responses":
        body = {"input": "Hi", "ignore_eos": True, "max_output_tokens": 1900, "stream": stream}
    sock.sendall(post(path, body))
    eventually(lambda: health(endless).n_steps > 10)
    leave(sock)
    eventually(lambda: health(endless).running == 0)
    assert health(endless).n_steps < 1000  # of 1900
    assert_idle(endless, eventually)
    assert not running.service.watches
    eventually(lambda: running.service.n_requests == 0)


def test_gone_during_the_prompt(
    serve: Callable[..., Hosted],
    slow_path: Path,
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    with BitNet(slow_path, n_ctx=4096, n_threads=1) as model:
        running = serve(model)
        n_words = 3500 // (model.count_tokens("fox " * 100) // 100)
        fox, dog, cat, cow, hen = (f"{animal} " * n_words for animal in ("fox", "dog", "cat", "cow", "hen"))
        for path, body in (
            (CHAT, {"messages": [{"role": "user", "content": fox}], "stream": True}),
            (CHAT, {"messages": [{"role": "user", "content": dog}]}),
            ("/v1/completions", {"prompt": [cat, cow]}),
            ("/v1/embeddings", {"input": [hen] * 3}),
        ):
            before = health(model).n_tokens
            sock = running.connect()
            sock.sendall(post(path, body))
            eventually(lambda: health(model).running > 0)
            sock.close()
            eventually(lambda: health(model).running == 0)
            assert health(model).n_tokens - before < 2000, path
            assert_idle(model, eventually)


def test_gone_while_waiting(
    serve: Callable[..., Hosted], random_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with BitNet(random_path, n_batch=1) as model:
        running = serve(model)
        first, second = running.connect(), running.connect()
        first.sendall(post(CHAT, ENDLESS))
        eventually(lambda: health(model).running == 1)
        second.sendall(post(CHAT, ENDLESS))
        eventually(lambda: health(model).waiting == 1)
        second.close()
        eventually(lambda: health(model).waiting == 0)
        assert health(model).running == 1
        first.close()
        assert_idle(model, eventually)


def test_the_official_client_stops_reading(
    serve: Callable[..., Hosted], endless: BitNet, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    url = f"{serve(endless).url}/v1"
    how: dict[str, Any] = {"model": "m", "messages": QUESTION, "max_tokens": 1900, "stream": True}
    how["extra_body"] = {"ignore_eos": True}
    with openai.OpenAI(base_url=url, api_key="none") as client:
        with client.chat.completions.create(**how) as stream:
            for _ in zip(range(5), stream, strict=False):
                pass
        assert_idle(endless, eventually)
        assert health(endless).n_steps < 1000

    async def give_up() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            how["stream"] = False
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.chat.completions.create(**how), 0.2)

    asyncio.run(give_up())
    assert_idle(endless, eventually)


def test_deadline(
    serve: Callable[..., Hosted], endless: BitNet, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    running = serve(endless, limits=Limits(request_seconds=0.2))
    with running.client() as http:
        answer = http.post(CHAT, json=ENDLESS)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"
        streamed = http.post(CHAT, json={**ENDLESS, "stream": True})
        events = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
        assert json.loads(events[-1])["error"]["code"] == "deadline_exceeded"
        assert len(events) > 2
    assert_idle(endless, eventually)


def test_heartbeat(serve: Callable[..., Hosted]) -> None:
    """A stream that has nothing to say tells that it is still there, in a way that clients do not see."""
    engine = FakeEngine(lambda request: FakeReply(["a", "b"], delay=0.3))
    running = serve(engine, limits=Limits(heartbeat_seconds=0.1))
    with running.client() as http, http.stream("POST", CHAT, json={**ENDLESS, "stream": True}) as answer:
        lines = list(answer.iter_lines())
    assert lines[0].startswith(":")  # before there was a token
    assert sum(line.startswith(":") for line in lines) >= 3
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as client:
        stream = client.chat.completions.create(model="m", messages=QUESTION, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "ab"


def test_a_client_that_does_not_read(
    serve: Callable[..., Hosted], eventually: Callable[[Callable[[], bool]], None]
) -> None:
    engine = FakeEngine(lambda request: FakeReply(["x" * 10] * 5000, delay=0.002), n_ctx=10**9)
    running = serve(engine, listening=Listening(stall_seconds=0.3), send_buffer=16384)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", running.port))
    much = {"logprobs": True, "top_logprobs": 20, "max_tokens": 10**8}
    sock.sendall(post(CHAT, {"messages": QUESTION, "stream": True, **much}))
    eventually(lambda: running.service.n_requests == 1)
    eventually(lambda: running.service.n_requests == 0)
    eventually(lambda: engine.health().running == 0)
    sock.close()


def test_deltas_pile_up_into_one_event(serve: Callable[..., Hosted]) -> None:
    """What was produced while the loop was busy goes out in one write, and nothing of it is lost."""
    words = [f"word{i} " for i in range(2000)]
    running = serve(lambda request: FakeReply(words))
    running.loop.call_soon_threadsafe(time.sleep, 0.3)
    with running.client() as http:
        body = {"messages": QUESTION, "stream": True, "max_tokens": 10**6}
        answer = httpx.post(running.url + CHAT, json=body, timeout=30, verify=False, trust_env=False)
        del http
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])
    n_ctx = 2048
    assert "".join(words).startswith(text)
    assert len(text) > n_ctx - 200
    assert len(events) < len(text) / 6


@pytest.mark.parametrize(
    "pieces",
    [
        [b""],
        [b"POST /v1/chat/completions HTTP/1.1\r\n"],
        [b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"],
        # On a connection that has served a request.
        [b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", b"GET /health HT"],
    ],
)
def test_slow_senders(serve: Callable[..., Hosted], pieces: list[bytes]) -> None:
    running = serve(lambda request: "ok", listening=Listening(receive_seconds=0.3))
    with running.connect() as sock:
        sock.settimeout(5)
        for piece in pieces:
            if piece:
                sock.sendall(piece)
            if len(pieces) > 1 and piece is pieces[0]:
                assert b"200" in sock.recv(4096)
        started_at = time.monotonic()
        dripped = 0
        try:
            while time.monotonic() - started_at < 5:
                time.sleep(0.05)
                if pieces[-1]:
                    sock.sendall(b"x")  # something all the time
                    dripped += 1
                sock.setblocking(False)
                try:
                    if sock.recv(4096) == b"":
                        break
                except BlockingIOError:
                    pass
                sock.setblocking(True)
        except OSError:
            pass
        assert time.monotonic() - started_at < 3, "the connection was not closed"
    with running.client() as http:
        assert http.get("/health").status_code == 200


def test_idle_connections_are_closed(serve: Callable[..., Hosted]) -> None:
    """The one between two requests is uvicorn's own limit, which `bitnet serve` sets."""
    running = serve(lambda request: "ok")
    with running.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        answer = b""
        while b"ok" not in answer:
            answer += sock.recv(4096)
        sock.settimeout(10)  # uvicorn's default is 5
        assert sock.recv(4096) == b""


def test_a_long_head(serve: Callable[..., Hosted]) -> None:
    running = serve(lambda request: "ok")
    with running.connect() as sock:
        sock.settimeout(10)
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n")
        closed = False
        for _ in range(200):
            try:
                sock.sendall(b"x-filler: " + b"y" * 4000 + b"\r\n")
            except OSError:
                closed = True
                break
        with contextlib.suppress(ConnectionResetError):
            assert closed or sock.recv(4096)[:12] in (b"", b"HTTP/1.1 400")


def test_too_many_connections(serve: Callable[..., Hosted]) -> None:
    running = serve(lambda request: "ok", listening=Listening(max_connections=3))
    kept = [running.connect() for _ in range(3)]
    time.sleep(0.1)
    with running.connect() as sock:
        sock.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(10) == b""
    for sock in kept:
        sock.close()
    with running.client() as http:
        time.sleep(0.1)
        assert http.get("/health").status_code == 200
