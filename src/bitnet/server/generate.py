"""From a request for text to its answer, whole or as events: what chat, completions and responses share."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from bitnet.engines.generation import Generation
from bitnet.server import strict_json
from bitnet.server.errors import ApiError, ClientGone, as_api_error, invalid
from bitnet.server.exchange import EventStream, Exchange
from bitnet.server.watch import Watch
from bitnet.values import Delta, Reply, TokenLogprob, ToolCallDelta, Usage

# JSON has no infinity; OpenAI writes this for what is as unlikely as can be.
_LEAST_LOGPROB = -9999.0
# Deltas in one write. With log-probabilities this many are half a megabyte, which takes some milliseconds.
_MAX_BATCH = 256


class Writer(Protocol):
    """Turns what an engine hands out into events, as bytes. b"" = nothing to say yet."""

    def deltas(self, deltas: list[Delta]) -> bytes: ...

    def end(self, reply: Reply) -> bytes: ...

    def error(self, error: ApiError) -> bytes: ...


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"


def now() -> int:
    return int(time.time())


def salt(exchange: Exchange, body: Mapping[str, Any]) -> str:
    """The cache salt: prompts are shared within one API key, and there within one `cache_salt`."""
    own = body.get("cache_salt")
    if own is None:
        return exchange.tenant
    if not isinstance(own, str) or len(own) > 256:
        raise invalid("cache_salt must be a string of at most 256 characters", "cache_salt")
    return f"{exchange.tenant}:{own}"


async def whole(exchange: Exchange, generation: Generation) -> Reply:
    """The whole answer. Stops the computation if the client goes. Raises ApiError and ClientGone too."""
    watch = Watch(exchange, generation.cancel)
    try:
        reply = await generation.aresult()
    except Exception:
        watch.check()
        raise
    finally:
        watch.close()
    watch.check()
    note(exchange, reply)
    return reply


async def stream(exchange: Exchange, generation: Generation, writer: Writer) -> None:
    """Send the answer as events while it is computed.

    Raises what goes wrong before the first event; later it becomes the last event.
    """
    watch = Watch(exchange, generation.cancel)
    events = EventStream(exchange)
    try:
        try:
            async for deltas in _batches(generation):
                data = writer.deltas(deltas)
                if data:
                    await events.write(data)
            reply = await generation.aresult()
        except Exception:
            watch.check()  # what a computation raises when it was stopped says nothing
            raise
        watch.check()
        note(exchange, reply)
        await events.write(writer.end(reply), last=True)
    except ClientGone:
        raise
    except Exception as error:
        if not events.started:
            raise
        await events.write(writer.error(as_api_error(error, exchange.id, exchange.names)), last=True)
    finally:
        events.close()
        watch.close()


async def _batches(generation: Generation) -> AsyncIterator[list[Delta]]:
    """All deltas; those that have piled up while nobody looked come together, for a single write."""
    async for delta in generation:
        deltas = [delta, *generation.queued()]
        for start in range(0, len(deltas), _MAX_BATCH):
            yield deltas[start : start + _MAX_BATCH]


def note(exchange: Exchange, reply: Reply) -> None:
    """For the log and the metrics."""
    exchange.usage = add(exchange.usage, reply.usage)
    exchange.service.metrics.answered(exchange.model, reply.timings)


def add(one: Usage | None, other: Usage) -> Usage:
    if one is None:
        return other
    return Usage(
        one.prompt_tokens + other.prompt_tokens,
        one.completion_tokens + other.completion_tokens,
        one.cached_tokens + other.cached_tokens,
    )


def usage_dict(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def logprob_value(value: float) -> float:
    return max(value, _LEAST_LOGPROB)


def chat_logprob(entry: TokenLogprob) -> dict[str, Any]:
    """One token, as chat completions and responses write it."""
    return {
        **_token(entry),
        "top_logprobs": [_token(other) for other in entry.top],
    }


def _token(entry: TokenLogprob) -> dict[str, Any]:
    return {
        "token": entry.token,
        "logprob": logprob_value(entry.logprob),
        "bytes": list(entry.token_bytes),
    }


def joined_calls(deltas: list[Delta]) -> list[ToolCallDelta]:
    """The pieces of tool calls in a row, those of one call's arguments in one."""
    pieces: list[ToolCallDelta] = []
    for delta in deltas:
        for piece in delta.tool_calls:
            last = pieces[-1] if pieces else None
            if last is not None and piece.id is None and last.index == piece.index:
                pieces[-1] = ToolCallDelta(last.index, last.id, last.name, last.arguments + piece.arguments)
            else:
                pieces.append(piece)
    return pieces


def by_index(deltas: list[Delta]) -> dict[int, list[Delta]]:
    """Apart for each answer of the request."""
    if len(deltas) == 1:
        return {deltas[0].index: deltas}
    parts: dict[int, list[Delta]] = {}
    for delta in deltas:
        parts.setdefault(delta.index, []).append(delta)
    return parts


def sse(value: Any) -> bytes:
    """One event without a name."""
    return b"data: " + strict_json.dump(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"
