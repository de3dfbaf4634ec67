"""Chat models whose answers are scripted, so that tests can say what exactly must come out."""

from __future__ import annotations

import time
from typing import Any

from bitnet import BitNet
from bitnet.testing import FakeEngine

from langchain_bitnet import ChatBitNet

Faked = tuple[FakeEngine, ChatBitNet]


def scripted(replies: Any = "", *, engine: dict[str, Any] | None = None, **fields: Any) -> Faked:
    """An engine that answers `replies`, and a chat model that asks it."""
    fake = FakeEngine(replies, **(engine or {}))
    return fake, ChatBitNet(client=BitNet.from_engine(fake), **fields)


def settles(engine: FakeEngine, within: float = 2.0) -> bool:
    """Whether nothing is computed any more, soon."""
    until = time.monotonic() + within
    while engine.health().running and time.monotonic() < until:
        time.sleep(0.002)
    return not engine.health().running
