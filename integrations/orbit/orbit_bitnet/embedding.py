"""BitNetEmbeddingService: Orbit's embedding service on `bitnet`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from bitnet import BitNet, ConfigError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orbit_bitnet._model import Opened, label, read_settings
from orbit_bitnet._orbit import EmbeddingService, UsageReportingMixin
from orbit_bitnet.errors import BitNetServiceError, told_to_orbit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class BitNetEmbeddingService(UsageReportingMixin, EmbeddingService):
    """The embedding provider `bitnet`: vectors of a model in this process or on a server.

    Beside the keys of `bitnet` its block (embeddings: bitnet:) has `batch_size`, `dimensions`, which must be
    those of the model, `pooling` (mean or last; default: as the model declares) and `normalize` (default:
    true). A text's vector does not depend on the texts beside it.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """config: Orbit's whole configuration. Raises bitnet.ConfigError. Loads nothing."""
        super().__init__(config, "bitnet")
        block = dict(self._extract_provider_config())
        own = _Own.take(block)
        settings = read_settings("embeddings", block)
        self.settings = settings
        self.model = label(settings)
        self.base_url = settings.base_url if settings.mode == "api" else None
        self.api_key = settings.api_key.get_secret_value() if settings.api_key else "none"
        self.batch_size = own.batch_size
        self.dimensions = own.dimensions
        self._pooling = own.pooling
        self._normalize = own.normalize
        self._opened = Opened(settings)

    async def initialize(self) -> bool:
        """Load the model, or connect to the server. False = it failed, and the log says why; the next request
        tries again."""
        try:
            with told_to_orbit("loading the embedding model"):
                await self._ready()
        except BitNetServiceError:
            self.initialized = False
        return self.initialized

    async def _ready(self) -> BitNet:
        model = await self._opened.ready()
        size = model.info.hidden_size
        if size and self.dimensions not in (None, size):
            raise ConfigError(
                f"embeddings.bitnet.dimensions is {self.dimensions}, and the vectors of {self.model} have "
                f"{size}; leave it out, or recreate what was stored with another model",
                field="dimensions",
            )
        self.initialized = True
        return model

    async def verify_connection(self) -> bool:
        """Whether texts can be embedded: the model is loaded, or the server answers."""
        try:
            with told_to_orbit("verifying the connection"):
                await self._ready()
                return await self._opened.is_healthy()
        except BitNetServiceError:
            return False

    async def close(self) -> None:
        """Give the model back, which is freed if no other service uses it. May be repeated; the next request
        loads it again."""
        self.initialized = False
        await self._opened.close()

    async def embed_query(self, text: str, usage_sink: dict[str, Any] | None = None) -> list[float]:
        """The vector of a search text. Raises BitNetServiceError, also for an empty text."""
        return (await self._embed([text], "query", usage_sink))[0]

    async def embed_documents(
        self, texts: list[str], usage_sink: dict[str, Any] | None = None
    ) -> list[list[float]]:
        """A vector for each text. Raises BitNetServiceError, also for an empty text."""
        return await self._embed(texts, "document", usage_sink)

    async def get_dimensions(self) -> int:
        """The length of the vectors."""
        if self.dimensions is None:
            with told_to_orbit("loading the embedding model"):
                size = (await self._ready()).info.hidden_size
            self.dimensions = size or len(await self.embed_query("test"))  # a server does not tell
        return self.dimensions

    async def _embed(
        self, texts: Sequence[str], kind: Literal["query", "document"], usage_sink: dict[str, Any] | None
    ) -> list[list[float]]:
        vectors: list[list[float]] = []
        with told_to_orbit("embedding"):
            model = await self._ready()
            for start in range(0, len(texts), self.batch_size):
                batch: NDArray[np.float32] = await model.aembed(
                    texts[start : start + self.batch_size],
                    kind=kind,
                    pooling=self._pooling,
                    normalize=self._normalize,
                )
                vectors += batch.tolist()
        if usage_sink is not None and self.settings.mode == "direct":  # a server would have to be asked
            n_tokens = await asyncio.to_thread(lambda: sum(len(model.tokenize(text)) for text in texts))
            self._report_usage(usage_sink, n_tokens, 0)
        return vectors


class _Own(BaseModel):
    """The keys of the block that are not `bitnet`'s. Values from the environment are strings."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    batch_size: int = Field(default=32, ge=1)  # texts handed to the engine at a time
    dimensions: int | None = Field(default=None, ge=1)
    pooling: Literal["mean", "last"] | None = None
    normalize: bool = True

    @classmethod
    def take(cls, block: dict[str, Any]) -> _Own:
        """Take them out of the block. Raises bitnet.ConfigError."""
        values = {key: block.pop(key) for key in cls.model_fields if key in block}
        try:
            return cls.model_validate(
                {key: value for key, value in values.items() if value not in (None, "")}
            )
        except ValidationError as error:
            problem = error.errors()[0]
            key = str(problem["loc"][0])
            raise ConfigError(
                f"embeddings.bitnet.{key}: {problem['msg']}, not {problem['input']!r}", field=key
            ) from None
