"""BitNet models in Orbit: the inference and embedding services, and `register`, which puts them in place.

The names are imported when they are first used: they need Orbit's packages, which are on the path inside of
Orbit only, and `python -m orbit_bitnet serve` puts them there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orbit_bitnet.embedding import BitNetEmbeddingService
    from orbit_bitnet.errors import BitNetServiceError
    from orbit_bitnet.inference import BitNetService
    from orbit_bitnet.registration import register

__all__ = ["BitNetEmbeddingService", "BitNetService", "BitNetServiceError", "register"]


_MODULES = {
    "BitNetEmbeddingService": "embedding",
    "BitNetService": "inference",
    "BitNetServiceError": "errors",
    "register": "registration",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'orbit_bitnet' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"orbit_bitnet.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
