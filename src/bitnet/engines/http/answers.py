"""What comes back, in OpenAI's shapes and llama-server's, as Deltas and Replies.

Nothing that a server writes is trusted: what does not fit raises ServerError.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bitnet.engines.generation import Outlet
from bitnet.errors import ServerError, ValidationError
from bitnet.runtime.answer import AnswerText
from bitnet.values import (
    Delta,
    FinishReason,
    Reply,
    Request,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)

UNKNOWN_ID = -1  # of a token that the server named without its number
# An answer of a million tokens; a server that goes on behind it is broken.
_MAX_CHARACTERS = 64 * 2**20

_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "word": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "limit": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


@dataclass
class _Piece:
    """What one event says of one answer."""

    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: Sequence[Mapping[str, Any]] = ()
    finish_reason: str | None = None
    stop_string: str | None = None


@dataclass
class _OpenCall:
    """A tool call on its way."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class Answers:
    """The answers that one HTTP response brings: told to an outlet as they come, Replies in the end.

    started: something of them came. complete: nothing more is needed of the response.
    """

    def __init__(self, request: Request, outlet: Outlet[Reply], indices: range, shape: str) -> None:
        self._request = request
        self._outlet = outlet
        self._read = {"chat": _chat_pieces, "text": _text_pieces, "llama": _llama_pieces}[shape]
        self._answers = [_Answer(request, index) for index in indices]  # its own, not the server's
        self._usage: Usage | None = None
        self._server_timings: Mapping[str, Any] = {}
        self._started_at = time.perf_counter()
        self._first_at: float | None = None
        self._n_characters = 0
        self.complete = False

    @property
    def started(self) -> bool:
        return self._first_at is not None

    def take(self, chunk: Mapping[str, Any]) -> None:
        """One event, or a whole response. Raises ServerError."""
        try:
            pieces = self._read(chunk)
            self._usage = _usage(chunk) or self._usage
            timings = chunk.get("timings")
            if isinstance(timings, Mapping):
                self._server_timings = timings
            for piece in pieces:
                self._hand_out(piece)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise ServerError(f"the server's answer cannot be understood: {error!r:.300}") from None
        # Only when a stop string was found here is the end of the response not worth waiting for.
        self.complete = all(answer.cut for answer in self._answers)

    def _hand_out(self, piece: _Piece) -> None:
        if not 0 <= piece.index < len(self._answers):
            raise ServerError(f"the server sent an answer {piece.index}; {len(self._answers)} were asked for")
        answer = self._answers[piece.index]
        if answer.cut:
            return
        delta = answer.take(piece)
        self._n_characters += len(piece.text)
        if self._n_characters > _MAX_CHARACTERS:
            raise ServerError(f"the server's answer has more than {_MAX_CHARACTERS} characters")
        if delta.text or delta.token_ids or delta.logprobs or delta.tool_calls or answer.held:
            self._first_at = self._first_at or time.perf_counter()
        if delta.text or delta.token_ids or delta.logprobs or delta.tool_calls:
            self._outlet.push(delta)

    @property
    def finished(self) -> bool:
        """Whether the server said of each answer why it ended."""
        return all(answer.cut or answer.reason is not None for answer in self._answers)

    def replies(self, reason: FinishReason | None = None) -> list[Reply]:
        """The answers. reason: why they end here, unless they ended themselves. Raises ServerError."""
        usage = self._usage
        result = []
        for answer in self._answers:
            if rest := answer.flush():
                self._outlet.push(rest)
            result.append(answer.reply(reason, self._timings(answer)))
        if usage is not None:
            # The server counts all answers together.
            for place, reply in enumerate(result):
                n_tokens = usage.completion_tokens if len(result) == 1 else reply.usage.completion_tokens
                result[place] = replace(reply, usage=replace(usage, completion_tokens=n_tokens))
        return result

    @property
    def n_tokens(self) -> int:
        """Tokens of all answers; 0 = the server did not say."""
        if self._usage is not None:
            return self._usage.completion_tokens
        return sum(answer.n_tokens for answer in self._answers)

    def _timings(self, answer: _Answer) -> Timings:
        """As seen from here, the way there and back included; the rates are the server's if it tells them."""
        now = time.perf_counter()
        first = self._first_at or now
        told = self._server_timings
        alone = self._usage is not None and len(self._answers) == 1
        n_tokens = self.n_tokens if alone else answer.n_tokens
        decode = now - first
        rate = (n_tokens - 1) / decode if n_tokens > 1 and decode > 0 else 0.0
        return Timings(
            queue=0.0,
            prefill=first - self._started_at,
            decode=decode,
            prefill_tokens_per_second=_rate(told, "prefill_tokens_per_second", "prompt_per_second"),
            decode_tokens_per_second=_rate(told, "decode_tokens_per_second", "predicted_per_second") or rate,
        )


