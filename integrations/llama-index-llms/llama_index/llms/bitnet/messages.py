"""LlamaIndex's messages and tools as bitnet has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.tools.types import BaseTool

from bitnet import Message, ToolCall, ValidationError

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}
# Calls stand in Message.tool_calls, and what a model thought before an answer is not told back to it.
_SILENT_BLOCKS = (ToolCallBlock, ThinkingBlock, CachePoint)


def to_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Raises bitnet.ValidationError for what a text model cannot read."""
    return [_to_message(message) for message in messages]


def _to_message(message: ChatMessage) -> Message:
    role = _ROLES[message.role]
    text = "\n".join(_texts(message.blocks, role))  # as ChatMessage.content joins them
    extra = message.additional_kwargs
    return Message(
        role,
        text,
        tool_calls_of(message) if role == "assistant" else (),
        extra.get("tool_call_id") if role == "tool" else None,
        extra.get("name"),
    )


def _texts(blocks: Iterable[ContentBlock], role: str) -> Iterable[str]:
    for block in blocks:
        if isinstance(block, TextBlock):
            yield block.text
        elif isinstance(block, CitableBlock):
            yield from _texts(block.content, role)
        elif isinstance(block, CitationBlock):
            yield from _texts([block.cited_content], role)
        elif not isinstance(block, _SILENT_BLOCKS):
            raise ValidationError(
                f"a message of the role {role} holds a {type(block).__name__}: this model reads text only",
                field="messages",
            )


def tool_calls_of(message: ChatMessage) -> tuple[ToolCall, ...]:
    """The calls that a message asks for: its blocks, or else the older additional_kwargs["tool_calls"]."""
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if blocks:
        return tuple(
            ToolCall(block.tool_call_id or "", block.tool_name, _arguments(block.tool_kwargs))
            for block in blocks
        )
    calls = message.additional_kwargs.get("tool_calls") or ()
    # Messages of other integrations hold objects of their client library here.
    plain = [call if isinstance(call, Mapping) else call.model_dump() for call in calls]
    return tuple(
        ToolCall(call.get("id") or "", call["function"]["name"], _arguments(call["function"]["arguments"]))
        for call in plain
    )


def _arguments(arguments: Any) -> Any:
    # ToolCall makes JSON of a mapping. Nothing but None and "" stands for no arguments.
    return "{}" if arguments is None or arguments == "" else arguments


def tool_definitions(tools: Iterable[BaseTool | Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools in the shape of OpenAI's API, whatever the length of their descriptions."""
    return [
        dict(tool) if isinstance(tool, Mapping) else tool.metadata.to_openai_tool(skip_length_check=True)
        for tool in tools
    ]


def tool_choice_of(choice: str | Mapping[str, Any]) -> str | dict[str, Any]:
    """ "auto", "none", "required" or "any", the name of a tool, or {"type": "function", ...}."""
    if not isinstance(choice, str):
        return dict(choice)
    if choice in ("auto", "none", "required"):
        return choice
    if choice == "any":
        return "required"
    return {"type": "function", "function": {"name": choice}}


def with_suffix(messages: Sequence[ChatMessage], suffix: str) -> list[ChatMessage]:
    """Copies of messages, with a text behind that of the last one of the user; it is one if there is none."""
    result = list(messages)
    for index in range(len(result) - 1, -1, -1):
        message = result[index]
        if message.role == MessageRole.USER:
            blocks = list(message.blocks)
            if blocks and isinstance(blocks[-1], TextBlock):
                blocks[-1] = TextBlock(text=blocks[-1].text + suffix)
            else:
                blocks.append(TextBlock(text=suffix.lstrip()))
            result[index] = ChatMessage(
                role=message.role, blocks=blocks, additional_kwargs=dict(message.additional_kwargs)
            )
            return result
    return [*result, ChatMessage(role=MessageRole.USER, content=suffix.lstrip())]
