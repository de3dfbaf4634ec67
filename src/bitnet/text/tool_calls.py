"""Tools in and out: definitions and choices checked, told to the model, and its calls taken out of the text.

The format is that of Hermes and Qwen: <tool_call>{"name": ..., "arguments": {...}}</tool_call>. Models whose
chat template speaks of it get the tools through the template, all others through the system message. Reading
the calls is left to tool_call_parser.py, forcing a model to keep to the format to tool_grammar.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bitnet.errors import ValidationError

from .chat_template import ChatTemplate
from .json_schema import JsonGrammar

OPENER = "<tool_call>"
CLOSER = "</tool_call>"
MAX_TOOLS = 128

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CHOICES = ("none", "auto", "required")


@dataclass(frozen=True)
class Tool:
    """A function that a model may ask to be called. `parameters`: JSON schema of its arguments, an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As the APIs of OpenAI write it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class NamedTool:
    """The choice of one tool, which must be called."""

    name: str


ToolLike = Tool | Mapping[str, Any]
ToolChoice = Literal["none", "auto", "required"] | NamedTool


def as_tools(value: Iterable[ToolLike]) -> tuple[Tool, ...]:
    """Tools, from Tool or definitions {"type": "function", "function": {"name": ..., "description": ...,
    "parameters": ..., "strict": ...}}.

    Raises ValidationError, and ConstraintError for parameters that cannot be enforced, both naming the tool.
    """
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValidationError(f"tools must be a list, not {type(value).__name__}", field="tools")
    tools = [_as_tool(item, f"tools[{index}]") for index, item in enumerate(value)]
    if len(tools) > MAX_TOOLS:
        raise ValidationError(f"tools must hold at most {MAX_TOOLS} tools, not {len(tools)}", field="tools")
    names: set[str] = set()
    for tool in tools:
        if tool.name in names:
            raise ValidationError(f"two tools have the name {tool.name!r}", field="tools")
        names.add(tool.name)
    return tuple(tools)


def _as_tool(item: ToolLike, place: str) -> Tool:
    if isinstance(item, Tool):
        return item
    function = item.get("function") if isinstance(item, Mapping) else None
    if not isinstance(function, Mapping) or item.get("type") != "function":
        raise ValidationError(
            f'{place} must be {{"type": "function", "function": {{"name": ...}}}}', field="tools"
        )
    for where, keys, known in (
        (place, item, ("type", "function")),
        (f"{place}.function", function, ("name", "description", "parameters", "strict")),
    ):
        for key in keys:
            if key not in known:
                names = ", ".join(known)
                raise ValidationError(f"{where} has an unknown key {key!r}; known: {names}", field="tools")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValidationError(
            f"{place}.function.name must be 1 to 64 letters, digits, _ or -, not {name!r:.100}", field="tools"
        )
    description = function.get("description") or ""
    if not isinstance(description, str):
        raise ValidationError(f"the description of tool {name!r} must be a string", field="tools")
    parameters = function.get("parameters")
    return Tool(name, description, _checked_parameters(name, {} if parameters is None else parameters))


def _checked_parameters(name: str, parameters: Any) -> dict[str, Any]:
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise ValidationError(
            f'the parameters of tool {name!r} must be a schema of type "object"', field="tools"
        )
    # A tool that lists no parameters has none.
    schema = {"type": "object", **({} if _says_more(parameters) else {"properties": {}}), **parameters}
    JsonGrammar().add(schema, name=f"tool {name}: ")
    return schema


def _says_more(parameters: Mapping[str, Any]) -> bool:
    keys = {"properties", "patternProperties", "additionalProperties", "$ref", "allOf", "anyOf", "oneOf"}
    return not keys.isdisjoint(parameters)


def as_tool_choice(value: Any, tools: Sequence[Tool]) -> ToolChoice:
    """ "none", "auto", "required" or {"type": "function", "function": {"name": ...}}; None = "auto".

    Raises ValidationError, also for a choice that needs tools where there are none.
    """
    if value is None:
        return "auto"
    if isinstance(value, str) and value in ("none", "auto"):
        return "none" if value == "none" else "auto"
    name: Any = None
    if isinstance(value, NamedTool):
        name = value.name
    elif isinstance(value, Mapping) and value.get("type") == "function":
        function = value.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
    if value != "required" and not isinstance(name, str):
        raise ValidationError(
            f"tool_choice must be one of {', '.join(_CHOICES)} or "
            f'{{"type": "function", "function": {{"name": ...}}}}, not {value!r:.200}',
            field="tool_choice",
        )
    known = [tool.name for tool in tools]
    if not known:
        raise ValidationError("tool_choice asks for a tool, but there are no tools", field="tool_choice")
    if value == "required":
        return "required"
    if name not in known:
        raise ValidationError(
            f"tool_choice names the tool {name!r}; known: {', '.join(known)}", field="tool_choice"
        )
    return NamedTool(name)


def template_has_tools(template: ChatTemplate) -> bool:
    """Whether the chat template itself presents tools in this format: pass them to its render(tools=...)."""
    source = template.source or ""
    return template.supports_tools and OPENER in source and '"arguments"' in source


def with_tool_prompt(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Messages for a chat template that knows nothing of tools.

    The tools come first in the system message, and the calls of earlier turns stand in their text as the
    model wrote them.
    """
    result = []
    for message in messages:
        plain = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id")}
        calls = message.get("tool_calls") or ()
        if calls:
            parts = [message.get("content") or "", *map(_call_text, calls)]
            plain["content"] = "\n".join(part for part in parts if part)
        result.append(plain)
    if tools:
        prompt = _tool_prompt(tools)
        if result and result[0].get("role") == "system":
            result[0]["content"] = f"{prompt}\n\n{result[0].get('content') or ''}".rstrip()
        else:
            result.insert(0, {"role": "system", "content": prompt})
    return result


def for_tool_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages for a chat template that renders tool calls itself: it wants the arguments as objects."""
    result = []
    for message in messages:
        plain = dict(message)
        if message.get("tool_calls"):
            plain["tool_calls"] = [
                {**call, "function": {**_function(call), "arguments": _arguments(call)}}
                for call in message["tool_calls"]
            ]
        result.append(plain)
    return result


def _tool_prompt(tools: Sequence[Tool]) -> str:
    lines = "\n".join(json.dumps(tool.to_dict(), ensure_ascii=False) for tool in tools)
    call = f'{OPENER}{{"name": ..., "arguments": {{...}}}}{CLOSER}'
    return f"# Tools\n<tools>\n{lines}\n</tools>\nTo call a tool, reply {call}"


def _call_text(call: Mapping[str, Any]) -> str:
    body = {"name": _function(call)["name"], "arguments": _arguments(call)}
    return f"{OPENER}{json.dumps(body, ensure_ascii=False)}{CLOSER}"


def _function(call: Any) -> Mapping[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValidationError(
            'a tool call in messages must be {"id": ..., "type": "function", "function": {"name": ..., '
            '"arguments": ...}}',
            field="messages",
        )
    return function


def _arguments(call: Any) -> Any:
    """The arguments of a call in a message, which clients send as JSON text. Raises ValidationError."""
    function = _function(call)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = None
    if not isinstance(arguments, Mapping):
        raise ValidationError(
            f"the arguments of the call of {function['name']!r} in messages must be a JSON object",
            field="messages",
        )
    return dict(arguments)
