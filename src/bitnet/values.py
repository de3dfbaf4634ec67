"""The values that flow: what is asked (Message, Sampling, Request) and what is answered (Delta, Reply).

Immutable, and checked when they are built: whoever holds a Request may trust it. Nothing here knows a model.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict

from bitnet.errors import ValidationError

FinishReason = Literal["stop", "length", "cancelled"]
EmbeddingKind = Literal["query", "document"]
Pooling = Literal["mean", "last"]

ROLES = ("system", "user", "assistant", "tool")
MAX_STOP_STRINGS = 64
MAX_TOP_LOGPROBS = 20
_INT32_MAX = 2**31 - 1


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest known one, or all of them."""
    import difflib  # only when something is wrong

    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def as_number(name: str, value: Any, low: float, high: float, *, above: bool = False) -> float:
    """`value` as a float in [low, high], or in (low, high] if `above`, else ValidationError."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise ValidationError(f"{name} must be a number, not {value!r}", field=name)
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not (low < result <= high if above else low <= result <= high):
        least = f"above {low:g}" if above else f"at least {low:g}"
        most = "" if high == math.inf else f" and at most {high:g}"
        raise ValidationError(f"{name} must be {least}{most}, not {value!r}", field=name)
    if math.isinf(result):
        raise ValidationError(f"{name} must be finite, not {value!r}", field=name)
    return result


def as_integer(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int in [low, high]. Raises ValidationError naming `name`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValidationError(f"{name} must be a whole number, not {value!r}", field=name)
    result = int(value)
    if not low <= result <= high:
        raise ValidationError(f"{name} must be from {low} to {high}, not {result}", field=name)
    return result


def as_flag(name: str, value: Any) -> bool:
    """`value`, which must be a bool. Raises ValidationError naming `name`."""
    if not isinstance(value, bool):
        raise ValidationError(f"{name} must be True or False, not {value!r}", field=name)
    return value


def as_text(name: str, value: Any) -> str:
    """`value`, which must be a str of valid Unicode. Raises ValidationError naming `name`."""
    if not isinstance(value, str):
        raise ValidationError(f"{name} must be a string, not {type(value).__name__}", field=name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValidationError(
            f"{name} is not valid Unicode: a lone surrogate U+{ord(value[error.start]):04X} "
            f"at character {error.start}",
            field=name,
        ) from None
    return value


def _is_token_id(value: Any) -> bool:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        return False
    return 0 <= int(value) <= _INT32_MAX


def as_token_ids(name: str, value: Iterable[Any]) -> tuple[int, ...]:
    """`value` (a list, tuple or integer array) as token ids. Raises ValidationError naming `name`."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValidationError(f"{name} must be a list of token ids, not {type(value).__name__}", field=name)
    ids = []
    for item in value:
        if not _is_token_id(item):
            raise ValidationError(f"{name} must hold token ids (whole numbers), not {item!r}", field=name)
        ids.append(int(item))
    if not ids:
        raise ValidationError(f"{name} is empty: there is nothing to compute from", field=name)
    return tuple(ids)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role`: system, user, assistant or tool."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if not isinstance(self.role, str) or self.role not in ROLES:
            raise ValidationError(f"role must be one of {', '.join(ROLES)}, not {self.role!r}", field="role")
        as_text("content", self.content)

    def to_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


MessageLike = Message | Mapping[str, str]


def as_messages(value: Iterable[MessageLike]) -> tuple[Message, ...]:
    """Messages, from Message or mappings {"role": ..., "content": ...}. Raises ValidationError."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValidationError(
            'messages must be a list such as [{"role": "user", "content": "Hi"}], '
            f"not {type(value).__name__}",
            field="messages",
        )
    result = []
    for index, item in enumerate(value):
        if isinstance(item, Message):
            result.append(item)
            continue
        place = f"messages[{index}]"
        if not isinstance(item, Mapping):
            raise ValidationError(
                f'{place} must be {{"role": ..., "content": ...}}, not {type(item).__name__}',
                field="messages",
            )
        for key in item:
            if key not in ("role", "content"):
                raise ValidationError(
                    f"{place} has an unknown key {key!r}; {nearest(str(key), ('role', 'content'))}",
                    field="messages",
                )
        for key in ("role", "content"):
            if key not in item:
                raise ValidationError(f"{place} has no {key!r}", field="messages")
        try:
            result.append(Message(item["role"], item["content"]))
        except ValidationError as error:
            raise ValidationError(f"{place}: {error}", field="messages") from None
    if not result:
        raise ValidationError("messages is empty: there is nothing to answer", field="messages")
    return tuple(result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen. In this order: logit bias, penalties, temperature, top_k, top_p, min_p.

    temperature: 0 = greedy (the likeliest token), up to 100.
    top_k: keep the k likeliest tokens; 0 = all.
    top_p: keep the likeliest tokens that together reach this probability; 1 = all.
    min_p: drop tokens less likely than min_p times the likeliest; 0 = none.
    repetition_penalty: above 1 makes tokens of the prompt and the answer less likely.
    presence_penalty, frequency_penalty (-2 to 2): subtracted from the logits of tokens in the answer, once or
    for each time they occur.
    seed: the same seed gives the same tokens; None = a new one for each request.
    logit_bias: added to the logits of these token ids, -100 to 100.
    Raises ValidationError naming the field.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        put = object.__setattr__  # the class is frozen for everybody else
        put(self, "temperature", as_number("temperature", self.temperature, 0, 100))
        put(self, "top_k", as_integer("top_k", self.top_k, 0, _INT32_MAX))
        put(self, "top_p", as_number("top_p", self.top_p, 0, 1, above=True))
        put(self, "min_p", as_number("min_p", self.min_p, 0, 1))
        put(
            self,
            "repetition_penalty",
            as_number("repetition_penalty", self.repetition_penalty, 0, 100, above=True),
        )
        put(self, "presence_penalty", as_number("presence_penalty", self.presence_penalty, -2, 2))
        put(self, "frequency_penalty", as_number("frequency_penalty", self.frequency_penalty, -2, 2))
        if self.seed is not None:
            # Clients send signed and unsigned 64-bit seeds; the engine takes an unsigned one.
            put(self, "seed", as_integer("seed", self.seed, -(2**63), 2**64 - 1) % 2**64)
        put(self, "logit_bias", _logit_bias(self.logit_bias))


def _logit_bias(value: Any) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValidationError(
            f"logit_bias must map token ids to numbers, not {type(value).__name__}", field="logit_bias"
        )
    result = {}
    for key, bias in value.items():
        # JSON knows only strings as keys.
        token_id = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key
        if not _is_token_id(token_id):
            raise ValidationError(f"logit_bias must have token ids as keys, not {key!r}", field="logit_bias")
        result[int(token_id)] = as_number(f"logit_bias[{token_id}]", bias, -100, 100)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question to an engine: exactly one of `messages`, `prompt` and `token_ids`, and how to answer it.

    prompt: text, tokenised by the model's own conventions (a beginning-of-text token where it has one).
    token_ids: computed as they are.
    max_tokens: tokens to generate at most; None = as many as the context holds.
    stop: strings that end the answer; they are not part of it.
    ignore_eos: go on after the model's end tokens.
    logprobs: report the log-probability of each token.
    top_logprobs: and of that many of the likeliest tokens in its place, 0 to 20.
    response_format: what the answer must look like, enforced token by token: {"type": "json_schema",
    "schema": {...}}, "json_object", {"type": "regex", "pattern": ...}, {"type": "choice", "choices": [...]}
    or {"type": "grammar", "grammar": LARK}; None or {"type": "text"} = free text.
    Raises ValidationError naming the field.
    """

    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    token_ids: tuple[int, ...] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = 1024
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    response_format: Mapping[str, Any] | None = field(default=None, hash=False)

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
            put(self, "max_tokens", as_integer("max_tokens", self.max_tokens, 1, _INT32_MAX))
        put(self, "stop", _stop_strings(self.stop))
        as_flag("ignore_eos", self.ignore_eos)
        as_flag("logprobs", self.logprobs)
        put(self, "top_logprobs", as_integer("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS))
        if self.top_logprobs and not self.logprobs:
            raise ValidationError("top_logprobs needs logprobs=True", field="top_logprobs")
        if self.response_format is not None and self.ignore_eos:
            raise ValidationError(
                "response_format says where the answer ends, and cannot be combined with ignore_eos",
                field="response_format",
            )

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


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Texts to turn into vectors, each for itself.

    texts: a list of texts, none empty; a single string is one text.
    kind: what a text is in a search; matters for models that expect different words before each.
    pooling: "mean" of all tokens' hidden states, or the "last" token's; None = as the model declares, which
    for a plain language model is the mean.
    normalize: scale each vector to the length 1.
    Raises ValidationError naming the field.
    """

    texts: tuple[str, ...]
    kind: EmbeddingKind = "document"
    pooling: Pooling | None = None
    normalize: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", _texts(self.texts))
        if self.kind not in ("query", "document"):
            raise ValidationError(f'kind must be "query" or "document", not {self.kind!r}', field="kind")
        if self.pooling not in ("mean", "last", None):
            raise ValidationError(
                f'pooling must be "mean", "last" or None, not {self.pooling!r}', field="pooling"
            )
        as_flag("normalize", self.normalize)


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValidationError(f"texts must be a list of strings, not {type(value).__name__}", field="texts")
    texts = tuple(value)
    for index, text in enumerate(texts):
        try:
            as_text(f"texts[{index}]", text)
        except ValidationError as error:
            raise ValidationError(str(error), field="texts") from None
        if not text:
            raise ValidationError(
                f"texts[{index}] is empty: an empty text has no embedding; leave it out", field="texts"
            )
    return texts


class GenerateOptions(TypedDict, total=False):
    """The keyword arguments of `BitNet.generate` and its siblings: the fields of Request and of Sampling.

    `sampling` gives them together; single ones beside it replace its own.
    """

    max_tokens: int | None
    stop: str | Sequence[str] | None
    ignore_eos: bool
    logprobs: bool
    top_logprobs: int
    response_format: Mapping[str, Any] | None
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
class Delta:
    """One step of an answer. `text` is empty while a character or a possible stop string is incomplete."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


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
    """

    queue: float
    prefill: float
    decode: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float

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
    finish_reason: "stop" (an end token or a stop string), "length" (max_tokens or the end of the context was
    reached) or "cancelled".
    stop_string: the one that ended the answer. logprobs: one entry a token, or None if not asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] | None = None
    stop_string: str | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def parsed(self) -> Any:
        """The answer as JSON, for a response_format that asks for it. Raises ValidationError if the answer
        was cut or is not JSON."""
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
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "stop_string": self.stop_string,
            "usage": self.usage.to_dict(),
            "timings": self.timings.to_dict(),
            "logprobs": None if self.logprobs is None else [entry.to_dict() for entry in self.logprobs],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How an engine is doing. running, waiting: requests. free_blocks of n_blocks: key/value storage not in
    use; cached_blocks: those of them that still hold what earlier requests computed.
    n_steps, n_tokens: forward passes, and tokens computed in them, since the model was loaded.
    """

    closed: bool
    running: int
    waiting: int
    free_blocks: int
    cached_blocks: int = 0
    n_blocks: int
    n_steps: int
    n_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is loaded, and how. Sizes named *_bytes are bytes of memory.

    context_length: tokens the model was made for; n_ctx: tokens a sequence may hold here.
    kv_type: how keys and values are stored, f16 or q8_0.
    pooling: how `embed` makes one vector of a text if it is not told; None = in a way unknown here.
    repairs: what was wrong in the file and is handled; warnings: what else its user should know.
    """

    name: str
    path: str
    architecture: str
    activation: str
    n_parameters: int
    n_layers: int
    hidden_size: int
    ffn_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    tied_head: bool
    context_length: int
    n_ctx: int
    n_batch: int
    n_threads: int
    kernels: str
    ternary_bytes: int
    head_bytes: int
    kv_type: str = "f16"
    kv_bytes: int
    has_chat_template: bool
    pooling: Pooling | None
    repairs: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def memory_bytes(self) -> int:
        """Packed weights, embedding, head and key/value store together."""
        return self.ternary_bytes + self.head_bytes + self.kv_bytes
