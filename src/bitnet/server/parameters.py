"""Every parameter of OpenAI's API that clients send, and what it means here: the one place to look it up.

A parameter is taken (an endpoint reads it), harmless (accepted, because it cannot change the answer), or
refused unless its value asks for what happens anyway. Nothing that would change an answer is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bitnet.server.errors import invalid
from bitnet.values import nearest


class Taken(NamedTuple):
    """An endpoint reads it. option: its name as an option of BitNet.chat, if it is one."""

    option: str | None = None


class Harmless(NamedTuple):
    """Accepted and of no effect, for the reason given."""

    why: str


class Only(NamedTuple):
    """Refused, unless its value is one of these."""

    values: tuple[Any, ...]
    why: str


Parameter = Taken | Harmless | Only

_TAKEN = Taken()
_LABEL = Harmless("a label for the provider's own records")
_SPEED = Harmless("a hint that can only change speed or price")

# Options of BitNet under their own names. The lower ones are not OpenAI's, but usual among local servers.
_SAMPLING: dict[str, Parameter] = {
    name: Taken(name)
    for name in (
        "temperature",
        "top_p",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "logit_bias",
        "stop",
        "n",
        "top_k",
        "min_p",
        "repetition_penalty",
        "ignore_eos",
        "response_format",
    )
}

_EVERYWHERE: dict[str, Parameter] = {
    "model": _TAKEN,
    "user": _LABEL,
    "metadata": _LABEL,
    "safety_identifier": _LABEL,
    "service_tier": _SPEED,
    "prompt_cache_key": _SPEED,
    "prompt_cache_retention": _SPEED,
    "prompt_cache_options": _SPEED,
}

_GENERATING: dict[str, Parameter] = {
    **_EVERYWHERE,
    **_SAMPLING,
    "max_tokens": Taken("max_tokens"),
    "cache_salt": _TAKEN,
    "stream": _TAKEN,
    "stream_options": _TAKEN,
    "return_token_ids": _TAKEN,
    "repeat_penalty": Taken("repetition_penalty"),  # llama.cpp's name for it
    "cache_prompt": _SPEED,  # llama.cpp's
}

CHAT: Mapping[str, Parameter] = {
    **_GENERATING,
    "messages": _TAKEN,
    "max_completion_tokens": Taken("max_tokens"),
    "logprobs": Taken("logprobs"),
    "top_logprobs": Taken("top_logprobs"),
    "tools": Taken("tools"),
    "tool_choice": _TAKEN,
    "parallel_tool_calls": Taken("parallel_tool_calls"),
    "chat_template_kwargs": Taken("template_args"),
    "store": Harmless("nothing is stored, whatever it says"),
    "prediction": _SPEED,
    "audio": Only((None,), "this server answers in text"),
    "modalities": Only((None, ["text"]), "this server answers in text"),
    "functions": Only((None, []), "it is the old form of tools; send tools"),
    "function_call": Only((None, "none", "auto"), "it is the old form of tool_choice; send tool_choice"),
    "reasoning_effort": Only((None, "none"), "these models do not reason apart from their answer"),
    "verbosity": Only((None, "medium"), "the models here know no degrees of it; ask for it in words"),
    "web_search_options": Only((None,), "this server does not search the web"),
    "moderation": Only((None,), "this server does not moderate"),
}

COMPLETIONS: Mapping[str, Parameter] = {
    **_GENERATING,
    "prompt": _TAKEN,
    "logprobs": _TAKEN,
    "best_of": _TAKEN,
    "suffix": Only((None, ""), "the models here cannot fill in the middle; end the prompt where they begin"),
    "echo": Only((None, False), "put the prompt before the answer yourself"),
}

EMBEDDINGS: Mapping[str, Parameter] = {
    **_EVERYWHERE,
    "input": _TAKEN,
    "encoding_format": _TAKEN,
    "dimensions": Taken("dimensions"),
    "kind": Taken("kind"),
    "prefix": Taken("prefix"),
    "pooling": Taken("pooling"),
    "normalize": Taken("normalize"),
}

RESPONSES: Mapping[str, Parameter] = {
    **_EVERYWHERE,
    **{name: parameter for name, parameter in _SAMPLING.items() if name not in ("n", "response_format")},
    "input": _TAKEN,
    "instructions": _TAKEN,
    "text": _TAKEN,
    "max_output_tokens": Taken("max_tokens"),
    "tools": _TAKEN,
    "tool_choice": _TAKEN,
    "parallel_tool_calls": Taken("parallel_tool_calls"),
    "top_logprobs": _TAKEN,
    "include": _TAKEN,
    "stream": _TAKEN,
    "stream_options": Harmless("responses always tell their usage, and have nothing to obfuscate"),
    "cache_salt": _TAKEN,
    "chat_template_kwargs": Taken("template_args"),
    "store": Harmless("nothing is stored, whatever it says"),
    "background": Only((None, False), "nothing is stored here: the answer is in the response"),
    "previous_response_id": Only((None,), "nothing is stored here: send the whole conversation as input"),
    "conversation": Only((None,), "nothing is stored here: send the whole conversation as input"),
    "prompt": Only((None,), "there are no stored prompts here"),
    "truncation": Only((None, "disabled"), "nothing is cut silently here; shorten the input"),
    "reasoning": Only((None, {}, {"effort": "none"}), "these models do not reason apart from their answer"),
    "max_tool_calls": Only((None,), "it counts calls of built-in tools, of which there are none here"),
    "moderation": Only((None,), "this server does not moderate"),
    "context_management": Only((None, []), "nothing is cut silently here; shorten the input"),
}

TOKENIZE: Mapping[str, Parameter] = {
    "model": _TAKEN,
    "content": _TAKEN,
    "prompt": _TAKEN,
    "messages": _TAKEN,
    "tools": Taken("tools"),
    "tool_choice": _TAKEN,
    "chat_template_kwargs": Taken("template_args"),
    "add_special": _TAKEN,
    "parse_special": _TAKEN,
    "with_pieces": Only((None, False), "ask /detokenize for the text of single tokens"),
}

DETOKENIZE: Mapping[str, Parameter] = {"model": _TAKEN, "tokens": _TAKEN, "skip_special": _TAKEN}

APPLY_TEMPLATE: Mapping[str, Parameter] = {
    "model": _TAKEN,
    "messages": _TAKEN,
    "tools": Taken("tools"),
    "tool_choice": _TAKEN,
    "chat_template_kwargs": Taken("template_args"),
}


def options_of(body: Mapping[str, Any], table: Mapping[str, Parameter]) -> dict[str, Any]:
    """The parameters in `body` that are options of BitNet, under their names there. null = not given.

    Raises ApiError naming the parameter that is unknown, refused or given twice.
    """
    options: dict[str, Any] = {}
    for name, value in body.items():
        parameter = table.get(name)
        if isinstance(parameter, Taken):
            option = parameter.option
            if option is None or value is None:
                continue
            if option in options and options[option] != value:
                raise invalid(f"{name} is another name for a parameter with a different value", name)
            options[option] = value
        elif isinstance(parameter, Only):
            # An equal value of another type, such as 0 for False, is not the one that is meant.
            if not any(value == other and type(value) is type(other) for other in parameter.values):
                raise invalid(f"{name} is not supported: {parameter.why}", name, "unsupported_parameter")
        elif parameter is None:
            raise invalid(
                f"unknown parameter {name!r:.100}; {nearest(name, table)}", name[:100], "unknown_parameter"
            )
    return options


def flag(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """A parameter that is true or false; null = `default`. Raises ApiError."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise invalid(f"{name} must be true or false", name)
    return value
