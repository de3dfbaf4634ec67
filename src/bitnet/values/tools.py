"""Tools that a model may ask to be called: definitions, the choice among them, and calls.

All in the shapes that the APIs of OpenAI have. Whether the parameters of a tool can be enforced is found out
where they become a grammar (text/tool_grammar.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bitnet.errors import ValidationError

from .checks import as_text, nearest

MAX_TOOLS = 128

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CHOICES = ("none", "auto", "required")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may ask to be called. `parameters`: JSON schema of its arguments, an object.

    Raises ValidationError.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValidationError(
                f"a tool's name must be 1 to 64 letters, digits, _ or -, not {self.name!r:.100}",
                field="tools",
            )
        if not isinstance(self.description, str):
            raise ValidationError(f"the description of tool {self.name!r} must be a string", field="tools")
        object.__setattr__(self, "parameters", _parameters(self.name, self.parameters))

    def to_dict(self) -> dict[str, Any]:
        """As the APIs of OpenAI write it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class NamedTool:
    """The choice of one tool, which must be called."""

    name: str


ToolLike = Tool | Mapping[str, Any]
ToolChoice = Literal["none", "auto", "required"] | NamedTool


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model asked for. arguments: the text of a JSON object (a mapping is made into one).

    Raises ValidationError.
    """

    id: str
    name: str
    arguments: str = "{}"

    def __post_init__(self) -> None:
        as_text("tool_calls.id", self.id)
        if not self.name or as_text("tool_calls.name", self.name) == "":
            raise ValidationError("a tool call has no name", field="tool_calls")
        arguments: Any = self.arguments
        if isinstance(arguments, Mapping):
            try:
                text = json.dumps(dict(arguments), ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise ValidationError(
                    f"the arguments of the call of {self.name!r} are not plain JSON: {error}",
                    field="tool_calls",
                ) from None
            object.__setattr__(self, "arguments", text)
        else:
            # Clients write nothing where a function takes nothing.
            object.__setattr__(self, "arguments", as_text("tool_calls.arguments", arguments) or "{}")
            self.parsed  # noqa: B018  # raises

    @property
    def parsed(self) -> dict[str, Any]:
        """The arguments as a dict."""
        try:
            value = json.loads(self.arguments)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ValidationError(
                f"the arguments of the call of {self.name!r} must be a JSON object", field="tool_calls"
            )
        return value

    def to_dict(self) -> dict[str, Any]:
        """As the APIs of OpenAI write it."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


def as_tool_calls(value: Any) -> tuple[ToolCall, ...]:
    """Calls, from ToolCall or {"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}.

    Raises ValidationError.
    """
    if value is None:
        return ()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValidationError(f"tool_calls must be a list, not {type(value).__name__}", field="tool_calls")
    return tuple(_as_tool_call(item, f"tool_calls[{index}]") for index, item in enumerate(value))


def _as_tool_call(item: Any, place: str) -> ToolCall:
    if isinstance(item, ToolCall):
        return item
    function = item.get("function") if isinstance(item, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValidationError(
            f'{place} must be {{"id": ..., "type": "function", "function": {{"name": ..., '
            '"arguments": ...}}',
            field="tool_calls",
        )
    arguments = function.get("arguments")
    return ToolCall(item.get("id") or "", function["name"], "" if arguments is None else arguments)


def as_tools(value: Iterable[ToolLike] | None) -> tuple[Tool, ...]:
    """Tools, from Tool or definitions {"type": "function", "function": {"name": ..., "description": ...,
    "parameters": ..., "strict": ...}}. Schemas are always enforced, whatever `strict` says.

    Raises ValidationError naming the tool.
    """
    if value is None:
        return ()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValidationError(f"tools must be a list, not {type(value).__name__}", field="tools")
    tools = tuple(_as_tool(item, f"tools[{index}]") for index, item in enumerate(value))
    if len(tools) > MAX_TOOLS:
        raise ValidationError(f"tools must hold at most {MAX_TOOLS} tools, not {len(tools)}", field="tools")
    names: set[str] = set()
    for tool in tools:
        if tool.name in names:
            raise ValidationError(f"two tools have the name {tool.name!r}", field="tools")
        names.add(tool.name)
    return tools


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
                raise ValidationError(
                    f"{where} has an unknown key {key!r}; {nearest(str(key), known)}", field="tools"
                )
    parameters = function.get("parameters")
    try:
        return Tool(
            function.get("name"),  # type: ignore[arg-type]  # checked by Tool
            function.get("description") or "",
            {} if parameters is None else parameters,
        )
    except ValidationError as error:
        raise ValidationError(f"{place}: {error}", field="tools") from None


def _parameters(name: str, parameters: Any) -> dict[str, Any]:
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise ValidationError(
            f'the parameters of tool {name!r} must be a schema of type "object"', field="tools"
        )
    # A tool that lists no parameters has none.
    return {"type": "object", **({} if _says_more(parameters) else {"properties": {}}), **parameters}


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
