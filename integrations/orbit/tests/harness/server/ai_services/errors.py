from __future__ import annotations

_SENTENCES = {
    400: "The request could not be processed.",
    401: "The AI service has a problem with its key.",
    404: "The model that is configured is not available.",
    429: "The AI service is busy.",
    500: "The AI service had an error.",
    502: "The AI service cannot be reached.",
    503: "The AI service is not available now.",
    504: "The AI service took too long.",
}


class ProviderServiceError(Exception):
    def __init__(
        self,
        user_message: str,
        *,
        original_error: BaseException | None = None,
        provider: str | None = None,
        operation: str | None = None,
    ) -> None:
        super().__init__(user_message)
        self.user_message = user_message
        self.original_error = original_error
        self.provider = provider
        self.operation = operation


def sanitize_provider_error(
    error: BaseException, *, provider: str | None = None, operation: str | None = None
) -> str:
    """What users are told: the message of a ProviderServiceError, else a sentence for the status."""
    if isinstance(error, ProviderServiceError):
        return error.user_message
    for name in ("status_code", "status"):
        status = getattr(error, name, None)
        if isinstance(status, int) and status in _SENTENCES:
            return _SENTENCES[status]
    return "The AI service failed."
