"""BitNetEmbeddings: prefixes, kinds, async, and vectors that mean something."""

from __future__ import annotations

import math

import bitnet
import numpy as np
import pytest
from bitnet import BitNet
from bitnet.testing import FakeEngine

from langchain_bitnet import BitNetEmbeddings, ContextOverflowError


async def test_queries_and_documents_are_told_apart() -> None:
    engine = FakeEngine()
    embeddings = BitNetEmbeddings(
        client=BitNet.from_engine(engine), query_prefix="query: ", document_prefix="text: ", pooling="last"
    )
    assert embeddings.embed_query("fox") == await embeddings.aembed_query("fox")
    documents = ["fox", "sea"]
    assert embeddings.embed_documents(documents) == await embeddings.aembed_documents(documents)
    seen = [(request.kind, request.texts, request.pooling) for request in engine.embedding_requests]
    assert seen == 2 * [("query", ("query: fox",), "last")] + 2 * [
        ("document", ("text: fox", "text: sea"), "last")
    ]
    assert [request.normalize for request in engine.embedding_requests] == [True] * 4


async def test_shortened_vectors() -> None:
    client = BitNet.from_engine(FakeEngine(embedding_dim=8))
    embeddings = BitNetEmbeddings(client=client, dimensions=4)
    whole = BitNetEmbeddings(client=client, normalize=False).embed_query("fox")
    short = embeddings.embed_query("fox")
    assert short == await embeddings.aembed_query("fox") == embeddings.embed_documents(["fox"])[0]
    length = math.dist(whole[:4], [0.0] * 4)
    assert short == pytest.approx([value / length for value in whole[:4]])


def test_vectors() -> None:
    embeddings = BitNetEmbeddings()
    texts = ["A fox in the wood.", "A ship on the sea."]
    vectors = embeddings.embed_documents(texts)
    assert all(type(value) is float for vector in vectors for value in vector)
    assert [math.dist(vector, [0.0] * len(vector)) for vector in vectors] == pytest.approx([1, 1], abs=1e-5)
    with BitNet() as model:
        assert np.array_equal(np.array(vectors, np.float32), model.embed(texts))
    assert embeddings.embed_documents([]) == []
    plain = BitNetEmbeddings(normalize=False).embed_query("fox")
    assert math.dist(plain, [0.0] * len(plain)) != pytest.approx(1, abs=1e-3)


async def test_errors() -> None:
    embeddings = BitNetEmbeddings(n_ctx=32)
    with pytest.raises(ContextOverflowError, match=r"texts\[1\]"):
        embeddings.embed_documents(["fox", "fox " * 100])
    with pytest.raises(ContextOverflowError):
        await embeddings.aembed_query("fox " * 100)
    with pytest.raises(bitnet.ValidationError, match="empty"):
        embeddings.embed_documents(["fox", ""])
