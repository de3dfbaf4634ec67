"""Message: one turn of a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bitnet.errors import ValidationError

from .checks import as_text, nearest
from .tools import ToolCall, as_tool_calls

ROLES = ("system", "user", "assistant", "tool")
_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role`: system, user, assistant or tool.

    tool_calls: what the assistant asked to be called. tool_call_id: which of those calls a message of the
    role tool answers. name: who speaks, or the tool that answers; only some chat templates show it.
    """

    role: str
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.role, str) or self.role not in ROLES:
            raise ValidationError(f"role must be one of {', '.join(ROLES)}, not {self.role!r}", field="role")
        as_text("content", self.content)
        object.__setattr__(self, "tool_calls", as_tool_calls(self.tool_calls))
        if self.tool_calls and self.role != "assistant":
            raise ValidationError(
                f"tool_calls belong to messages of the role assistant, not {self.role}", field="tool_calls"
            )
        if self.tool_call_id is not None:
            as_text("tool_call_id", self.tool_call_id)
            if self.role != "tool":
                raise ValidationError(
                    f"tool_call_id belongs to messages of the role tool, not {self.role}",
                    field="tool_call_id",
                )
        if self.name is not None:
            as_text("name", self.name)

    def to_dict(self) -> dict[str, Any]:
        """As the APIs of OpenAI write it."""
        result: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            result["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        if self.tool_call_id is not None:
            result["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            result["name"] = self.name
        return result


MessageLike = Message | Mapping[str, Any]


def as_messages(value: Iterable[MessageLike]) -> tuple[Message, ...]:
    """Messages, from Message or mappings {"role": ..., "content": ...} as the APIs of OpenAI have them.

    The content may also be a list of parts {"type": "text", "text": ...}, whose texts are joined as they are,
    or None beside tool calls. Raises ValidationError.
    """
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValidationError(
            'messages must be a list such as [{"role": "user", "content": "Hi"}], '
            f"not {type(value).__name__}",
            field="messages",
        )
    result = []
    for index, item in enumerate(value):
        if isinstance(item, Message):
            result.append(item)
            continue
        try:
            result.append(_as_message(item))
        except ValidationError as error:
            raise ValidationError(f"messages[{index}]: {error}", field="messages") from None
    if not result:
        raise ValidationError("messages is empty: there is nothing to answer", field="messages")
    return tuple(result)


def _as_message(item: Any) -> Message:
    if not isinstance(item, Mapping):
        raise ValidationError(f'a message must be {{"role": ..., "content": ...}}, not {type(item).__name__}')
    for key in item:
        if key not in _KEYS:
            raise ValidationError(f"unknown key {key!r}; {nearest(str(key), _KEYS)}")
    if "role" not in item:
        raise ValidationError("there is no 'role'")
    tool_calls = as_tool_calls(item.get("tool_calls"))
    content = item.get("content")
    if content is None and not tool_calls:
        raise ValidationError("there is no 'content'")
    return Message(item["role"], _text(content), tool_calls, item.get("tool_call_id"), item.get("name"))


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise ValidationError(f"content must be a string or a list of parts, not {type(content).__name__}")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValidationError(
                f'content has a part of type {kind!r}; this engine reads {{"type": "text", "text": ...}}'
            )
        texts.append(part["text"])
    return "".join(texts)
