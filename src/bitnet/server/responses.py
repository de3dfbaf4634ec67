"""/responses: OpenAI's newer API. Nothing is stored: each request brings its whole conversation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from bitnet.server import generate, parameters
from bitnet.server.errors import invalid
from bitnet.server.exchange import Exchange
from bitnet.server.messages import tool_choice
from bitnet.server.response_events import ResponseWriter
from bitnet.server.response_items import function_call, message, usage_dict
from bitnet.values import MAX_TOP_LOGPROBS, Reply

_LOGPROBS = "message.output_text.logprobs"
# Options of BitNet, as this API calls them.
_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "prompt": "input",
}
_PARTS = ("input_text", "output_text", "text", "refusal")
_ROLES = ("user", "assistant", "system", "developer")


async def responses(exchange: Exchange) -> None:
    exchange.names = {**exchange.names, **_NAMES}
    body = await exchange.read_json()
    options = parameters.options_of(body, parameters.RESPONSES)
    messages = _messages(exchange, body)
    options.update(_format(body.get("text")))
    options.update(_logprobs(body))
    tools = _tools(body.get("tools"))
    if tools:
        options["tools"] = tools
    choice = _choice(body.get("tool_choice"), has_tools=bool(tools))
    if choice is not None:
        options["tool_choice"] = choice
    options["cache_salt"] = generate.salt(exchange, body)
    exchange.service.limits.apply(options)
    streamed = parameters.flag(body, "stream")
    served = exchange.service.models.find(body.get("model"))
    exchange.model = served.name
    response = _skeleton(body, served.name)
    async with served.use() as model:
        generation = model.astream_chat(messages, **options)
        if streamed:
            await generate.stream(exchange, generation, ResponseWriter(response, _completed))
        else:
            reply = await generate.whole(exchange, generation)
            await exchange.send_json(_completed(response, reply, _output(reply)))


def _skeleton(body: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The response before it has an answer: what was asked for, and what happens anyway."""
    return {
        "id": generate.new_id("resp"),
        "object": "response",
        "created_at": generate.now(),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata") or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": body.get("temperature"),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_logprobs": body.get("top_logprobs") or 0,
        "top_p": body.get("top_p"),
        "truncation": "disabled",
        "usage": None,
        "user": body.get("user"),
    }


def _completed(
    response: Mapping[str, Any], reply: Reply, output: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    cut = reply.finish_reason == "length"
    return {
        **response,
        "status": "incomplete" if cut else "completed",
        "completed_at": None if cut else int(time.time()),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": output,
        "usage": usage_dict(reply.usage),
    }


def _output(reply: Reply) -> list[dict[str, Any]]:
    status = "incomplete" if reply.finish_reason == "length" else "completed"
    items = []
    if reply.text or not reply.tool_calls:
        items.append(message(generate.new_id("msg"), reply.text, reply.logprobs or (), status))
    items += [
        function_call(generate.new_id("fc"), call.id, call.name, call.arguments, "completed")
        for call in reply.tool_calls
    ]
    return items


def _messages(exchange: Exchange, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The instructions and the input as messages of a chat. Raises ApiError."""
    instructions, given = body.get("instructions"), body.get("input")
    messages: list[dict[str, Any]] = []
    if instructions is not None:
        if not isinstance(instructions, str):
            raise invalid("instructions must be a string", "instructions")
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise invalid("input must be a string or a list of items, at least one", "input")
    limit = exchange.service.limits.max_messages
    if len(given) > limit:
        raise invalid(f"input must hold at most {limit} items here, not {len(given)}", "input")
    for index, item in enumerate(given):
        _add_item(messages, item, f"input[{index}]")
    return messages


def _add_item(messages: list[dict[str, Any]], item: Any, place: str) -> None:
    kind = item.get("type", "message") if isinstance(item, dict) else type(item).__name__
    if kind == "message":
        role = item.get("role")
        if role not in _ROLES:
            raise invalid(f"{place}.role must be one of {', '.join(_ROLES)}", "input")
        messages.append(
            {
                "role": "system" if role == "developer" else role,
                "content": _content(item.get("content"), f"{place}.content"),
            }
        )
    elif kind == "function_call":
        # A turn of the assistant is a text and its calls, together.
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        call = {
            "id": item.get("call_id"),
            "type": "function",
            "function": {"name": item.get("name"), "arguments": item.get("arguments")},
        }
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        content = _content(item.get("output"), f"{place}.output")
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
    else:
        raise invalid(
            f"{place} is of type {kind!r:.100}; understood are message, function_call and "
            "function_call_output",
            "input",
        )


def _content(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"{place} must be a string or a list of parts", "input")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
        if kind not in _PARTS or not isinstance(text, str):
            raise invalid(f"{place} has a part of type {kind!r:.100}; this server reads text only", "input")
        texts.append(text)
    return "".join(texts)


def _format(text: Any) -> dict[str, Any]:
    if text is None:
        return {}
    if not isinstance(text, dict):
        raise invalid("text must be an object", "text")
    for name, value in text.items():
        if name == "verbosity" and value not in (None, "medium"):
            raise invalid("the models here know no degrees of verbosity; ask for it in words", "text")
        if name not in ("format", "verbosity"):
            raise invalid(f"text has an unknown key {name!r:.100}", "text")
    response_format = text.get("format")
    if response_format is None:
        return {}
    if isinstance(response_format, dict):
        # Of the API's types, null is the same as not given.
        response_format = {key: value for key, value in response_format.items() if value is not None}
    return {"response_format": response_format}


def _logprobs(body: Mapping[str, Any]) -> dict[str, Any]:
    include = body.get("include") or []
    top = body.get("top_logprobs")
    if not isinstance(include, list):
        raise invalid("include must be a list", "include")
    for name in include:
        # What others ask for belongs to items that do not occur here.
        if name not in (_LOGPROBS, "reasoning.encrypted_content"):
            raise invalid(f"include may hold {_LOGPROBS}, not {name!r:.100}", "include")
    if top is None:
        top = 0
    if isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= MAX_TOP_LOGPROBS:
        raise invalid(f"top_logprobs must be a whole number from 0 to {MAX_TOP_LOGPROBS}", "top_logprobs")
    if _LOGPROBS not in include:
        if top:
            raise invalid(f"top_logprobs needs include: [{_LOGPROBS!r}]", "top_logprobs")
        return {}
    return {"logprobs": True, "top_logprobs": top}


def _tools(tools: Any) -> list[Any]:
    """Functions in this API's flat shape, in that of chat completions. Raises ApiError."""
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise invalid("tools must be a list", "tools")
    nested = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            kind = tool.get("type") if isinstance(tool, dict) else type(tool).__name__
            raise invalid(
                f"tools[{index}] is of type {kind!r:.100}; this server knows functions only", "tools"
            )
        nested.append(
            {
                "type": "function",
                "function": {k: v for k, v in tool.items() if k != "type" and v is not None},
            }
        )
    return nested


def _choice(value: Any, *, has_tools: bool) -> Any:
    if isinstance(value, dict) and value.get("type") == "function" and "function" not in value:
        return {"type": "function", "function": {"name": value.get("name")}}
    return tool_choice(value, has_tools=has_tools)
