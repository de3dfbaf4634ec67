"""How much a client may ask for. Each limit is an option of `bitnet serve` or a fixed, generous bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitnet.errors import ValidationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request, and all of them together, may take.

    max_body_bytes: of a request. A context of 4096 tokens is about 16 KiB of text; texts to embed are more.
    max_requests: under way at the same time, in all; above that they are refused before they are read.
    request_seconds: from the first byte to the last, for computing and sending the answer.
    default_max_tokens: for requests that do not say how many, where max_tokens is a limit.
    max_messages, max_tokens, max_n, max_stop, max_stop_characters, max_logit_bias: of a request.
    max_prompts: texts in a request for completions. max_inputs: texts in a request for embeddings.
    max_schema_values, max_schema_depth, max_schema_characters: of its response format and tools together.
    template_args: names that `chat_template_kwargs` may hold.
    heartbeat_seconds: a stream that has nothing to say for so long sends a comment, for proxies to see.
    """

    max_body_bytes: int = 4 << 20
    max_requests: int = 256
    request_seconds: float = 600.0
    max_messages: int = 1024
    max_tokens: int | None = None
    default_max_tokens: int = 1024
    max_n: int = 16
    max_stop: int = 16
    max_stop_characters: int = 256
    max_logit_bias: int = 1024
    max_prompts: int = 64
    max_inputs: int = 2048
    max_schema_values: int = 10_000
    max_schema_depth: int = 32
    max_schema_characters: int = 128 << 10
    template_args: frozenset[str] = frozenset({"enable_thinking"})
    heartbeat_seconds: float = 10.0

    def apply(self, options: dict[str, Any]) -> None:
        """The limits on options of BitNet.chat and its siblings. Their types are for Request to check.

        Raises ValidationError naming the field. A limit on max_tokens also holds where none are asked for.
        """
        n = options.get("n")
        if isinstance(n, int) and n > self.max_n:
            raise ValidationError(f"n must be at most {self.max_n} here, not {n}", field="n")
        max_tokens = options.get("max_tokens")
        if self.max_tokens is not None and isinstance(max_tokens, int) and max_tokens > self.max_tokens:
            raise ValidationError(
                f"max_tokens must be at most {self.max_tokens} here, not {max_tokens}", field="max_tokens"
            )
        if self.max_tokens is not None and max_tokens is None:
            options["max_tokens"] = min(self.max_tokens, self.default_max_tokens)
        self._check_stop(options.get("stop"))
        logit_bias = options.get("logit_bias")
        if isinstance(logit_bias, Mapping) and len(logit_bias) > self.max_logit_bias:
            raise ValidationError(
                f"logit_bias must hold at most {self.max_logit_bias} tokens here, not {len(logit_bias)}",
                field="logit_bias",
            )
        for field in ("response_format", "tools"):
            if options.get(field):
                self._check_schema(field, options[field])
        template_args = options.get("template_args")
        if template_args:
            self._check_template_args(template_args)

    def _check_stop(self, stop: Any) -> None:
        strings = [stop] if isinstance(stop, str) else stop
        if not isinstance(strings, list):
            return
        if len(strings) > self.max_stop:
            raise ValidationError(
                f"stop must hold at most {self.max_stop} strings here, not {len(strings)}", field="stop"
            )
        for string in strings:
            if isinstance(string, str) and len(string) > self.max_stop_characters:
                raise ValidationError(
                    f"a stop string must have at most {self.max_stop_characters} characters here, "
                    f"not {len(string)}",
                    field="stop",
                )

    def _check_schema(self, field: str, value: Any) -> None:
        """Bounded before anything recurses into it."""
        n_values = n_characters = 0
        level = [value]
        for _ in range(self.max_schema_depth):
            deeper: list[Any] = []
            for item in level:
                if isinstance(item, dict):
                    n_characters += sum(map(len, item))
                    deeper += item.values()
                elif isinstance(item, list):
                    deeper += item
                elif isinstance(item, str):
                    n_characters += len(item)
            n_values += len(level)
            if n_values > self.max_schema_values:
                raise ValidationError(
                    f"{field} must hold at most {self.max_schema_values} values here", field=field
                )
            if n_characters > self.max_schema_characters:
                raise ValidationError(
                    f"{field} must have at most {self.max_schema_characters} characters here", field=field
                )
            if not deeper:
                return
            level = deeper
        raise ValidationError(
            f"{field} must be nested at most {self.max_schema_depth} levels deep here", field=field
        )

    def _check_template_args(self, template_args: Any) -> None:
        field = "chat_template_kwargs"
        if not isinstance(template_args, dict):
            raise ValidationError(f"{field} must be an object", field=field)
        for name, value in template_args.items():
            if name not in self.template_args:
                known = ", ".join(sorted(self.template_args)) or "none"
                raise ValidationError(
                    f"{field} may not hold {name!r:.100} here; allowed: {known}", field=field
                )
            if not (value is None or isinstance(value, (bool, int, float, str))) or len(str(value)) > 256:
                raise ValidationError(
                    f"{field}.{name} must be a number, true, false or a short string", field=field
                )
