"""Request: one question to an engine, complete and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from bitnet.errors import ValidationError

from .checks import INT32_MAX, as_flag, as_integer, as_text, as_token_ids, nearest
from .messages import Message, MessageLike, as_messages
from .sampling import Sampling
from .tools import Tool, ToolChoice, ToolLike, as_tool_choice, as_tools

MAX_STOP_STRINGS = 64
MAX_TOP_LOGPROBS = 20
MAX_SAMPLES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question to an engine: exactly one of `messages`, `prompt` and `token_ids`, and how to answer it.

    prompt: text, tokenised by the model's own conventions (a beginning-of-text token where it has one).
    token_ids: computed as they are.
    max_tokens: tokens to generate at most; None = as many as the context holds.
    n: answers to generate, each with a seed of its own (seed, seed + 1, ...); the prompt is computed once.
    stop: strings that end the answer; they are not part of it.
    ignore_eos: go on after the model's end tokens.
    logprobs: report the log-probability of each token.
    top_logprobs: and of that many of the likeliest tokens in its place, 0 to 20.
    response_format: what the answer must look like, enforced token by token: {"type": "json_schema",
    "schema": {...}}, "json_object", {"type": "regex", "pattern": ...}, {"type": "choice", "choices": [...]}
    or {"type": "grammar", "grammar": LARK, "schemas": {RULE: {...}}}, where the grammar may use the rules
    that the JSON schemas define; None or {"type": "text"} = free text.
    tools: functions the model may ask to be called, with messages only.
    tool_choice: "auto" = the model decides; "required" = it must call one; a NamedTool = that one; "none" =
    it is not told of them. With a response_format and "auto", the answer is calls or what the format says.
    parallel_tool_calls: whether one answer may hold several calls.
    template_args: further variables for the model's chat template.
    cache_salt: what is computed for prompts is only reused for requests of the same salt.
    Raises ValidationError naming the field.
    """

    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    token_ids: tuple[int, ...] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = 1024
    n: int = 1
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    response_format: Mapping[str, Any] | None = field(default=None, hash=False)
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    template_args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    cache_salt: str = ""

    def __post_init__(self) -> None:
        put = object.__setattr__
        given = [name for name in ("messages", "prompt", "token_ids") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValidationError(f"a request has exactly one of messages, prompt and token_ids, not {found}")
        if self.messages is not None:
            put(self, "messages", as_messages(self.messages))
        if self.prompt is not None:
            as_text("prompt", self.prompt)
        if self.token_ids is not None:
            put(self, "token_ids", as_token_ids("token_ids", self.token_ids))
        if not isinstance(self.sampling, Sampling):
            raise ValidationError(f"sampling must be a Sampling, not {self.sampling!r}", field="sampling")
        if self.max_tokens is not None:
            put(self, "max_tokens", as_integer("max_tokens", self.max_tokens, 1, INT32_MAX))
        put(self, "n", as_integer("n", self.n, 1, MAX_SAMPLES))
        put(self, "stop", _stop_strings(self.stop))
        as_flag("ignore_eos", self.ignore_eos)
        as_flag("logprobs", self.logprobs)
        put(self, "top_logprobs", as_integer("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS))
        if self.top_logprobs and not self.logprobs:
            raise ValidationError("top_logprobs needs logprobs=True", field="top_logprobs")
        put(self, "tools", as_tools(self.tools))
        put(self, "tool_choice", as_tool_choice(self.tool_choice, self.tools))
        as_flag("parallel_tool_calls", self.parallel_tool_calls)
        put(self, "template_args", _template_args(self.template_args))
        as_text("cache_salt", self.cache_salt)
        for name in ("tools", "template_args"):
            if getattr(self, name) and self.messages is None:
                raise ValidationError(
                    f"{name} are for messages: a prompt is continued as it is, without a chat template",
                    field=name,
                )
        for name in ("response_format", "tools"):
            if getattr(self, name) and self.ignore_eos:
                raise ValidationError(
                    f"{name} say where the answer ends, and cannot be combined with ignore_eos", field=name
                )

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """The tools that the model is told of."""
        return () if self.tool_choice == "none" else self.tools

    @classmethod
    def build(
        cls,
        *,
        messages: Iterable[MessageLike] | None = None,
        prompt: str | Iterable[int] | None = None,
        options: Mapping[str, Any],
    ) -> Request:
        """A request from the keyword arguments of `BitNet.generate` and its siblings (see GenerateOptions).

        prompt: text, or token ids. Raises ValidationError, for an unknown option with the nearest known name.
        """
        for name in options:
            if name not in GenerateOptions.__annotations__:
                raise ValidationError(
                    f"unknown option {name!r}; {nearest(name, GenerateOptions.__annotations__)}", field=name
                )
        sampling: dict[str, Any] = {}
        base = options.get("sampling")
        if isinstance(base, Sampling):
            sampling.update({entry.name: getattr(base, entry.name) for entry in fields(Sampling)})
        elif base is not None:
            raise ValidationError(f"sampling must be a Sampling, not {base!r}", field="sampling")
        own: dict[str, Any] = {}
        for name, value in options.items():
            if name in Sampling.__dataclass_fields__:
                sampling[name] = value
            elif name != "sampling":
                own[name] = value
        if prompt is not None and not isinstance(prompt, str):
            own["token_ids"] = as_token_ids("prompt", prompt)
            prompt = None
        return cls(
            messages=None if messages is None else as_messages(messages),
            prompt=prompt,
            sampling=Sampling(**sampling),
            **own,
        )


class GenerateOptions(TypedDict, total=False):
    """The keyword arguments of `BitNet.generate` and its siblings: the fields of Request and of Sampling.

    `sampling` gives them together; single ones beside it replace its own.
    """

    max_tokens: int | None
    n: int
    stop: str | Sequence[str] | None
    ignore_eos: bool
    logprobs: bool
    top_logprobs: int
    response_format: Mapping[str, Any] | None
    tools: Iterable[ToolLike] | None
    tool_choice: ToolChoice | Mapping[str, Any] | None
    parallel_tool_calls: bool
    template_args: Mapping[str, Any] | None
    cache_salt: str
    sampling: Sampling
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    logit_bias: Mapping[int, float] | None


def _stop_strings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise ValidationError(f"stop must be a string or a list of strings, not {value!r}", field="stop")
    if len(value) > MAX_STOP_STRINGS:
        raise ValidationError(
            f"stop must hold at most {MAX_STOP_STRINGS} strings, not {len(value)}", field="stop"
        )
    for item in value:
        if as_text("stop", item) == "":
            raise ValidationError("stop must not hold an empty string", field="stop")
    return tuple(value)


def _template_args(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValidationError(
            f"template_args must map names to values, not {value!r:.200}", field="template_args"
        )
    return dict(value)
