"""What a server says when it refuses, as the exceptions of this package."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitnet.errors import (
    AuthenticationError,
    BitNetError,
    CapabilityError,
    ChatTemplateError,
    ConstraintError,
    ContextOverflowError,
    EngineClosedError,
    ModelNotFoundError,
    OverloadedError,
    ServerError,
    ValidationError,
)

from .options import Secret

RETRIED = frozenset({429, 502, 503, 504})
_MAX_MESSAGE = 500
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_OVERFLOW = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|context (?:size|window|length)"
    r"|a context of \d+ has room",
    re.IGNORECASE,
)
# The prompt's tokens and the context's, in the words of this package, llama-server, OpenAI and vLLM.
_NUMBERS = (
    re.compile(r"has (?P<prompt>\d+) tokens; a context of (?P<context>\d+)"),
    re.compile(r"request \((?P<prompt>\d+) tokens\) exceeds .*?\((?P<context>\d+) tokens\)"),
    re.compile(r"context length is (?P<context>\d+) tokens.*?\((?P<prompt>\d+) in the messages"),
    re.compile(r"context length is (?P<context>\d+) tokens.*?(?:resulted in|requested) (?P<prompt>\d+)"),
)
_UNSUPPORTED = re.compile(
    r"unsupported param(?:eter)?:? '?(?P<name>[\w.]+)|(?P<jinja>--jinja)", re.IGNORECASE
)
_OWN_CODES: dict[str, type[BitNetError]] = {
    "constraint_error": ConstraintError,
    "invalid_response_format": ConstraintError,
    "chat_template_error": ChatTemplateError,
}


class NoSuchPathError(ServerError):
    """The server knows nothing of this path."""


@dataclass
class Refusal(Exception):
    """A request that failed before its answer began. again: whether it may be sent again, no sooner than
    after retry_after seconds if the server said so."""

    error: BitNetError
    again: bool = False
    retry_after: float | None = None


def refusal(status: int, headers: Mapping[str, str], body: bytes, key: Secret | None) -> Refusal:
    """What an answer with a status of 400 and more means."""
    error, final = _error(status, _description(body), key)
    return Refusal(error, status in RETRIED and not final, _retry_after(headers.get("retry-after")))


def in_stream(said: Any, key: Secret | None) -> Refusal:
    """What an error object means that comes in a stream, or with the status 200."""
    described = _described(said)
    status = described.get("code", described.get("status"))
    if not isinstance(status, int) or not 400 <= status <= 599:
        status = 500
    error, final = _error(status, described, key)
    return Refusal(error, status in RETRIED and not final)


def _error(status: int, said: Mapping[str, Any], key: Secret | None) -> tuple[BitNetError, bool]:
    """The exception, and whether it is final whatever the status says."""
    message = str(said.get("message") or "it did not say why").strip()[:_MAX_MESSAGE]
    if key is not None:  # some servers repeat the key that they do not accept
        message = message.replace(key.reveal(), "***")
    kinds = {str(said.get(name)) for name in ("code", "type")}
    text = " ".join((*sorted(kinds), message))
    field = said.get("param") if isinstance(said.get("param"), str) else None
    whole = f"the server refused the request ({status}): {message}"
    if status in (401, 403) or "invalid_api_key" in kinds:
        hint = "it wants an api_key" if key is None else "check api_key"
        return _with_status(AuthenticationError(f"{whole}; {hint}"), status), True
    if "insufficient_quota" in kinds:
        return OverloadedError(whole), True
    if status == 404 and "model" in text:
        return ModelNotFoundError(whole), True
    if status in (404, 405):
        return NoSuchPathError(f"{whole}; is there an OpenAI-compatible server at base_url?"), True
    if status in (400, 413, 422) or "exceed_context_size_error" in kinds:
        return _bad_request(whole, text, message, kinds, field, said), True
    if unsupported := _UNSUPPORTED.search(text):  # llama-server says so with the status 500
        name = "tools" if unsupported["jinja"] else unsupported["name"]
        return CapabilityError(whole, field=name), True
    if status in (429, 503):
        if "engine_closed" in kinds:
            return EngineClosedError(whole), False
        return OverloadedError(f"the server is too busy ({status}): {message}"), False
    return ServerError(f"the server failed ({status}): {message}"), False


def _bad_request(
    whole: str, text: str, message: str, kinds: set[str], field: str | None, said: Mapping[str, Any]
) -> BitNetError:
    if _OVERFLOW.search(text):
        counts = (said.get("n_prompt_tokens"), said.get("n_ctx"))
        for pattern in _NUMBERS:
            if found := pattern.search(message):
                counts = (int(found["prompt"]), int(found["context"]))
                break
        n_prompt, n_ctx = counts
        if isinstance(n_prompt, int) and isinstance(n_ctx, int):
            error = ContextOverflowError(n_prompt, n_ctx)
            error.args = (whole,)
            error.field = field or "prompt"
            return error
        return ValidationError(whole, field="prompt")
    for kind in kinds:
        if kind in _OWN_CODES:
            return _OWN_CODES[kind](whole)
    unsupported = _UNSUPPORTED.search(text)
    if unsupported or kinds & {"unsupported_parameter", "unsupported_value"}:
        if field is None and unsupported:
            field = "tools" if unsupported["jinja"] else unsupported["name"]
        return CapabilityError(whole, field=field)
    return ValidationError(whole, field=field)


def _with_status(error: BitNetError, status: int) -> BitNetError:
    error.status = status
    return error


def _description(body: bytes) -> Mapping[str, Any]:
    text = body.decode(errors="replace").strip()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if title := _TITLE.search(text):
            text = f"a page of HTML, {' '.join(title[1].split())!r}"
        elif text.startswith("<"):
            text = "a page of HTML"
        return {"message": text} if text else {}
    return _described(value)


def _described(value: Any) -> Mapping[str, Any]:
    """The error object of OpenAI, or what other servers write: a text, FastAPI's detail, vLLM's flat one."""
    if isinstance(value, Mapping):
        for name in ("error", "detail"):
            if value.get(name):
                return _described(value[name])
        return value
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        place = ".".join(str(part) for part in value[0].get("loc", ()) if part != "body")
        return {"message": f"{place}: {value[0].get('msg')}", "param": place or None}
    return {"message": value if isinstance(value, str) else json.dumps(value)}


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number or a date. None = none, or nonsense."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if seconds == seconds else None
