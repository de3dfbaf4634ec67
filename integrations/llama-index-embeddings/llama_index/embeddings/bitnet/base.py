"""BitNetEmbedding, the embedding class."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, model_validator
from typing_extensions import Self

from bitnet.connection import Connection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EmbeddingKind = Literal["query", "document"]


class BitNetEmbedding(Connection, BaseEmbedding):
    """Vectors of a BitNet model for LlamaIndex, computed in this process, or by a server with `base_url`.

        Settings.embed_model = BitNetEmbedding()  # the bundled model; or BitNetEmbedding(model="model.gguf")

    The fields of bitnet.connection.Connection say which model answers; with the same ones, this shares the
    loaded model with llama_index.llms.bitnet.BitNet. Nothing is loaded before the first text. Objects can be
    pickled, copied, and used from any number of threads and event loops.

    A language model that was not trained to embed gives vectors that find some texts and miss others; see the
    README for what was measured.

    LlamaIndex keys its `embeddings_cache` by the text alone: give every model, pooling and instruction a
    cache of its own. Where queries and texts have different instructions, a cache is refused.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    model_name: str = "unknown"
    """What the model is called in traces; as an argument, the same as `model`."""
    pooling: Literal["mean", "last"] | None = None
    """How a text's tokens become one vector; None = as the model declares, for a language model the mean."""
    normalize: bool = True
    """Scale vectors to the length 1."""
    dimensions: int | None = Field(default=None, gt=0)
    """Keep only that many of a vector's first numbers, before it is scaled: for models that were trained to
    be shortened. None = all."""
    query_instruction: str | None = None
    """Put before each query; None = what the model is known to expect there."""
    text_instruction: str | None = None
    """Put before each text that is indexed; None = what the model is known to expect there."""
    truncate: bool = False
    """Cut texts that do not fit into the context. If not, they raise bitnet.ContextOverflowError."""
    embed_batch_size: int = Field(default=32, gt=0, le=2048)
    """Texts computed in one call of the engine."""

    @model_validator(mode="before")
    @classmethod
    def _model_by_its_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("model_name") is not None and "model" not in data:
            return {**data, "model": data["model_name"]}
        return data

    @model_validator(mode="after")
    def _name_and_cache(self) -> Self:
        self.model_name = self.label
        if self.embeddings_cache is not None and self.query_instruction != self.text_instruction:
            raise ValueError(
                "an embeddings_cache does not tell queries from texts, and would mix up those with different "
                "instructions; leave it out, or cache in an IngestionPipeline"
            )
        return self

    @classmethod
    def class_name(cls) -> str:
        return "BitNetEmbedding"

    def with_options(self, **fields: Any) -> Self:
        """Another object with some fields changed. It shares the loaded model if the same one answers."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name != "model_name"}
        return type(self)(**{**values, **fields})

    def close(self) -> None:
        """Give the model back. The next call opens it again."""
        self.disconnect()

    async def aclose(self) -> None:
        """`close` for event loops."""
        await asyncio.to_thread(self.disconnect)

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._embed([query], "query")[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await self._aembed([query], "query"))[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._embed([text], "document")[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aembed([text], "document"))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._embed(texts, "document")

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await self._aembed(texts, "document")

    def _embed(self, texts: Sequence[str], kind: EmbeddingKind) -> list[Embedding]:
        if not texts:
            return []
        return _lists(self.connect().embed(self._prepared(texts, kind), **self._options(kind)))

    async def _aembed(self, texts: Sequence[str], kind: EmbeddingKind) -> list[Embedding]:
        if not texts:
            return []
        # To count tokens may load the model.
        prepared = await asyncio.to_thread(self._prepared, texts, kind)
        return _lists(await self.connect().aembed(prepared, **self._options(kind)))

    def _options(self, kind: EmbeddingKind) -> dict[str, Any]:
        return {
            "kind": kind,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "dimensions": self.dimensions,
            # An instruction of the user's own, which `_prepared` put there, stands in place of the model's.
            "prefix": None if self._instruction(kind) is None else "",
        }

    def _instruction(self, kind: EmbeddingKind) -> str | None:
        return self.query_instruction if kind == "query" else self.text_instruction

    def _prepared(self, texts: Sequence[str], kind: EmbeddingKind) -> list[str]:
        instruction = self._instruction(kind) or ""
        whole = [instruction + text for text in texts]
        return [self._cut(text) for text in whole] if self.truncate else whole

    def _cut(self, text: str) -> str:
        """As much of its beginning as fits into the context."""
        model, room = self.connect(), self.context_size()
        ids = model.tokenize(text)
        kept = room
        while len(ids) > room:
            # The last token may end inside of a character, and what is left may fall into other tokens.
            text = model.detokenize(ids[:kept]).rstrip("\N{REPLACEMENT CHARACTER}")
            ids = model.tokenize(text)
            kept = min(kept, len(ids)) - 1
        return text


def _lists(vectors: NDArray[np.float32]) -> list[Embedding]:
    rows: list[Embedding] = vectors.tolist()
    return rows
