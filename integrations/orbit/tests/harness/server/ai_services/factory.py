from __future__ import annotations

import logging
from typing import Any

from ai_services.base import ServiceType

logger = logging.getLogger(__name__)
Key = tuple[ServiceType, str]


class AIServiceFactory:
    _classes: dict[Key, Any] = {}  # noqa: RUF012
    _instances: dict[Key, Any] = {}  # noqa: RUF012

    @classmethod
    def register_service(cls, service_type: ServiceType, provider: str, service_class: Any) -> None:
        if (service_type, provider) in cls._classes:
            logger.warning("overwriting the registration of %s for %s", provider, service_type.value)
        cls._classes[service_type, provider] = service_class

    @classmethod
    def unregister_service(cls, service_type: ServiceType, provider: str) -> None:
        cls._classes.pop((service_type, provider), None)
        cls._instances.pop((service_type, provider), None)

    @classmethod
    def get_service_class(cls, service_type: ServiceType, provider: str) -> Any:
        return cls._classes.get((service_type, provider))

    @classmethod
    def create_service(
        cls, service_type: ServiceType, provider: str, config: dict[str, Any], use_cache: bool = True
    ) -> Any:
        """One instance for a kind and a provider, whatever the configuration says."""
        key = (service_type, provider)
        if use_cache and key in cls._instances:
            return cls._instances[key]
        if key not in cls._classes:
            raise ValueError(f"No service registered for {service_type.value} with provider {provider}")
        service = cls._classes[key](config)
        if use_cache:
            cls._instances[key] = service
        return service

    @classmethod
    def clear_cache(cls, service_type: ServiceType | None = None, provider: str | None = None) -> None:
        """Forgets instances, and does not close them."""
        for kind, name in list(cls._instances):
            if service_type in (None, kind) and provider in (None, name):
                del cls._instances[kind, name]
