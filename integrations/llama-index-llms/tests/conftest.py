"""No test here may reach another machine, and none may leave LlamaIndex's global settings changed."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

import llama_index.core
import pytest
from llama_index.core import Settings
from llama_index.llms.bitnet import BitNet
from scripted import MakeLLM

import bitnet
from bitnet.testing import FakeEngine


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets connect to this machine only, and names are not looked up."""
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def checked_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            raise AssertionError(f"a connection to {address}")
        connect(self, address)

    def checked_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host is not None and not _is_local(host):
            raise AssertionError(f"a look-up of {host}")
        return getaddrinfo(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", checked_connect)
    monkeypatch.setattr(socket, "getaddrinfo", checked_getaddrinfo)


def _is_local(host: Any) -> bool:
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BITNET_BASE_URL", "BITNET_API_KEY", "BITNET_CONFIG", "OPENAI_API_KEY", "IS_TESTING"):
        monkeypatch.delenv(name, raising=False)
    for name in ("_llm", "_embed_model", "_callback_manager", "_tokenizer", "_node_parser", "_prompt_helper"):
        monkeypatch.setattr(Settings, name, None)
    # Counting characters by fours is enough for scripted answers, and costs nothing.
    monkeypatch.setattr(llama_index.core, "global_tokenizer", lambda text: [0] * (len(text) // 4 + 1))


@pytest.fixture
def make_llm() -> Iterator[MakeLLM]:
    """Makes LLMs that answer from a script, and record what they are asked (see scripted.py)."""
    clients: list[bitnet.BitNet] = []

    def make(replies: Any = "Hello!", *, engine: dict[str, Any] | None = None, **fields: Any) -> BitNet:
        fake = FakeEngine(replies, **{"n_ctx": 8192, **(engine or {})})
        client = bitnet.BitNet.from_engine(fake)
        client.requests = fake.requests  # type: ignore[attr-defined]  # for the test to look at
        clients.append(client)
        return BitNet(client=client, **fields)

    yield make
    for client in clients:
        client.close()
