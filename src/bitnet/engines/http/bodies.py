"""Requests as JSON, in the words of the server that gets them. What it has no words for is refused by name.

Nothing is left out silently. What equals the server's own neutral value need not be said, and a top_k of
Sampling's default is not said to servers that have no top_k: nobody asked for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitnet.errors import CapabilityError, ConstraintError, ContextOverflowError, ValidationError
from bitnet.values import EmbeddingRequest, NamedTool, Request, Sampling
from bitnet.values.checks import INT32_MAX

from .servers import Server, ServerKind

# How many stop strings a server takes; what more there are is looked for here, as are longer ones.
_MAX_STOPS: dict[ServerKind, int] = {"openai": 4, "bitnet": 16}
_MAX_STOP_CHARACTERS = 256
_DEFAULT_TOP_K = Sampling.__dataclass_fields__["top_k"].default


@dataclass(frozen=True)
class Call:
    """One HTTP request that answers a Request or a part of it.

    indices: which of the request's answers it brings. shape: of what comes back.
    """

    url: str
    body: Mapping[str, Any]
    indices: range
    shape: str


def calls_for(server: Server, request: Request) -> list[Call]:
    """The HTTP requests that answer `request`. Raises CapabilityError, ConstraintError, ValidationError and
    ContextOverflowError, before anything is sent."""
    _check_ids(server, request)
    if server.kind != "llama-server":
        return [_call(server, request, range(request.n))]
    # It answers once for each request; the seeds are those that other engines give to the answers.
    calls = []
    for index in range(request.n):
        sampling = request.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=(sampling.seed + index) % 2**64)
        calls.append(_call(server, replace(request, sampling=sampling, n=1), range(index, index + 1)))
    return calls


def _call(server: Server, request: Request, indices: range) -> Call:
    if request.messages is not None:
        return Call(f"{server.api}/chat/completions", _chat(server, request), indices, "chat")
    if server.kind == "llama-server":
        # Not /v1/completions: an older one answers there as here, but reads less.
        return Call(f"{server.root}/completion", _llama_prompt(server, request), indices, "llama")
    return Call(f"{server.api}/completions", _prompt(server, request), indices, "text")


def _check_ids(server: Server, request: Request) -> None:
    size = server.vocab_size
    for field, ids in (("prompt", request.token_ids or ()), ("logit_bias", request.sampling.logit_bias)):
        for token_id in ids:
            if size and token_id >= size:
                raise ValidationError(
                    f"{field}: token id {token_id} is outside of the vocabulary of {size}", field=field
                )
    if server.n_ctx and request.token_ids is not None and len(request.token_ids) >= server.n_ctx:
        raise ContextOverflowError(len(request.token_ids), server.n_ctx)


def _chat(server: Server, request: Request) -> dict[str, Any]:
    assert request.messages is not None
    body = _common(server, request)
    body["messages"] = [message.to_dict() for message in request.messages]
    if request.logprobs:
        # A llama-server that is asked for none of the likeliest tokens gives no log-probabilities at all.
        least = 1 if server.kind == "llama-server" else 0
        body |= {"logprobs": True, "top_logprobs": max(request.top_logprobs, least)}
    if request.callable_tools:
        if not server.modern:
            raise _lacks(server, "tools")
        body["tools"] = [tool.to_dict() for tool in request.callable_tools]
        choice = request.tool_choice
        if isinstance(choice, NamedTool):
            body["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        else:
            body["tool_choice"] = choice
        body["parallel_tool_calls"] = request.parallel_tool_calls
    if request.template_args:
        if server.kind == "openai" or not server.modern:
            raise _lacks(server, "template_args")
        body["chat_template_kwargs"] = _plain("template_args", request.template_args)
    return body


def _prompt(server: Server, request: Request) -> dict[str, Any]:
    body = _common(server, request)
    body["prompt"] = list(request.token_ids) if request.token_ids is not None else request.prompt
    if request.logprobs:
        body["logprobs"] = request.top_logprobs
    if request.max_tokens is None and server.kind != "bitnet":
        raise ValidationError(
            f"{server.title} stops after a few tokens unless max_tokens is given", field="max_tokens"
        )
    if request.response_format is not None and server.kind == "openai" and "response_format" in body:
        raise _lacks(server, "response_format", "for a prompt; use chat")
    return body


def _llama_prompt(server: Server, request: Request) -> dict[str, Any]:
    body = _common(server, request)
    body["prompt"] = list(request.token_ids) if request.token_ids is not None else request.prompt
    body["n_predict"] = body.pop("max_tokens", -1)
    body["return_tokens"] = True
    del body["stream_options"]
    if request.logprobs:
        body["n_probs"] = max(request.top_logprobs, 1)
    return body


# The server's names of our options. Those that are not here it does not have.
_NAMES: dict[ServerKind, dict[str, str]] = {
    "bitnet": {name: name for name in ("top_k", "min_p", "repetition_penalty", "ignore_eos", "cache_salt")},
    "vllm": {name: name for name in ("top_k", "min_p", "repetition_penalty", "ignore_eos", "cache_salt")},
    "llama-server": {
        "top_k": "top_k",
        "min_p": "min_p",
        "repetition_penalty": "repeat_penalty",
        "ignore_eos": "ignore_eos",
    },
    "openai": {},
}


def _common(server: Server, request: Request) -> dict[str, Any]:
    """What prompts and conversations have in common."""
    sampling = request.sampling
    names = _NAMES[server.kind]
    body: dict[str, Any] = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if server.model is not None:
        body["model"] = server.model
    for name, value, neutral in (
        ("top_k", sampling.top_k, (0, _DEFAULT_TOP_K) if sampling.temperature else (sampling.top_k,)),
        ("min_p", sampling.min_p, (0.0,)),
        ("repetition_penalty", sampling.repetition_penalty, (1.0,)),
        ("ignore_eos", request.ignore_eos, (False,)),
        ("cache_salt", request.cache_salt, ("",)),
    ):
        if name in names:
            # A llama-server is told also what is neutral: its own defaults are not.
            if server.kind != "vllm" or value not in neutral or name == "top_k":
                body[names[name]] = value
        elif value not in neutral:
            raise _lacks(server, name)
    if sampling.presence_penalty or server.kind == "llama-server":
        body["presence_penalty"] = sampling.presence_penalty
    if sampling.frequency_penalty or server.kind == "llama-server":
        body["frequency_penalty"] = sampling.frequency_penalty
    if server.kind == "llama-server":
        body["repeat_last_n"] = -1  # all tokens, not only the last 64
    if sampling.seed is not None:
        body["seed"] = _seed(server, sampling.seed)
    if sampling.logit_bias:
        bias = sampling.logit_bias
        # Older llama-servers read only pairs.
        if server.kind == "llama-server":
            body["logit_bias"] = [[token_id, value] for token_id, value in bias.items()]
        else:
            body["logit_bias"] = {str(token_id): value for token_id, value in bias.items()}
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    elif server.kind == "bitnet":
        body["max_tokens"] = server.n_ctx or INT32_MAX  # it would take none for its default
    if request.n > 1:
        body["n"] = request.n
    if request.stop:
        short = [stop for stop in request.stop if len(stop) <= _MAX_STOP_CHARACTERS]
        body["stop"] = short[: _MAX_STOPS.get(server.kind)]
    if request.logprobs and not server.modern:
        raise _lacks(server, "logprobs")
    if server.kind in ("bitnet", "vllm"):
        body["return_token_ids"] = True
    body |= _format(server, request.response_format)
    return body


def _seed(server: Server, seed: int) -> int:
    """The seed in the range that the server has; the same for the same."""
    if server.kind == "bitnet":
        return seed
    return seed % (2**32 - 1 if server.kind == "llama-server" else 2**63)


def _format(server: Server, response_format: Mapping[str, Any] | None) -> dict[str, Any]:
    if response_format is None or response_format.get("type") == "text":
        return {}
    kind = response_format.get("type")
    if server.kind == "bitnet":
        return {"response_format": _plain("response_format", response_format)}
    if kind == "json_object":
        if server.kind == "llama-server":
            return {"json_schema": {"type": "object"}}
        return {"response_format": {"type": "json_object"}}
    if kind == "json_schema":
        given = response_format.get("json_schema", response_format)
        if not isinstance(given, Mapping) or "schema" not in given:
            raise ConstraintError("response_format.json_schema must be a mapping with a key 'schema'")
        schema = _plain("response_format", given["schema"])
        if server.kind == "llama-server":
            return {"json_schema": schema}
        wrapped = {
            **{name: given[name] for name in ("description",) if name in given},
            "name": given.get("name", "answer"),
            "schema": schema,
            "strict": given.get("strict", True),
        }
        return {"response_format": {"type": "json_schema", "json_schema": wrapped}}
    if kind == "choice" and server.kind == "llama-server":
        return {"grammar": _gbnf(_choices(response_format))}
    if server.kind == "vllm" and kind in ("choice", "regex"):
        value = _choices(response_format) if kind == "choice" else response_format.get("pattern")
        return {"structured_outputs": {kind: value}}
    raise _lacks(server, "response_format", f"of type {kind!r}")


def _choices(response_format: Mapping[str, Any]) -> list[str]:
    choices = response_format.get("choices")
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        raise ConstraintError("response_format.choices must be a list of strings")
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise ConstraintError(f"response_format.choices must hold non-empty strings, not {choice!r}")
    return list(choices)


def _gbnf(choices: Sequence[str]) -> str:
    """A grammar of llama.cpp that allows exactly these texts."""
    quoted = []
    for choice in choices:
        text = choice.replace("\\", "\\\\").replace('"', '\\"')
        quoted.append('"' + text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"')
    return f"root ::= {' | '.join(quoted)}"


def _plain(field: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError(f"{field} cannot be sent as JSON: {error}", field=field) from None


def _lacks(server: Server, field: str, what: str = "") -> CapabilityError:
    name = f"{field} {what}".rstrip()
    return CapabilityError(f"{server.title} at {server.root} does not have {name}; leave it out", field=field)


def embedding_body(server: Server, request: EmbeddingRequest, texts: Sequence[str]) -> dict[str, Any]:
    """The body of POST /v1/embeddings. Raises CapabilityError."""
    body: dict[str, Any] = {"input": list(texts), "encoding_format": "float"}
    if server.model is not None:
        body["model"] = server.model
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    if server.kind == "bitnet":
        body["kind"] = request.kind
        body["normalize"] = request.normalize
        for name in ("pooling", "prefix"):
            if getattr(request, name) is not None:
                body[name] = getattr(request, name)
        return body
    if request.prefix:
        body["input"] = [request.prefix + text for text in texts]
    if request.pooling is not None:
        raise _lacks(server, "pooling", "to be chosen")
    if not request.normalize:
        if server.kind == "llama-server" and server.modern:
            body["embd_normalize"] = -1
        else:
            raise _lacks(server, "normalize", "to be switched off")
    return body
