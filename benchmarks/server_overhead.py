"""What `bitnet serve` adds to the engine in this process: per request, and per streamed token.

    python benchmarks/server_overhead.py [--model FILE] [--tokens 200] [--rounds 40]

The same requests go to a server of its own and to the same model in this process, in turns. The client is a
plain socket with prepared bytes, so that what is measured is the server's time. Answers must be equal. Fails
if one differs, or if a median is above 1 ms per request or 0.1 ms per streamed token. Run it on a machine
that does nothing else: the two processes share its cores with whatever runs beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from bitnet import BitNet

LIMIT_REQUEST_MS = 1.0
LIMIT_TOKEN_MS = 0.1
MESSAGES = [{"role": "user", "content": "Tell me a story about a brave fox."}]
HOW: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


class Client:
    """One connection that is kept alive."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes, last: bytes) -> bytes:
        """The response up to `last`, which ends it."""
        self._socket.sendall(request)
        response = b""
        while not response.endswith(last):
            received = self._socket.recv(1 << 16)
            if not received:
                raise RuntimeError(f"the server closed the connection: {response!r}")
            response += received
        return response


def request(**body: Any) -> bytes:
    content = json.dumps({"messages": MESSAGES, **HOW, **body}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


@contextlib.contextmanager
def server(model: str | None, n_threads: int) -> Iterator[int]:
    """A server in a process of its own, and its port."""
    command = [sys.executable, "-m", "bitnet", "serve", "--port", "0", "--threads", str(n_threads)]
    process = subprocess.Popen(
        [*command, *(["-m", model] if model else [])],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise RuntimeError("the server did not start")
        # Its log goes on; a pipe that nobody reads would stop it.
        subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        yield int(found[1])
    finally:
        process.terminate()
        if process.wait(30) != 0:
            raise RuntimeError(f"the server ended with status {process.returncode}")


def streamed_text(response: bytes) -> str:
    events = re.findall(rb"data: (\{.*\})", response)
    return "".join(
        choice["delta"].get("content", "") for event in events for choice in json.loads(event)["choices"]
    )


def milliseconds(call: Callable[[], Any]) -> tuple[float, Any]:
    started_at = time.perf_counter()
    result = call()
    return (time.perf_counter() - started_at) * 1e3, result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    n_tokens = arguments.tokens
    short, long = request(max_tokens=1), request(max_tokens=n_tokens, stream=True)
    times: dict[str, list[float]] = {name: [] for name in ("short", "short http", "long", "long http")}
    with (
        BitNet(arguments.model, n_batch=4, n_threads=arguments.threads) as model,
        server(arguments.model, arguments.threads) as port,
    ):
        client = Client(port)

        def measure(name: str, call: Callable[[], Any]) -> Any:
            elapsed, result = milliseconds(call)
            times[name].append(elapsed)
            return result

        for _ in range(arguments.rounds):
            reply = measure("short", lambda: model.chat(MESSAGES, max_tokens=1, **HOW))
            response = measure("short http", lambda: client.ask(short, b"}"))
            content = json.loads(response.partition(b"\r\n\r\n")[2])
            if content["choices"][0]["message"]["content"] != reply.text:
                print(f"FAILED: answers differ: {reply.text!r}, {content!r}")
                return 1
            text = measure(
                "long",
                lambda: "".join(d.text for d in model.stream_chat(MESSAGES, max_tokens=n_tokens, **HOW)),
            )
            response = measure("long http", lambda: client.ask(long, b"0\r\n\r\n"))
            if streamed_text(response) != text:
                print(f"FAILED: streamed answers differ: {text!r}, {streamed_text(response)!r}")
                return 1
    median = {name: statistics.median(values[len(values) // 10 :]) for name, values in times.items()}
    per_request = median["short http"] - median["short"]
    per_token = (median["long http"] - median["long"] - per_request) / n_tokens
    print(f"correct: {2 * arguments.rounds} answers equal those of the engine in this process")
    for name, value in median.items():
        print(f"{name:>12}  {value:8.3f} ms")
    print(f"overhead per request        {per_request:7.3f} ms (at most {LIMIT_REQUEST_MS:g})")
    print(f"overhead per streamed token {per_token:7.4f} ms (at most {LIMIT_TOKEN_MS:g})")
    return 0 if per_request <= LIMIT_REQUEST_MS and per_token <= LIMIT_TOKEN_MS else 1


if __name__ == "__main__":
    sys.exit(main())
