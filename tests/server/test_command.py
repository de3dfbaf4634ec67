"""`bitnet serve` as a process of its own: starting, logging, loading on demand, and ending in order."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hosting import ANSWER, QUESTION

from bitnet.models import find

CHAT = "/v1/chat/completions"


class Command:
    """A running `bitnet serve`. log: its lines so far."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bitnet", "serve", "--port", "0", "--threads", "1", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "BITNET_VERBOSE": ""},
        )
        self.log: list[str] = []
        self._url: str | None = None
        self._found = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if match := re.search(r"on (http://[0-9.]+:\d+)", line):
                self._url = match[1]
                self._found.set()
        self._found.set()

    @property
    def url(self) -> str:
        assert self._found.wait(120)
        assert self._url is not None, "".join(self.log)
        return self._url

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, verify=False, trust_env=False)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(60)
        self._reader.join()
        assert self.process.stdout is not None
        assert self.process.stdout.read() == ""
        self.process.stdout.close()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@contextlib.contextmanager
def command(*arguments: str) -> Iterator[Command]:
    started = Command(*arguments)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.wait()


def test_serves_and_ends(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-secret-key\n")
    with command("--api-key-file", str(keys)) as server:
        with server.client() as http:
            assert http.post(CHAT, json={"messages": QUESTION}).status_code == 401
            headers = {"authorization": "Bearer a-secret-key", "x-request-id": "my-request"}
            answer = http.post(CHAT, json={"messages": QUESTION, "temperature": 0}, headers=headers)
            assert answer.json()["choices"][0]["message"]["content"] == ANSWER
            assert answer.json()["model"] == "bitnet-tiny"
            http.get("/a%0Ab?token=secret")
        assert server.end() == 0
    log = "".join(server.log)
    assert re.search(
        r"127\.0\.0\.1 POST /v1/chat/completions 200 .* tokens=21\(0\)\+\d+ id=my-request\n", log
    )
    assert "secret" not in log
    assert "What is" not in log  # nor what was asked
    assert r"GET /a\nb 401" in log
    assert server.log[-1].endswith("stopped\n")


def test_term_under_load() -> None:
    """Running requests finish, new ones get 503, and the status is 0."""
    # At this temperature there is nothing to guess, so that every token takes its time.
    body: dict[str, Any] = {"messages": QUESTION, "ignore_eos": True, "max_tokens": 900}
    body.update(temperature=3, top_k=0, top_p=1)
    with command("--drain-timeout", "60", "--batch", "8") as server:
        answers: list[tuple[int, str]] = []
        begun = threading.Semaphore(0)

        def ask(http: httpx.Client, stream: bool) -> None:
            with http:
                if not stream:
                    begun.release()
                    answer = http.post(CHAT, json=body)
                    answers.append((answer.status_code, answer.text))
                    return
                with http.stream("POST", CHAT, json={**body, "stream": True}) as response:
                    lines = []
                    for line in response.iter_lines():
                        if not lines:
                            begun.release()
                        lines.append(line)
                    answers.append((response.status_code, "\n".join(lines)))

        threads = [threading.Thread(target=ask, args=(server.client(), index % 2 == 0)) for index in range(6)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert begun.acquire(timeout=60)
        with server.client() as http:
            while "bitnet_requests_in_flight 7.0" not in http.get("/metrics").text:  # and the one that asks
                assert not answers, "the answers were too short for this test"
            server.process.send_signal(signal.SIGTERM)
            while (refused := http.get("/health/ready")).status_code == 200:
                pass
            assert refused.status_code == 503
            refused = http.post(CHAT, json=body)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "unavailable"
            assert "retry-after" in refused.headers
            assert http.get("/health/live").status_code == 200
            assert not answers, "the answers were too short for this test"
        for thread in threads:
            thread.join(60)
        assert server.wait() == 0
    assert [status for status, _ in answers] == [200] * 6
    for _, text in answers:
        assert text.endswith("data: [DONE]\n") if text.startswith("data") else '"finish_reason"' in text
        assert '"length"' in text


def test_the_drain_has_an_end() -> None:
    body = {"messages": QUESTION, "ignore_eos": True, "max_tokens": 900, "n": 16}
    with command("--drain-timeout", "0.2", "--no-access-log") as server:
        with server.client() as http, http.stream("POST", CHAT, json={**body, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            last = [line for line in lines if line][-1]
        assert server.wait() == 0
    if last != "data: [DONE]":  # on a machine that computed 900 tokens in that time
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "unavailable"
        assert "stopped what was not answered within 0.2 s" in "".join(server.log)
    assert "POST" not in "".join(server.log)


def test_ctrl_c_twice() -> None:
    body = {"messages": QUESTION, "ignore_eos": True, "max_tokens": 900, "n": 16}
    with command() as server:
        with server.client() as http, http.stream("POST", CHAT, json={**body, "stream": True}) as response:
            lines = response.iter_lines()  # kept, because the stream is closed with it
            next(lines)
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            server.process.send_signal(signal.SIGINT)
        assert server.wait() in (0, 130), server.log


def test_several_models(
    random_path: Path, tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    models = ("-m", f"a={random_path}", "-m", str(random_path), "-m", f"org/b={broken}")
    with command(*models, "--keep-alive", "1", "--ctx", "256") as server:
        with server.client() as http:

            def loaded() -> dict[str, bool]:
                return {model["id"]: model["loaded"] for model in http.get("/v1/models").json()["data"]}

            second = random_path.name.removesuffix(".gguf")
            assert list(loaded()) == ["a", second, "org/b"]
            assert not loaded()[second]
            body = {"messages": QUESTION, "model": second, "max_tokens": 4, "temperature": 0}
            text = http.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
            eventually(lambda: not any(loaded().values()))
            assert http.post(CHAT, json=body).json()["choices"][0]["message"]["content"] == text
            answer = http.post(CHAT, json={**body, "model": "org/b"})
            assert answer.status_code == 500
            assert "cannot be loaded" in answer.json()["error"]["message"]
            assert str(tmp_path) not in answer.text
            assert http.get("/v1/models/org/b").json()["id"] == "org/b"
        assert server.end() == 0
    log = "".join(server.log)
    assert log.index("loaded model a") < log.index("serving a, ") < log.index(f"loaded model {second}")
    assert log.count(f"loaded model {second}") == 2
    assert str(broken) in log


def test_config(tmp_path: Path) -> None:
    path = tmp_path / "bitnet.yaml"
    path.write_text(
        "bitnet:\n  n_ctx: 300\n  max_tokens: 3\n  temperature: 0\n  model: mine\n"
        f"  model_path: {json.dumps(str(find(None)))}\n"
    )
    with command("--config", str(path)) as server:
        with server.client() as http:
            answer = http.post(CHAT, json={"messages": QUESTION, "model": "mine"}).json()
            assert answer["usage"]["completion_tokens"] == 3
            assert http.get("/v1/models/mine").json()["max_model_len"] == 300
        assert server.end() == 0


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bitnet", "serve", *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["-m", "nowhere.gguf"], 1, "nowhere.gguf"),
        (["--api-key-file", "nowhere"], 1, "cannot read the API key file nowhere"),
        (["--host", "192.0.2.1"], 1, "cannot listen on 192.0.2.1:8080"),
        (["--port", "70000"], 2, "'--port'"),
        (["--ctx", "99999999"], 1, "n_ctx=99999999"),
    ],
)
def test_mistakes(arguments: list[str], status: int, message: str) -> None:
    done = run(*arguments)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_open_to_everybody_is_warned_of() -> None:
    with command("--host", "0.0.0.0") as server:
        assert server.url
        assert server.end() == 0
    assert "everybody who can reach this machine can use it" in "".join(server.log)


def test_help() -> None:
    text = run("--help").stdout
    for option in (
        "--model",
        "--host",
        "--port",
        "--api-key-file",
        "--config",
        "--keep-alive",
        "--drain-timeout",
    ):
        assert option in text
    assert "Example: bitnet serve" in text
