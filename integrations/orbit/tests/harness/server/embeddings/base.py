from __future__ import annotations

from typing import Any


class EmbeddingServiceFactory:
    _instances: dict[str, Any] = {}  # noqa: RUF012

    @classmethod
    def create_embedding_service(cls, config: dict[str, Any], provider_name: str | None = None) -> Any:
        name = provider_name or config.get("embedding", {}).get("provider", "ollama")
        model = config.get("embeddings", {}).get(name, {}).get("model", "")
        key = f"{name}:{model}"
        if key not in cls._instances:
            cls._instances[key] = cls._create_new_instance(name, config)
        return cls._instances[key]

    @staticmethod
    def _create_new_instance(provider_name: str, config: dict[str, Any]) -> Any:
        raise ValueError(f"Unsupported embedding provider: {provider_name}")
