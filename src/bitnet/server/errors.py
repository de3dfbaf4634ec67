"""Errors as OpenAI's API writes them: {"error": {"message", "type", "param", "code"}}.

Only what a client can do something about is told. What concerns the machine (paths, damaged files, defects)
goes to the log, and the client gets a sentence without details.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from bitnet.errors import (
    BitNetError,
    CancelledError,
    ContextOverflowError,
    EngineClosedError,
    OverloadedError,
)

logger = logging.getLogger("bitnet.server")

# Until when a queue has usually moved on.
RETRY_AFTER_SECONDS = 1


class ApiError(Exception):
    """An answer that is an error. headers: further ones of the response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        self.param = param
        self.code = code
        self.headers = headers

    def to_dict(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


class ClientGone(Exception):
    """The client closed the connection: there is nobody to answer."""


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def overloaded(message: str) -> ApiError:
    return ApiError(
        429,
        message,
        kind="rate_limit_error",
        code="overloaded",
        headers=((b"retry-after", str(RETRY_AFTER_SECONDS).encode()),),
    )


def unavailable(message: str) -> ApiError:
    retry_after = ((b"retry-after", str(RETRY_AFTER_SECONDS).encode()),)
    return ApiError(503, message, code="unavailable", headers=retry_after)


def as_api_error(error: BaseException, request_id: str, names: Mapping[str, str]) -> ApiError:
    """What a client is told of an exception. Whatever is not the client's doing is logged here.

    names: parameters as the client calls them, by the names they have as options of BitNet.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OverloadedError):
        return overloaded("too many requests are waiting for this model; try again later")
    if isinstance(error, CancelledError):
        return ApiError(499, "the request was cancelled", code="cancelled")
    if isinstance(error, EngineClosedError):
        logger.warning("request %s: %s", request_id, error)
        return unavailable("the model was closed; try again")
    if isinstance(error, BitNetError) and error.status == 400:
        code = "context_length_exceeded" if isinstance(error, ContextOverflowError) else None
        field = getattr(error, "field", None)
        param = None if field is None else names.get(field, field).partition("[")[0]
        return invalid(str(error), param, code)
    if isinstance(error, BitNetError):
        logger.error("request %s: %s", request_id, error)
        if error.status == 504:
            return ApiError(504, str(error), code="deadline_exceeded")
        return ApiError(
            error.status if error.status >= 500 else 500,
            f"the model cannot be used; the server's log says why (request {request_id})",
            code="model_error",
        )
    logger.error("request %s failed", request_id, exc_info=error)
    return ApiError(
        500,
        f"internal error; the server's log has the details (request {request_id})",
        code="internal_error",
    )
