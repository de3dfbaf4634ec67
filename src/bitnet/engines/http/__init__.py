"""Api mode: an engine that answers over HTTP, from a server that speaks OpenAI's API."""

from .engine import HttpEngine
from .options import Retry, Secret, Timeout, as_address, as_key, as_retry, as_timeout

__all__ = ["HttpEngine", "Retry", "Secret", "Timeout", "as_address", "as_key", "as_retry", "as_timeout"]
