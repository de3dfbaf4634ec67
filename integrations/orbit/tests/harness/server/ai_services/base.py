from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import Any


class ServiceType(Enum):
    EMBEDDING = "embedding"
    INFERENCE = "inference"


class ProviderAIService(ABC):
    def __init__(self, config: dict[str, Any], service_type: ServiceType, provider_name: str) -> None:
        self.config = config
        self.service_type = service_type
        self.provider_name = provider_name
        self.initialized = False
        self.api_key: str | None = None
        self.base_url: str | None = None
        self.model: str | None = None

    @abstractmethod
    async def initialize(self) -> bool: ...

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    async def verify_connection(self) -> bool: ...

    def _extract_provider_config(self) -> dict[str, Any]:
        """`inferences:` or `inference:` or the top level: the first that has a block for the provider."""
        kind, name = self.service_type.value, self.provider_name
        places = (self.config.get(f"{kind}s", {}), self.config.get(kind, {}), self.config)
        return next((place[name] for place in places if place.get(name)), {})
