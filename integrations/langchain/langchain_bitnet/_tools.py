"""Tools and the choice among them, in all the forms LangChain knows, as bitnet has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

ToolLike = Mapping[str, Any] | type | Callable[..., Any] | BaseTool


def to_tools(tools: Sequence[ToolLike], *, strict: bool | None = None) -> list[dict[str, Any]]:
    """Definitions {"type": "function", "function": {...}}.

    Raises ValueError for tools that only a provider can run, such as a web search.
    """
    return [_to_tool(tool, strict) for tool in tools]


def _to_tool(tool: ToolLike, strict: bool | None) -> dict[str, Any]:
    # Anthropic's definitions may carry keys such as cache_control, which convert_to_openai_tool drops.
    definition = convert_to_openai_tool(tool, strict=strict)
    if definition.get("type") == "function" and "function" not in definition:
        # As OpenAI's Responses API writes it.
        definition = {"type": "function", "function": {k: v for k, v in definition.items() if k != "type"}}
    if definition.get("type") != "function":
        raise ValueError(
            f"a tool of type {definition.get('type')!r} is run by the provider; BitNet models call functions"
        )
    return {"type": "function", "function": definition["function"]}


def to_tool_choice(choice: Any, tools: Sequence[Mapping[str, Any]]) -> str | dict[str, Any] | None:
    """ "auto", "none", "required" or {"type": "function", "function": {"name": ...}}; None = not said.

    choice: one of these; "any" and True for "required"; the name of a tool; or Anthropic's
    {"type": "any"} and {"type": "tool", "name": ...}. Raises ValueError for a tool that is not among `tools`.
    """
    if choice is None or choice is False:
        return None
    if choice is True or choice in ("any", "required"):
        return "required"
    if choice in ("auto", "none"):
        return str(choice)
    name: Any = choice
    if isinstance(choice, Mapping):
        kind = choice.get("type")
        if kind in ("auto", "none", "any", "required"):
            return to_tool_choice(kind, tools)
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
    known = [tool["function"]["name"] for tool in tools]
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"tool_choice {choice!r} must be 'auto', 'none', 'any', True, or one of the tools: "
            f"{', '.join(known) or 'there are none'}"
        )
    return {"type": "function", "function": {"name": name}}


def is_forced(choice: Any) -> bool:
    """Whether the answer must be a call."""
    return choice == "required" or isinstance(choice, Mapping)
