"""Conversations as clients send them, as BitNet takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitnet.server.errors import invalid
from bitnet.server.exchange import Exchange

# What answers of OpenAI's API hold and clients send back, and what it must be to be left out.
_EMPTY_IN_ANSWERS: Mapping[str, tuple[Any, ...]] = {
    "refusal": (None,),
    "audio": (None,),
    "function_call": (None,),
    "annotations": (None, []),
    "tool_calls": (None, []),
    "reasoning_content": (None, ""),
    "parsed": (None,),
}


def chat_messages(exchange: Exchange, value: Any) -> list[Any]:
    """The messages of a chat request. Raises ApiError; what is left to check is for Request to say."""
    if not isinstance(value, list):
        raise invalid('messages must be a list such as [{"role": "user", "content": "Hi"}]', "messages")
    limit = exchange.service.limits.max_messages
    if len(value) > limit:
        raise invalid(f"messages must hold at most {limit} messages here, not {len(value)}", "messages")
    return [_message(message) if isinstance(message, dict) else message for message in value]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    kept = {
        key: value
        for key, value in message.items()
        if not (key in _EMPTY_IN_ANSWERS and any(value == empty for empty in _EMPTY_IN_ANSWERS[key]))
    }
    if kept.get("role") == "developer":  # OpenAI's newer name for it
        kept["role"] = "system"
    if kept.get("role") == "assistant" and isinstance(kept.get("content"), list):
        kept["content"] = [_refusal_as_text(part) for part in kept["content"]]
    return kept


def _refusal_as_text(part: Any) -> Any:
    if isinstance(part, dict) and part.get("type") == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    return part


def tool_choice(value: Any, *, has_tools: bool) -> Any:
    """The tool_choice of a request. Clients send "none" and "auto" without tools too."""
    if not has_tools and value in ("none", "auto"):
        return None
    return value
