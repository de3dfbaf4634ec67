"""Every exception a user of bitnet can meet.

Each message says what is wrong, with the values involved, and how to mend it; `status` is what an HTTP server
answers.
"""

from __future__ import annotations


class BitNetError(Exception):
    """The base of all errors raised by this package."""

    status: int = 500


class ModelFileError(BitNetError):
    """The model file is damaged, hostile, or not a model this engine computes."""


class ModelNotFoundError(BitNetError):
    """There is no model under this name or path."""

    status = 404


class ChatTemplateError(BitNetError):
    """The messages cannot be rendered with the model's chat template, or the template itself is unusable."""

    status = 400


class ValidationError(BitNetError, ValueError):
    """A value of the request or of the options is wrong; `field` names it where one field is to blame."""

    status = 400

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ConfigError(ValidationError):
    """A configuration file or mapping is wrong; the message names file, line and key."""


class ConstraintError(BitNetError):
    """A response format or grammar cannot be enforced: unsupported, impossible or too complex."""

    status = 400


class ContextOverflowError(ValidationError):
    """The prompt does not fit into the context, with at least one token left for the answer."""

    def __init__(self, n_prompt_tokens: int, n_ctx: int) -> None:
        super().__init__(
            f"the prompt has {n_prompt_tokens} tokens; a context of {n_ctx} has room for {n_ctx - 1} and an "
            f"answer. Shorten the prompt, or load the model with a larger n_ctx",
            field="prompt",
        )
        self.n_prompt_tokens = n_prompt_tokens
        self.n_ctx = n_ctx

    def __reduce__(self) -> tuple[type[ContextOverflowError], tuple[int, int]]:
        return type(self), (self.n_prompt_tokens, self.n_ctx)


class CancelledError(BitNetError):
    """The computation was cancelled before it had a result."""

    status = 499


class DeadlineError(BitNetError, TimeoutError):
    """The answer took longer than it was allowed to (`timeout.total`)."""

    status = 504


class OverloadedError(BitNetError):
    """Too many requests are waiting already; try again later."""

    status = 503


class EngineClosedError(BitNetError):
    """The model was closed, before or during the request."""

    status = 503
