"""Api mode: an engine that answers over HTTP, from a server that speaks OpenAI's API."""

from .engine import HttpEngine, connected_engine, engine_options
from .options import Retry, Secret, Timeout, as_timeout

__all__ = [
    "HttpEngine",
    "Retry",
    "Secret",
    "Timeout",
    "as_timeout",
    "connected_engine",
    "engine_options",
]
