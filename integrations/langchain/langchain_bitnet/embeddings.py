"""BitNetEmbeddings: texts as vectors, for LangChain's vector stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from langchain_core.embeddings import Embeddings
from pydantic import ConfigDict

from ._connection import SharedConnection
from ._errors import translated

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class BitNetEmbeddings(SharedConnection, Embeddings):
    """Vectors made by a BitNet model, in this process or on a server.

        embeddings = BitNetEmbeddings()
        store = InMemoryVectorStore(embeddings)

    Any language model can be used; its vector of a text is the mean of what it computes for the text's
    tokens, unless it declares something else. Raises ContextOverflowError for a text with more tokens than
    the context has, and bitnet.ValidationError for an empty one.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    query_prefix: str = ""
    """Put before a text that is searched for, besides what the model itself is known to expect."""
    document_prefix: str = ""
    """Put before a text that may be found."""
    pooling: Literal["mean", "last"] | None = None
    """Of all tokens the "mean", or the "last" token alone; None = as the model declares."""
    normalize: bool = True
    """Scale vectors to the length 1."""
    dimensions: int | None = None
    """Keep only that many of a vector's first numbers, before it is scaled: for models that were trained to
    be shortened. None = all."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        with self.opened() as model, translated():
            return _lists(model.embed(**self._documents(texts)))

    def embed_query(self, text: str) -> list[float]:
        with self.opened() as model, translated():
            return _lists(model.embed(**self._query(text)))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        async with self.aopened() as model:
            with translated():
                return _lists(await model.aembed(**self._documents(texts)))

    async def aembed_query(self, text: str) -> list[float]:
        async with self.aopened() as model:
            with translated():
                return _lists(await model.aembed(**self._query(text)))[0]

    def _documents(self, texts: list[str]) -> dict[str, Any]:
        return {"texts": [self.document_prefix + text for text in texts], "kind": "document", **self._how()}

    def _query(self, text: str) -> dict[str, Any]:
        return {"texts": [self.query_prefix + text], "kind": "query", **self._how()}

    def _how(self) -> dict[str, Any]:
        return {"pooling": self.pooling, "normalize": self.normalize, "dimensions": self.dimensions}


def _lists(vectors: NDArray[np.float32]) -> list[list[float]]:
    rows: list[list[float]] = vectors.tolist()
    return rows
