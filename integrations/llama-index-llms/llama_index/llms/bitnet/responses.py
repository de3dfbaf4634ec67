"""bitnet's answers as LlamaIndex has them: whole, and in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)

from bitnet import Delta, Reply, TokenLogprob


def chat_response(reply: Reply, model: str, delta: str | None = None) -> ChatResponse:
    """A whole answer. delta: the last piece of it, where it was streamed.

    Calls stand in blocks and in additional_kwargs["tool_calls"]: the agents of llama_index.core read the
    former, its programs the latter.
    """
    blocks: list[ContentBlock] = [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.parsed)
        for call in reply.tool_calls
    ]
    if reply.text or not blocks:
        blocks.insert(0, TextBlock(text=reply.text))
    calls = [call.to_dict() for call in reply.tool_calls]
    return ChatResponse(
        message=ChatMessage(
            role=MessageRole.ASSISTANT,
            blocks=blocks,
            additional_kwargs={"tool_calls": calls} if calls else {},
        ),
        delta=delta,
        raw=_raw(reply, model),
        logprobs=None if delta is not None else _logprobs(reply.logprobs),
    )


def chat_chunk(text: str, delta: Delta) -> ChatResponse:
    """A piece of an answer, which is `text` so far."""
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text=text)]),
        delta=delta.text,
        logprobs=_logprobs(delta.logprobs),
    )


def completion_response(reply: Reply, model: str, delta: str | None = None) -> CompletionResponse:
    """A whole answer. delta: the last piece of it, where it was streamed."""
    return CompletionResponse(
        text=reply.text,
        delta=delta,
        raw=_raw(reply, model),
        logprobs=None if delta is not None else _logprobs(reply.logprobs),
    )


def completion_chunk(text: str, delta: Delta) -> CompletionResponse:
    """A piece of an answer, which is `text` so far."""
    return CompletionResponse(text=text, delta=delta.text, logprobs=_logprobs(delta.logprobs))


def _raw(reply: Reply, model: str) -> dict[str, Any]:
    """Plain values only: agents copy it into their events. `usage` is where token counters look."""
    return {
        "model": model,
        "finish_reason": reply.finish_reason,
        "stop_string": reply.stop_string,
        "usage": reply.usage.to_dict(),
        "timings": reply.timings.to_dict(),
    }


def _logprobs(tokens: Iterable[TokenLogprob] | None) -> list[list[LogProb]] | None:
    """For each token itself, and behind it the likeliest ones in its place."""
    if not tokens:
        return None
    return [[_logprob(token), *map(_logprob, token.top)] for token in tokens]


def _logprob(token: TokenLogprob) -> LogProb:
    return LogProb(token=token.token, logprob=token.logprob, bytes=list(token.token_bytes))
