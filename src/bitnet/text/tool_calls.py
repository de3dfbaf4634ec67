"""Tools told to a model, and its calls told back to it, in the messages of a prompt.

The format is that of Hermes and Qwen: <tool_call>{"name": ..., "arguments": {...}}</tool_call>. Models whose
chat template speaks of it get the tools through the template, all others through the system message. Reading
the calls of an answer is left to tool_call_parser.py, forcing a model to keep to the format to
tool_grammar.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from bitnet.values import Message, Tool, ToolCall

from .chat_template import ChatTemplate

OPENER = "<tool_call>"
CLOSER = "</tool_call>"


class PromptParts(NamedTuple):
    """What a chat template is given: messages, and tools if it presents them itself."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None


def prompt_parts(template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool]) -> PromptParts:
    """Messages and tools as this template can present them."""
    if template_has_tools(template):
        return PromptParts(_for_tool_template(messages), [tool.to_dict() for tool in tools] or None)
    return PromptParts(_with_tool_prompt(messages, tools), None)


def template_has_tools(template: ChatTemplate) -> bool:
    """Whether the chat template itself presents tools in this format."""
    source = template.source or ""
    return template.supports_tools and OPENER in source and '"arguments"' in source


def _with_tool_prompt(messages: Sequence[Message], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Messages for a chat template that knows nothing of tools.

    The tools come first in the system message, and the calls of earlier turns stand in their text as the
    model wrote them.
    """
    result = []
    for message in messages:
        plain = message.to_dict()
        if message.tool_calls:
            del plain["tool_calls"]
            parts = [message.content, *map(_call_text, message.tool_calls)]
            plain["content"] = "\n".join(part for part in parts if part)
        plain.pop("tool_call_id", None)
        result.append(plain)
    if tools:
        prompt = _tool_prompt(tools)
        if result[0]["role"] == "system":
            result[0]["content"] = f"{prompt}\n\n{result[0]['content']}".rstrip()
        else:
            result.insert(0, {"role": "system", "content": prompt})
    return result


def _for_tool_template(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages for a chat template that renders tool calls itself: it wants the arguments as objects."""
    result = []
    for message in messages:
        plain = message.to_dict()
        if message.tool_calls:
            plain["tool_calls"] = [
                {**call.to_dict(), "function": {"name": call.name, "arguments": call.parsed}}
                for call in message.tool_calls
            ]
        result.append(plain)
    return result


def _tool_prompt(tools: Sequence[Tool]) -> str:
    lines = "\n".join(json.dumps(tool.to_dict(), ensure_ascii=False) for tool in tools)
    call = f'{OPENER}{{"name": ..., "arguments": {{...}}}}{CLOSER}'
    return f"# Tools\n<tools>\n{lines}\n</tools>\nTo call a tool, reply {call}"


def _call_text(call: ToolCall) -> str:
    body = {"name": call.name, "arguments": call.parsed}
    return f"{OPENER}{json.dumps(body, ensure_ascii=False)}{CLOSER}"
