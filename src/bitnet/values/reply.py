"""What is answered: Delta after Delta, and in the end a Reply."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, Literal

from bitnet.errors import ValidationError

from .messages import Message
from .tools import ToolCall

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and its natural log-probability under the model's own distribution, before any sampling filter.

    token_bytes: what the token stands for; may be part of a character.
    top: the likeliest tokens in its place, likeliest first.
    """

    token_id: int
    token_bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()

    @property
    def token(self) -> str:
        return self.token_bytes.decode(errors="replace")

    def to_dict(self) -> dict[str, Any]:
        return {
            "token_id": self.token_id,
            "token": self.token,
            "bytes": list(self.token_bytes),
            "logprob": self.logprob,
            "top": [entry.to_dict() for entry in self.top],
        }


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call: first its id and name, then more and more of the text of its arguments.

    index: 0 for the first call of an answer. id, name: None in all but the first piece of a call.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """One step of an answer. `text` is empty while a character or a possible stop string is incomplete.

    index: which of the `n` answers of the request this belongs to.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCallDelta, ...] = ()
    index: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens: of the prompt, of the answer, and how many of the prompt did not have to be computed."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def to_dict(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "cached_tokens": self.cached_tokens,
        }


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds.

    queue: until computing began. prefill: from there to the first token. decode: from there to the last.
    time_to_first_token: queue and prefill together.
    The two rates are 0 where there is nothing to measure.
    drafted_tokens: guesses that were computed in advance (see BitNet, speculate); accepted_tokens: those that
    were right, each of which saved a step.
    """

    queue: float
    prefill: float
    decode: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def time_to_first_token(self) -> float:
        return self.queue + self.prefill

    def to_dict(self) -> dict[str, float]:
        own = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {**own, "time_to_first_token": self.time_to_first_token}


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer.

    token_ids: every generated token except the end token; completion_tokens counts the same.
    finish_reason: "stop" (an end token or a stop string), "tool_calls" (it asks for calls), "length"
    (max_tokens or the end of the context was reached) or "cancelled".
    stop_string: the one that ended the answer. logprobs: one entry a token, or None if not asked for.
    tool_calls: the calls it asks for, whole ones only; their text is not part of `text`.
    samples: all answers of a request for several (n > 1), this one first; `usage` counts them together, and
    that of a sample the sample alone.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] | None = None
    stop_string: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    samples: tuple[Reply, ...] = ()

    def __str__(self) -> str:
        return self.text

    @property
    def message(self) -> Message:
        """This answer as a turn of the conversation, to go on from."""
        return Message("assistant", self.text, self.tool_calls)

    @property
    def parsed(self) -> Any:
        """The answer as JSON, for a response_format that asks for it.

        Raises ValidationError if the answer was cut, asks for tools or is not JSON.
        """
        if self.finish_reason == "tool_calls":
            names = ", ".join(call.name for call in self.tool_calls)
            raise ValidationError(f"the answer is no JSON value: it asks for calls ({names})")
        if self.finish_reason != "stop":
            raise ValidationError(
                f"the answer is not whole (finish_reason {self.finish_reason!r}); allow more max_tokens"
            )
        try:
            return json.loads(self.text)
        except ValueError as error:
            raise ValidationError(f"the answer is not JSON: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON."""
        result = {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "stop_string": self.stop_string,
            "tool_calls": [call.to_dict() for call in self.tool_calls],
            "usage": self.usage.to_dict(),
            "timings": self.timings.to_dict(),
            "logprobs": None if self.logprobs is None else [entry.to_dict() for entry in self.logprobs],
        }
        if self.samples:
            result["samples"] = [sample.to_dict() for sample in self.samples]
        return result