def together(parts: Iterable[Answers], reason: FinishReason | None = None) -> Reply:
    """The Reply to a whole request. Raises ServerError."""
    parts = list(parts)
    replies = [reply for part in parts for reply in part.replies(reason)]
    first = replies[0]
    if len(replies) == 1:
        return first
    usage = replace(first.usage, completion_tokens=sum(part.n_tokens for part in parts))
    return replace(first, usage=usage, samples=tuple(replies))


class _Answer:
    """One answer on its way."""

    def __init__(self, request: Request, index: int) -> None:
        self._request = request
        self._index = index
        self._text = AnswerText(request.stop)
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._calls: dict[int, _OpenCall] = {}
        self._flushed = False
        self.reason: str | None = None
        self._stop_string: str | None = None
        self.held = False  # whether text came that was not handed out yet

    @property
    def cut(self) -> bool:
        """Whether a stop string was found here that the server did not look for."""
        return self._text.stop_string is not None

    @property
    def n_tokens(self) -> int:
        return max(len(self._ids), len(self._logprobs))

    def take(self, piece: _Piece) -> Delta:
        text = self._text.feed(piece.text).text if piece.text else ""
        self.held = bool(piece.text) and not text
        self._ids += piece.token_ids
        # A server may have been asked for more of the likeliest tokens than the request wants.
        n_top = self._request.top_logprobs
        logprobs = tuple(replace(entry, top=entry.top[:n_top]) for entry in piece.logprobs)
        self._logprobs += logprobs
        self.reason = piece.finish_reason or self.reason
        self._stop_string = piece.stop_string or self._stop_string
        calls = tuple(delta for item in piece.tool_calls for delta in self._call_deltas(item))
        return Delta(text, piece.token_ids, logprobs, calls, self._index)

    def _call_deltas(self, item: Mapping[str, Any]) -> Iterable[ToolCallDelta]:
        """Some servers leave out index or id, repeat the name, or write the arguments as an object."""
        function = item.get("function") or {}
        place = item.get("index")
        name = function.get("name") or ""
        if not isinstance(place, int):
            place = len(self._calls) if name else max(len(self._calls) - 1, 0)
        call = self._calls.get(place)
        if call is None:
            if not isinstance(name, str) or not name:
                raise ValueError("a tool call that has no name")
            call = self._calls[place] = _OpenCall(str(item.get("id") or f"call_{self._index}_{place}"), name)
            yield ToolCallDelta(place, call.id, call.name)
        arguments = function.get("arguments")
        if isinstance(arguments, Mapping):
            arguments = json.dumps(arguments, ensure_ascii=False)
        if arguments:
            call.arguments.append(_text(arguments))
            yield ToolCallDelta(place, arguments=arguments)

    def flush(self) -> Delta | None:
        """Ends the text: what was held back and did not become a stop string."""
        if self._flushed or self.cut:
            return None
        self._flushed = True
        rest = self._text.flush("").text
        return Delta(rest, index=self._index) if rest else None

    def reply(self, reason: FinishReason | None, timings: Timings) -> Reply:
        calls = self._whole_calls(strict=reason is None and self.reason not in ("length", "limit"))
        own = "stop" if self.cut else None if self.reason is None else _REASONS.get(self.reason)
        ended: FinishReason = own or reason or "stop"
        if calls and ended == "stop":
            ended = "tool_calls"
        return Reply(
            text=self._text.text,
            token_ids=tuple(self._ids),
            finish_reason=ended,
            usage=Usage(0, self.n_tokens),
            timings=timings,
            logprobs=tuple(self._logprobs) if self._request.logprobs else None,
            stop_string=self._text.stop_string or self._stop_string,
            tool_calls=calls,
        )

    def _whole_calls(self, *, strict: bool) -> tuple[ToolCall, ...]:
        whole = []
        for _, call in sorted(self._calls.items()):
            try:
                whole.append(ToolCall(call.id, call.name, "".join(call.arguments)))
            except ValidationError as error:
                if strict:
                    raise ServerError(f"the server's answer cannot be understood: {error}") from None
        return tuple(whole)

    @property
    def odd_reason(self) -> str | None:
        """Why the server ended it, if that is none of the reasons for which an answer is whole."""
        return None if self.reason is None or self.reason in _REASONS else self.reason


def odd_reason(answers: Answers) -> str | None:
    """Why an answer ended too early, such as "content_filter"; None = none did."""
    return next((reason for answer in answers._answers if (reason := answer.odd_reason)), None)


def _chat_pieces(chunk: Mapping[str, Any]) -> Iterable[_Piece]:
    for choice in chunk.get("choices") or ():
        said = choice.get("delta") or choice.get("message") or {}
        ids = _ids(choice.get("token_ids"))
        yield _Piece(
            index=choice.get("index") or 0,
            text=_text(said.get("content") or said.get("refusal") or ""),
            token_ids=ids,
            logprobs=_logprobs((choice.get("logprobs") or {}).get("content"), ids),
            tool_calls=said.get("tool_calls") or (),
            finish_reason=_reason(choice.get("finish_reason")),
            stop_string=_stop_string(choice),
        )


