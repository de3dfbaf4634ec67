"""Chats over HTTP, with the files of config/orbit: the harness, and where BITNET_ORBIT_DIR names a checkout,
Orbit's own server; with the provider in each of its ways in, and with Orbit's bundled one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitnet
import httpx
import pytest
from bitnet import BitNet
from conftest import HARNESS, REAL

CONFIG = Path(__file__).parents[3] / "config" / "orbit"
PROBE = Path(__file__).parent / "probe"
QUESTION = "What is the capital of France?"
STORY = "Tell me a story about a brave fox."
SYSTEM = "You are a helpful assistant.\n\nAnswer based on the system prompt. Maintain your persona."
BUNDLED = "implementations.passthrough.conversational.ConversationalImplementation"
START_SECONDS = 240 if REAL else 60


@dataclass
class Host:
    way: str
    url: str
    probe: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def ours(self) -> bool:
        return self.way != "bundled"

    def states(self) -> list[tuple[float, int, int]]:
        """(seconds, requests running, steps computed) at each change."""
        lines = [
            line.split() for line in self.probe.read_text().splitlines(keepends=True) if line[-1] == "\n"
        ]
        return [(float(when), int(running), int(steps)) for when, running, steps in lines]

    def steps_at(self, when: float) -> int:
        return max((steps for time_, _, steps in self.states() if time_ <= when), default=0)

    def steps_in(self, seconds: float) -> int:
        """How many steps the engine has computed in so much time at most."""
        states = self.states()
        return max(self.steps_at(when + seconds) - steps for when, _, steps in states)

    async def idle(self) -> None:
        deadline = time.monotonic() + 20
        while self.states()[-1][1]:
            assert time.monotonic() < deadline, "the engine still computes"
            await asyncio.sleep(0.02)


def start(orbit: Path, way: str, folder: Path, more: str = "", **environment: str) -> Host:
    """A server in `folder`, where the files of config/orbit are, too. more: of config.yaml."""
    shutil.copytree(CONFIG, folder, dirs_exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(f"{config.read_text()}\n{more}\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(orbit / "server" / "main.py"), "--config", str(folder / "config.yaml")]
    if way == "serve":
        command = ["-m", "orbit_bitnet", "serve", "--orbit", str(orbit), "--", *command[1:]]
    inference = folder / "inference.yaml"
    inference.write_text(inference.read_text().replace("temperature: 0.7", "temperature: 0.0"))
    if way != "hook":
        adapters = folder / "adapters.yaml"
        adapters.write_text(
            adapters.read_text().replace("orbit_bitnet.adapter.ConversationalImplementation", BUNDLED)
        )
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "ORBIT_PORT": str(port),
                "BITNET_ENABLED": "false" if way == "hook" else "true",
                "BITNET_PROBE": str(folder / "probe.txt"),
                "PYTHONPATH": str(PROBE),
                **environment,
            },
        )
    host = Host(way, f"http://127.0.0.1:{port}", folder / "probe.txt", log, process)
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            if httpx.get(f"{host.url}/health", timeout=5).status_code == 200:
                return host
        except httpx.TransportError:
            time.sleep(0.1)


def stop(host: Host) -> None:
    host.process.send_signal(signal.SIGTERM)
    host.process.wait(60)


def bundled_model() -> str:
    with BitNet(lazy=True) as model:
        return str(model.info.path)


@pytest.fixture(
    scope="module",
    params=[f"{place}-{way}" for place in ("harness", "orbit") for way in ("hook", "serve", "bundled")],
)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    place, way = request.param.split("-")
    if place == "orbit" and REAL is None:
        pytest.skip("BITNET_ORBIT_DIR names no checkout of Orbit")
    orbit = HARNESS if place == "harness" else REAL
    assert orbit is not None
    options = {"BITNET_MODEL": bundled_model()} if way == "bundled" else {}
    host = start(orbit, way, tmp_path_factory.mktemp(request.param), **options)
    yield host
    stop(host)


def body(question: str, **options: Any) -> dict[str, Any]:
    return {"model": "simple-chat", "messages": [{"role": "user", "content": question}], **options}


@dataclass
class Stream:
    """One streamed chat; `stopped` and `left` are the times of that, if it was asked for."""

    text: str = ""
    n_pieces: int = 0
    first: float = 0.0
    ended: float = 0.0


async def chat(
    client: httpx.AsyncClient,
    host: Host,
    question: str,
    session: str,
    *,
    stop_at: int = 0,
    leave_at: int = 0,
) -> Stream:
    got, request_id, began = Stream(), "", time.time()
    async with client.stream(
        "POST",
        f"{host.url}/v1/chat",
        headers={"X-Session-ID": session},
        json=body(question, stream=True),
    ) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            request_id = event.get("request_id", request_id)
            if not event.get("response"):
                continue
            got.text += event["response"]
            got.n_pieces += 1
            got.first = got.first or time.time() - began
            if got.n_pieces == leave_at:
                break
            if got.n_pieces == stop_at:
                answer = await client.post(
                    f"{host.url}/v1/chat/stop",
                    headers={"X-Session-ID": session},
                    json={"session_id": session, "request_id": request_id},
                )
                assert answer.json()["status"] == "cancelled"
                got.ended = time.time()
    got.ended = got.ended or time.time()
    return got


def test_a_chat(host: Host) -> None:
    """The whole answer: the text of `bitnet run` with the same messages, and what it cost."""
    with BitNet() as model:
        expected = model.chat(
            [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}], temperature=0
        )
    answer = httpx.post(
        f"{host.url}/v1/chat/completions",
        json=body(QUESTION),
        headers={"X-Session-ID": "whole"},
        timeout=60,
    )
    assert answer.status_code == 200, host.log.read_text()
    assert answer.json()["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert expected.text == "The capital of France is Paris."
    usage = answer.json()["usage"]
    if host.ours:
        assert usage["prompt_tokens"] == expected.usage.prompt_tokens
        assert usage["completion_tokens"] == expected.usage.completion_tokens


def test_a_streamed_chat(host: Host) -> None:
    async def main() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            got = await chat(client, host, QUESTION, "streamed")
            assert got.text == "The capital of France is Paris."
            # A dozen tokens may be computed before the reader asks again, and then come in one piece.
            got = await chat(client, host, STORY, "streamed story")
            assert got.text.startswith("Once upon a time")
            assert got.n_pieces > 3

    asyncio.run(main())


def test_two_chats_at_a_time(host: Host) -> None:
    async def main() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            questions = {"Italy": "Rome", "Japan": "Tokyo"}
            streams = await asyncio.gather(
                *[
                    chat(client, host, f"What is the capital of {country}?", f"two {country}")
                    for country in questions
                ]
            )
            assert [stream.text for stream in streams] == [
                f"The capital of {country} is {city}." for country, city in questions.items()
            ]

    asyncio.run(main())


def test_a_prompt_that_does_not_fit(host: Host) -> None:
    long = "word " * 3000
    whole = httpx.post(
        f"{host.url}/v1/chat/completions",
        json=body(long),
        headers={"X-Session-ID": "long"},
        timeout=60,
    )
    assert whole.status_code == 500
    if host.ours:
        assert "too long for the model" in whole.json()["detail"]

    async def main() -> str:
        async with httpx.AsyncClient(timeout=60) as client:
            return (await chat(client, host, long, "long stream")).text

    text = asyncio.run(main())
    assert "too long for the model" in text if host.ours else "could not be processed" in text


@pytest.mark.parametrize("end", ["stop", "leave"])
def test_stop_and_disconnect(host: Host, end: str) -> None:
    """The engine stops: two steps later at most, or what it computes in the 50 ms that a busy machine takes
    to notice, because the steps of the bundled model are much shorter than those of a real one."""
    if not host.ours and end == "leave":
        pytest.skip("Orbit's bundled provider leaves that to the next garbage collection")

    async def main() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            got = await chat(client, host, STORY, f"end {end}", **{f"{end}_at": 3})
            await host.idle()
        assert host.states()[-1][2] - host.steps_at(got.ended) <= 2 + host.steps_in(0.05)

    asyncio.run(main())


def test_health_answers_while_it_streams(host: Host) -> None:
    """A sanity check only; benchmarks measure it, on a machine that does nothing else."""

    async def main() -> float:
        worst, done = 0.0, False

        async def ask() -> None:
            nonlocal worst
            async with httpx.AsyncClient(timeout=30) as other:
                while not done:
                    began = time.monotonic()
                    await other.get(f"{host.url}/health")
                    worst = max(worst, time.monotonic() - began)
                    await asyncio.sleep(0.01)

        task = asyncio.create_task(ask())
        async with httpx.AsyncClient(timeout=60) as client:
            await asyncio.gather(*[chat(client, host, STORY, f"health {index}") for index in range(2)])
        done = True
        await task
        return worst

    assert asyncio.run(main()) < 2


def test_a_wrong_model_path(tmp_path: Path) -> None:
    """The server starts, says why in its log, and tells users nothing of the path."""
    orbit = REAL or HARNESS
    host = start(orbit, "hook", tmp_path, BITNET_MODEL="/no/such/model.gguf")
    try:
        answer = httpx.post(
            f"{host.url}/v1/chat/completions",
            json=body(QUESTION),
            headers={"X-Session-ID": "wrong"},
            timeout=60,
        )
        assert answer.status_code == 500
        assert "model" in answer.json()["detail"]
        assert "/no/such" not in answer.json()["detail"]
        assert "there is no model file '/no/such/model.gguf'" in host.log.read_text()
    finally:
        stop(host)


def test_worker_processes(tmp_path: Path) -> None:
    """`serve` has the provider in each of them: the bundled one would not tell how many tokens there were."""
    host = start(REAL or HARNESS, "serve", tmp_path, more="performance: {workers: 2}")
    try:
        answer = httpx.post(
            f"{host.url}/v1/chat/completions",
            json=body(QUESTION),
            headers={"X-Session-ID": "worker"},
            timeout=60,
        )
        assert answer.json()["usage"]["completion_tokens"] == 15
    finally:
        stop(host)


def test_the_files_of_config_orbit() -> None:
    """`bitnet` reads inference.yaml by itself, and everything in it is at a value that works."""
    from bitnet.config import load

    settings = load(CONFIG / "inference.yaml")
    assert (settings.enabled, settings.n_ctx, settings.max_tokens) == (False, 2048, 512)
    text = (CONFIG / "inference.yaml").read_text()
    missing = {name for name in bitnet.BitNetConfig.model_fields if f" {name}:" not in text}
    assert missing == {"context_window"}
    with BitNet.from_config(CONFIG / "inference.yaml", temperature=0) as model:
        assert model.chat([{"role": "user", "content": QUESTION}]).text == "The capital of France is Paris."
