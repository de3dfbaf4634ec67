"""Every exception a user of bitnet can meet.

Each message says what is wrong, with the values involved, and how to mend it; `status` is what an HTTP server
answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitnet.values import Reply


class BitNetError(Exception):
    """The base of all errors raised by this package."""

    status: int = 500


class ModelFileError(BitNetError):
    """The model file is damaged, hostile, or not a model this engine computes."""


class ModelNotFoundError(BitNetError):
    """There is no model under this name or path."""

    status = 404


class DownloadError(BitNetError):
    """A model cannot be downloaded: no connection, no space, no permission, or it arrived damaged."""

    status = 502


class ConversionError(ModelFileError):
    """A model cannot be converted without guessing or without losing something."""


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


class DeviceError(BitNetError):
    """The device that computes is not there, has too little memory, was lost, or what drives it is broken.
    If it fails while it computes, the model is loaded anew with the next request."""

    status = 503


class CapabilityError(ValidationError):
    """The server that would have to answer cannot do this; `field` names what asks for it (api mode)."""


class AuthenticationError(BitNetError):
    """The server wants another key, or one at all (api mode)."""

    status = 401


class ServerError(BitNetError):
    """The server failed, or what it answered cannot be understood (api mode)."""

    status = 502


class ServerUnreachableError(ServerError, ConnectionError):
    """There is no connection to the server, or it was lost before the answer began (api mode)."""


class StreamInterruptedError(ServerError):
    """The answer broke off (api mode). text: what there was of it. reply: the same as a whole Reply, with
    finish_reason "cancelled"."""

    def __init__(self, message: str, reply: Reply) -> None:
        super().__init__(message, reply)
        self.reply = reply

    @property
    def text(self) -> str:
        return self.reply.text

    def __str__(self) -> str:
        return str(self.args[0])
