"""LangChain's messages as bitnet has them: text, and tool calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bitnet import Message, ToolCall
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

# Blocks of an answer that are not told back to a model: calls stand in `tool_calls`, and what a model thought
# before an answer is not part of the conversation.
_SILENT_BLOCKS = frozenset(
    {
        "tool_use",
        "tool_call",
        "tool_call_chunk",
        "invalid_tool_call",
        "function_call",
        "thinking",
        "redacted_thinking",
        "reasoning",
        "reasoning_content",
    }
)


def to_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """Raises ValueError for what a text model cannot read."""
    return [_to_message(message) for message in messages]


def _to_message(message: BaseMessage) -> Message:
    name = message.name
    if isinstance(message, AIMessage):
        calls = tuple(
            ToolCall(call["id"] or "", call["name"], call["args"])  # type: ignore[arg-type]  # made into JSON
            for call in message.tool_calls
        )
        text = text_of(message.content, of_model=True)
        for invalid in message.invalid_tool_calls:  # not JSON, so it can only be shown
            text = "\n".join(filter(None, (text, f"{invalid['name']}({invalid['args']})")))
        return Message("assistant", text, calls, name=name)
    text = text_of(message.content)
    if isinstance(message, HumanMessage):
        return Message("user", text, name=name)
    if isinstance(message, SystemMessage):
        return Message("system", text, name=name)
    if isinstance(message, ToolMessage):
        return Message("tool", text, tool_call_id=message.tool_call_id, name=name)
    if isinstance(message, FunctionMessage):
        return Message("tool", text, name=name)
    if isinstance(message, ChatMessage):
        role = {"human": "user", "ai": "assistant", "developer": "system"}.get(message.role, message.role)
        return Message(role, text, name=name)
    raise ValueError(f"a {type(message).__name__} cannot be told to a model")


def text_of(content: str | Iterable[str | dict[str, Any]], *, of_model: bool = False) -> str:
    """The text of a message's content, whose blocks are joined as they are.

    of_model: it is an answer, which may hold blocks that are not told back.
    """
    if isinstance(content, str):
        return content
    return "".join(_text_of_block(block, of_model) for block in content)


def _text_of_block(block: str | dict[str, Any], of_model: bool) -> str:
    if isinstance(block, str):
        return block
    kind = block.get("type")
    text = block.get("text")
    if kind in ("text", "text-plain", None) and isinstance(text, str):
        return text
    if of_model and kind in _SILENT_BLOCKS:
        return ""
    raise ValueError(f"a message holds a block of type {kind!r}; BitNet models read text only")
