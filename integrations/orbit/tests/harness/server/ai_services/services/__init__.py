from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from ai_services.base import ProviderAIService, ServiceType


@dataclass
class ToolCallingResult:
    text: str | None
    tool_calls: list[dict[str, Any]] | None
    assistant_message: dict[str, Any]
    finish_reason: str = "stop"


class InferenceService(ProviderAIService):
    SUPPORTS_USAGE_REPORTING = False
    SUPPORTS_PROMPT_CACHING = False

    def __init__(self, config: dict[str, Any], provider_name: str) -> None:
        super().__init__(config, ServiceType.INFERENCE, provider_name)
        block = self._extract_provider_config()
        self.temperature: float = block.get("temperature", 0.7)
        self.max_tokens: int = block.get("max_tokens", 2000)
        self.stream_enabled: bool = block.get("stream", True)

    @abstractmethod
    async def generate(self, prompt: str, **kwargs: Any) -> str: ...

    @abstractmethod
    def generate_stream(self, prompt: str, **kwargs: Any) -> AsyncGenerator[str, None]: ...

    async def generate_with_tools(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], **kwargs: Any
    ) -> ToolCallingResult:
        raise NotImplementedError

    def _supported(
        self, usage_sink: dict[str, Any] | None, cache_prefix_len: int | None, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        if usage_sink is not None and self.SUPPORTS_USAGE_REPORTING:
            kwargs["usage_sink"] = usage_sink
        if cache_prefix_len is not None and self.SUPPORTS_PROMPT_CACHING:
            kwargs["cache_prefix_len"] = cache_prefix_len
        return kwargs

    async def generate_tracked(
        self,
        prompt: str,
        usage_sink: dict[str, Any] | None = None,
        cache_prefix_len: int | None = None,
        **kwargs: Any,
    ) -> str:
        return await self.generate(prompt, **self._supported(usage_sink, cache_prefix_len, kwargs))

    async def generate_stream_tracked(
        self,
        prompt: str,
        usage_sink: dict[str, Any] | None = None,
        cache_prefix_len: int | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        options = self._supported(usage_sink, cache_prefix_len, kwargs)
        async for piece in self.generate_stream(prompt, **options):
            yield piece

    async def generate_with_tools_tracked(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        usage_sink: dict[str, Any] | None = None,
        cache_prefix_len: int | None = None,
        **kwargs: Any,
    ) -> ToolCallingResult:
        options = self._supported(usage_sink, cache_prefix_len, kwargs)
        return await self.generate_with_tools(messages, tools, **options)

    async def validate_config(self) -> bool:
        return bool(self.model and self.api_key) and await self.verify_connection()


class EmbeddingService(ProviderAIService):
    SUPPORTS_USAGE_REPORTING = False

    def __init__(self, config: dict[str, Any], provider_name: str) -> None:
        super().__init__(config, ServiceType.EMBEDDING, provider_name)
        self.dimensions: int | None = None
        self.batch_size: int = self._extract_provider_config().get("batch_size", 10)

    # With `usage_sink` where SUPPORTS_USAGE_REPORTING says so.
    @abstractmethod
    async def embed_query(self, text: str) -> list[float]: ...

    @abstractmethod
    async def embed_documents(self, texts: list[str]) -> list[list[float]]: ...

    @abstractmethod
    async def get_dimensions(self) -> int: ...

    async def embed_query_tracked(self, text: str, usage_sink: dict[str, Any] | None = None) -> list[float]:
        options: dict[str, Any] = {"usage_sink": usage_sink} if self.SUPPORTS_USAGE_REPORTING else {}
        return await self.embed_query(text, **options)

    async def embed_documents_tracked(
        self, texts: list[str], usage_sink: dict[str, Any] | None = None
    ) -> list[list[float]]:
        options: dict[str, Any] = {"usage_sink": usage_sink} if self.SUPPORTS_USAGE_REPORTING else {}
        return await self.embed_documents(texts, **options)
