"""What goes wrong in `bitnet`, as Orbit wants to be told: a sentence for the user, and a status."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from bitnet import BitNetError, ContextOverflowError, OverloadedError

from orbit_bitnet._orbit import ProviderServiceError, sanitize_provider_error

logger = logging.getLogger("orbit_bitnet")


class BitNetServiceError(ProviderServiceError):
    """status_code: as HTTP has it. The message is for users, and tells no path; original_error tells all."""

    def __init__(self, message: str, status_code: int, *, original_error: Exception, operation: str) -> None:
        super().__init__(message, original_error=original_error, provider="bitnet", operation=operation)
        self.status_code = status_code


@contextmanager
def told_to_orbit(operation: str) -> Iterator[None]:
    """Errors of the block are logged whole, and raised as BitNetServiceError."""
    try:
        yield
    except ProviderServiceError:
        raise
    except (BitNetError, OSError) as error:
        logger.error("bitnet: %s failed: %s", operation, error)
        raise as_service_error(error, operation) from error
    except Exception as error:
        logger.exception("bitnet: %s failed", operation)
        raise as_service_error(error, operation) from error


def as_service_error(error: Exception, operation: str) -> BitNetServiceError:
    status = _status(error)
    if isinstance(error, ContextOverflowError):
        message = (
            f"This conversation is too long for the model: it has {error.n_prompt_tokens} tokens, and there "
            f"is room for {error.n_ctx - 1} and an answer. Please shorten your message, or start a new "
            "conversation."
        )
    else:
        message = sanitize_provider_error(_Status(status), provider="bitnet", operation=operation)
    return BitNetServiceError(message, status, original_error=error, operation=operation)


class _Status(Exception):
    """All that Orbit is told of an error to choose its sentence by."""

    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


def _status(error: Exception) -> int:
    if isinstance(error, OverloadedError):
        return 429  # Orbit's word for "busy"
    if isinstance(error, BitNetError):
        return error.status
    return 503 if isinstance(error, OSError) else 500
