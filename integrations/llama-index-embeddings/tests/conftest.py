"""No test here may reach another machine."""

from __future__ import annotations

import socket
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"the network: {args}")

    connect = socket.socket.connect

    def checked_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):  # event loops connect sockets of other families
            refuse(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", checked_connect)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("BITNET_BASE_URL", "BITNET_API_KEY", "BITNET_CONFIG"):
        monkeypatch.delenv(name, raising=False)
