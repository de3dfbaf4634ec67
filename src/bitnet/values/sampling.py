"""Sampling: how the next token is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bitnet.errors import ValidationError

from .checks import INT32_MAX, as_integer, as_number, is_token_id


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
        put(self, "top_k", as_integer("top_k", self.top_k, 0, INT32_MAX))
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
        if not is_token_id(token_id):
            raise ValidationError(f"logit_bias must have token ids as keys, not {key!r}", field="logit_bias")
        result[int(token_id)] = as_number(f"logit_bias[{token_id}]", bias, -100, 100)
    return result
