"""64 clients at once, half of them leaving at random: nobody gets another's answer, and nothing is left.

BITNET_SOAK_SECONDS sets how long; benchmarks/README.md says how to run it for a minute.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from hosting import Hosted

from bitnet import BitNet

N_CLIENTS = 64
SECONDS = float(os.environ.get("BITNET_SOAK_SECONDS", "3"))
QUESTIONS = [
    "What is the capital of France?",
    "What is the opposite of hot?",
    "Tell me a story about a brave fox.",
    "What is 2 + 3?",
    "Write about a lazy dog.",
    "What is the capital of Japan?",
]


def body(rng: random.Random) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": rng.choice(QUESTIONS)}],
        "temperature": rng.choice([0, 0.8]),
        "seed": rng.randrange(4),
        "max_tokens": rng.choice([8, 24]),
        "stream": True,
    }


async def ask(client: httpx.AsyncClient, request: dict[str, Any], leave_after: int | None) -> str | None:
    """The text of the answer; None for a client that left before it was complete."""
    text = ""
    n_events = 0
    async with client.stream("POST", "/v1/chat/completions", json=request) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return text
            if line.startswith("data: "):
                event = json.loads(line[6:])
                assert "error" not in event, event
                for choice in event["choices"]:
                    text += choice["delta"].get("content", "")
                n_events += 1
                if n_events == leave_after:
                    return None
    raise AssertionError(f"the stream ended early: {text!r}")


async def clients(url: str, seconds: float) -> list[tuple[dict[str, Any], str]]:
    answers: list[tuple[dict[str, Any], str]] = []
    # One object, but a connection for each: to make 64 of them takes httpx longer than they are used here.
    limits = httpx.Limits(max_connections=N_CLIENTS)
    async with httpx.AsyncClient(
        base_url=url, timeout=120, verify=False, trust_env=False, limits=limits
    ) as client:
        deadline = time.monotonic() + seconds

        async def one(seed: int) -> None:
            rng = random.Random(seed)
            while time.monotonic() < deadline:
                request = body(rng)
                leaves = seed % 2 == 0 and rng.random() < 0.7
                text = await ask(client, request, rng.randrange(1, 6) if leaves else None)
                if text is not None:
                    answers.append((request, text))

        await asyncio.gather(*map(one, range(N_CLIENTS)))
    return answers


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_soak(serve: Callable[..., Hosted], eventually: Callable[[Callable[[], bool]], None]) -> None:
    with BitNet(n_batch=8) as model:
        running = serve(model)
        asyncio.run(clients(running.url, min(1.0, SECONDS)))  # what is allocated once, is allocated now
        gc.collect()
        n_tasks = len(asyncio.all_tasks(running.loop))
        before = resident_bytes()
        answers = asyncio.run(clients(running.url, SECONDS))
        gc.collect()
        grown = resident_bytes() - before
        assert len(answers) >= N_CLIENTS / 2

        expected: dict[str, str] = {}
        for request, text in answers:
            key = json.dumps(request)
            if key not in expected:
                how = {name: value for name, value in request.items() if name not in ("messages", "stream")}
                expected[key] = model.chat(request["messages"], **how).text
            assert text == expected[key]

        service = running.service
        eventually(lambda: service.n_requests == 0)
        health = model.health()
        assert health is not None
        assert (health.running, health.waiting) == (0, 0)
        assert health.free_blocks == health.n_blocks
        assert not service.watches
        assert service.models["m"].n_users == 0
        eventually(lambda: len(asyncio.all_tasks(running.loop)) <= n_tasks)
        assert grown < 32 << 20, f"{grown / 2**20:.1f} MiB more than at the beginning"