def _text_pieces(chunk: Mapping[str, Any]) -> Iterable[_Piece]:
    for choice in chunk.get("choices") or ():
        logprobs = choice.get("logprobs") or {}
        entries = logprobs.get("content")  # the shape of conversations, which some servers have here as well
        ids = _ids(choice.get("token_ids"))
        yield _Piece(
            index=choice.get("index") or 0,
            text=_text(choice.get("text") or ""),
            token_ids=ids,
            logprobs=_logprobs(entries, ids) if entries else _text_logprobs(logprobs, ids),
            finish_reason=_reason(choice.get("finish_reason")),
            stop_string=_stop_string(choice),
        )


def _llama_pieces(chunk: Mapping[str, Any]) -> Iterable[_Piece]:
    if chunk.get("choices"):  # through a proxy that speaks only OpenAI's API
        return _text_pieces(chunk)
    if "content" not in chunk:
        return ()
    reason = None
    if chunk.get("stop"):
        limited = chunk.get("stop_type") == "limit" or chunk.get("stopped_limit")
        reason = "length" if limited else "stop"
    if chunk.get("truncated") and reason == "stop":
        reason = "truncated"
    ids = _ids(chunk.get("tokens"))
    return (
        _Piece(
            text=_text(chunk["content"]),
            token_ids=ids,
            logprobs=_logprobs(chunk.get("completion_probabilities"), ids),
            finish_reason=reason,
            stop_string=chunk.get("stopping_word") or None,
        ),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text was expected, not {type(value).__name__}")
    return value


def _reason(value: Any) -> str | None:
    return None if value is None else _text(value)


def _stop_string(choice: Mapping[str, Any]) -> str | None:
    """Ours is stop_string; vLLM writes it, or the number of the end token, into stop_reason."""
    value = choice.get("stop_string") or choice.get("stop_reason")
    return value if isinstance(value, str) else None


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(int(item) for item in value) if isinstance(value, list) else ()


def _logprobs(entries: Any, ids: tuple[int, ...]) -> tuple[TokenLogprob, ...]:
    """Entries of conversations. ids: of the same tokens, where the server tells them apart from these."""
    return _numbered([_logprob(entry) for entry in entries or ()], ids)


def _numbered(entries: Sequence[TokenLogprob], ids: tuple[int, ...]) -> tuple[TokenLogprob, ...]:
    if len(entries) != len(ids):
        return tuple(entries)
    return tuple(
        replace(entry, token_id=token_id) if entry.token_id == UNKNOWN_ID else entry
        for entry, token_id in zip(entries, ids, strict=True)
    )


def _logprob(entry: Mapping[str, Any]) -> TokenLogprob:
    top = entry.get("top_logprobs") or ()
    return TokenLogprob(*_token(entry), tuple(TokenLogprob(*_token(item)) for item in top))


def _token(entry: Mapping[str, Any]) -> tuple[int, bytes, float]:
    token_id = entry.get("token_id", entry.get("id"))
    data = entry.get("bytes")
    return (
        token_id if isinstance(token_id, int) else UNKNOWN_ID,
        bytes(data) if isinstance(data, list) else _bytes(_text(entry.get("token") or "")),
        float(entry["logprob"]),
    )


def _bytes(token: str) -> bytes:
    """OpenAI's API writes a token that is part of a character as "bytes:\\xe2\\x80" in text completions."""
    if re.fullmatch(r"bytes:(?:\\x[0-9a-fA-F]{2})+", token):
        return bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
    return token.encode(errors="replace")


def _text_logprobs(logprobs: Mapping[str, Any], ids: tuple[int, ...]) -> tuple[TokenLogprob, ...]:
    tokens = logprobs.get("tokens") or ()
    values = logprobs.get("token_logprobs") or ()
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    entries = []
    for token, value, top in zip(tokens, values, tops, strict=True):
        likeliest = sorted((top or {}).items(), key=lambda item: -item[1])
        entries.append(
            TokenLogprob(
                UNKNOWN_ID,
                _bytes(_text(token)),
                float(value),
                tuple(TokenLogprob(UNKNOWN_ID, _bytes(text), float(number)) for text, number in likeliest),
            )
        )
    return _numbered(entries, ids)


def _usage(chunk: Mapping[str, Any]) -> Usage | None:
    told = chunk.get("usage")
    if isinstance(told, Mapping):
        details = told.get("prompt_tokens_details") or {}
        return Usage(
            _count(told.get("prompt_tokens")),
            _count(told.get("completion_tokens")),
            _count(details.get("cached_tokens")),
        )
    if "tokens_evaluated" in chunk and chunk.get("stop"):
        cached = (chunk.get("timings") or {}).get("cache_n")
        return Usage(_count(chunk["tokens_evaluated"]), _count(chunk.get("tokens_predicted")), _count(cached))
    return None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _rate(told: Mapping[str, Any], *names: str) -> float:
    """The first of these that is a number that can be."""
    for name in names:
        value = told.get(name)
        if isinstance(value, (int, float)) and 0 < value < math.inf:
            return float(value)
    return 0.0
