"""LLMs that answer from a script: what they were asked, and answers with calls. `make_llm` makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_index.llms.bitnet import BitNet

import bitnet
from bitnet import Request
from bitnet.testing import FakeReply

MakeLLM = Callable[..., BitNet]


def requests_of(llm: BitNet) -> list[Request]:
    requests: list[Request] = llm.client.requests
    return requests


def prompts_of(llm: BitNet) -> list[str]:
    """What the model was told in each request: a line for each message, or the bare prompt."""
    return [
        request.prompt
        if request.messages is None
        else "\n".join(f"{message.role}: {message.content}" for message in request.messages)
        for request in requests_of(llm)
    ]


def calling(*calls: tuple[str, dict[str, Any]], text: str = "") -> FakeReply:
    """An answer that asks for calls."""
    return FakeReply(
        text=text, tool_calls=[bitnet.ToolCall("", name, arguments) for name, arguments in calls]
    )
