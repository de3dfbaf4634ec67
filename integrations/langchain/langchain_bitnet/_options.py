"""How an answer is generated: fields that chat model and text model share, and calls made from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bitnet import Reply, TokenLogprob
from langchain_core.messages.ai import UsageMetadata
from pydantic import BaseModel, Field, model_validator

from ._version import __version__

if TYPE_CHECKING:
    from typing_extensions import Self

# Keyword arguments of a call that are LangChain's own business.
_NOT_FOR_BITNET = frozenset({"stream", "streaming", "stream_usage", "strict"})


class GenerationFields(BaseModel):
    """How to answer. None = as the configuration or `bitnet` has it. Each can also be given with a call."""

    temperature: float | None = Field(default=None, ge=0)
    """0 = always the likeliest token; bitnet's default is 0.7."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    """The same seed gives the same answer."""
    logit_bias: dict[int, float] | None = None
    max_tokens: int | None = None
    """Tokens of an answer at most; bitnet's default is 1024."""
    stop: list[str] | None = None
    """Texts that end an answer and are not part of it. Those of a call are used instead."""
    n: int = Field(default=1, ge=1)
    """Answers to each prompt; only without streaming."""
    logprobs: bool = False
    """Report the log-probability of each token."""
    top_logprobs: int | None = None
    """And of that many of the likeliest tokens in its place."""
    cache_salt: str | None = None
    """What is computed for prompts is only reused for calls with the same salt."""
    streaming: bool = False
    """Stream also where a whole answer is asked for, for callbacks that want every token."""
    stream_usage: bool = True
    """Report token counts at the end of a stream."""

    @model_validator(mode="after")
    def _set_langchain_bitnet_version(self) -> Self:
        if hasattr(self, "_add_version"):  # of langchain_core's models; older ones lack it
            self._add_version("langchain-bitnet", __version__)
        return self

    def generation_options(self, stop: list[str] | None, call: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of BitNet.chat or .generate: this object's, and those of one call over
        them."""
        options: dict[str, Any] = {
            name: value
            for name in OPTION_FIELDS
            if (value := getattr(self, name)) is not None and value is not False
        }
        options |= {name: value for name, value in call.items() if name not in _NOT_FOR_BITNET}
        if stop is not None:
            options["stop"] = stop
        if call.get("logprobs") is False:
            options.pop("top_logprobs", None)
        if options.get("top_logprobs") is not None:
            options["logprobs"] = True
        if options.get("n") == 1:
            del options["n"]
        return {name: value for name, value in options.items() if value is not None}

    def generation_identity(self) -> dict[str, Any]:
        """Everything here that can change an answer, for cache keys."""
        identity = {name: getattr(self, name) for name in OPTION_FIELDS if name != "cache_salt"}
        # Under another name, because langchain_core writes the stop strings of the call over "stop".
        identity["default_stop"] = identity.pop("stop")
        return identity


OPTION_FIELDS = tuple(
    name for name in GenerationFields.model_fields if name not in ("streaming", "stream_usage")
)


def usage_metadata(reply: Reply) -> UsageMetadata:
    usage: UsageMetadata = {
        "input_tokens": reply.usage.prompt_tokens,
        "output_tokens": reply.usage.completion_tokens,
        "total_tokens": reply.usage.total_tokens,
        "input_token_details": {"cache_read": reply.usage.cached_tokens},
    }
    return usage


def logprobs_of(tokens: tuple[TokenLogprob, ...]) -> dict[str, Any]:
    """As the APIs of OpenAI write them."""
    content = [{**_logprob(token), "top_logprobs": list(map(_logprob, token.top))} for token in tokens]
    return {"content": content}


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.token_bytes)}
