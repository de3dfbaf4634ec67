"""All that this package uses of Orbit, and what to do where Orbit is not there."""

from __future__ import annotations


def _explain(error: ImportError) -> str:
    missing = (error.name or "").partition(".")[0]
    if missing == "ai_services":
        return (
            "orbit_bitnet works inside of Orbit, and Python does not find Orbit's packages (ai_services). "
            "Run `python -m orbit_bitnet serve --orbit DIR -- --config FILE`, or put DIR/server on "
            "PYTHONPATH, where DIR is your checkout of https://github.com/schmitech/orbit"
        )
    return (
        f"Orbit's packages were found, but cannot be imported: {error}. Install what Orbit needs in this "
        "environment (install/setup.sh in its checkout)"
    )


try:
    from ai_services.base import ServiceType
    from ai_services.errors import ProviderServiceError, sanitize_provider_error
    from ai_services.factory import AIServiceFactory
    from ai_services.providers.usage_reporting import UsageReportingMixin
    from ai_services.services import EmbeddingService, InferenceService, ToolCallingResult
except ImportError as error:
    raise ImportError(_explain(error), name=error.name) from error

__all__ = [
    "AIServiceFactory",
    "EmbeddingService",
    "InferenceService",
    "ProviderServiceError",
    "ServiceType",
    "ToolCallingResult",
    "UsageReportingMixin",
    "sanitize_provider_error",
]
