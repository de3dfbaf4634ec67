"""The contract of BaseEmbedding, on a scripted engine and on the bundled model."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

import numpy as np
import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.embeddings.bitnet import BitNetEmbedding

import bitnet
from bitnet import EmbeddingRequest
from bitnet.testing import FakeEngine

TEXTS = [f"text {i}" for i in range(10)]


def scripted(
    engine: dict[str, Any] | None = None, **fields: Any
) -> tuple[BitNetEmbedding, list[EmbeddingRequest]]:
    fake = FakeEngine(embedding_dim=8, **(engine or {}))
    return BitNetEmbedding(client=bitnet.BitNet.from_engine(fake), **fields), fake.embedding_requests


def test_class() -> None:
    assert BaseEmbedding.__name__ in [base.__name__ for base in BitNetEmbedding.__mro__]
    assert not BitNetEmbedding.__abstractmethods__
    assert BitNetEmbedding.class_name() == "BitNetEmbedding"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_batch_is_one_request(is_async: bool) -> None:
    embedding, requests = scripted(embed_batch_size=4)
    if is_async:
        vectors = asyncio.run(embedding.aget_text_embedding_batch(TEXTS))
    else:
        vectors = embedding.get_text_embedding_batch(TEXTS)
    assert [request.texts for request in requests] == [
        tuple(TEXTS[:4]),
        tuple(TEXTS[4:8]),
        tuple(TEXTS[8:]),
    ]
    assert len(vectors) == 10
    assert all(type(value) is float for value in vectors[0])
    assert vectors[3] == embedding.get_text_embedding(TEXTS[3])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_nothing_to_embed() -> None:
    embedding, requests = scripted()
    assert embedding.get_text_embedding_batch([]) == []
    assert asyncio.run(embedding.aget_text_embedding_batch([])) == []
    assert requests == []


def test_queries_and_texts() -> None:
    embedding, requests = scripted(
        query_instruction="Q: ", text_instruction="T: ", pooling="last", normalize=False
    )
    embedding.get_query_embedding("a")
    embedding.get_text_embedding("a")
    asyncio.run(embedding.aget_query_embedding("b"))
    asyncio.run(embedding.aget_text_embedding("b"))
    assert [(request.texts, request.kind) for request in requests] == [
        (("Q: a",), "query"),
        (("T: a",), "document"),
        (("Q: b",), "query"),
        (("T: b",), "document"),
    ]
    assert {(request.pooling, request.normalize) for request in requests} == {("last", False)}
    assert {request.prefix for request in requests} == {""}  # in place of the model's own


@pytest.mark.parametrize("text", ["x" * 50, "ä" * 30, "日" * 30])
def test_texts_that_do_not_fit(text: str) -> None:
    embedding, requests = scripted(engine={"n_ctx": 12})
    with pytest.raises(bitnet.ContextOverflowError):
        embedding.get_text_embedding(text)
    cutting = embedding.with_options(truncate=True)
    assert len(cutting.get_text_embedding(text)) == 8
    cut = requests[-1].texts[0]
    assert text.startswith(cut)
    assert 9 <= len(cut.encode()) <= 11  # and one token begins the text
    assert asyncio.run(cutting.aget_text_embedding(text)) == cutting.get_text_embedding(text)
    assert cutting.get_text_embedding("short") == embedding.get_text_embedding("short")


def test_names() -> None:
    assert BitNetEmbedding().model_name == "bitnet-tiny"
    assert BitNetEmbedding(model="a.gguf").model_name == "a.gguf"
    named = BitNetEmbedding(model_name="a.gguf")
    assert (named.model, named.model_name) == ("a.gguf", "a.gguf")
    assert scripted()[0].model_name == "fake"
    with pytest.raises(ValueError, match="normalise"):
        BitNetEmbedding(normalise=True)


def test_a_cache_is_refused_where_it_would_mix_things_up() -> None:
    embedding, requests = scripted(embeddings_cache=SimpleKVStore())
    assert embedding.get_text_embedding("a") == embedding.get_text_embedding("a")
    assert len(requests) == 1
    with pytest.raises(ValueError, match="embeddings_cache does not tell queries from texts"):
        scripted(embeddings_cache=SimpleKVStore(), query_instruction="Q: ")


def test_shortened_vectors_and_the_models_own_instruction() -> None:
    embedding, requests = scripted(dimensions=4)
    assert len(embedding.get_query_embedding("a")) == 4
    assert len(asyncio.run(embedding.aget_text_embedding("a"))) == 4
    assert {(request.dimensions, request.prefix) for request in requests} == {(4, None)}


def test_everything_that_changes_vectors_is_in_the_hash_of_a_pipeline() -> None:
    fields = BitNetEmbedding().to_dict()
    changes = {
        "model": "x.gguf",
        "pooling": "last",
        "normalize": False,
        "dimensions": 8,
        "query_instruction": "Q",
        "text_instruction": "T",
        "truncate": True,
    }
    for name, value in changes.items():
        assert BitNetEmbedding(**{name: value}).to_dict() != fields, name
    secret = BitNetEmbedding(base_url="http://127.0.0.1:9/v1", api_key="s3cret")
    assert "s3cret" not in f"{secret!r} {secret.to_json()}"


def test_one_object_in_several_event_loops() -> None:
    embedding, _ = scripted()
    vectors = [asyncio.run(embedding.aget_query_embedding("a")) for _ in range(3)]
    assert vectors[0] == vectors[1] == vectors[2]


def test_copies_and_pickles(caplog: pytest.LogCaptureFixture) -> None:
    original = BitNetEmbedding(pooling="last", api_key="s3cret")
    for other in (pickle.loads(pickle.dumps(original)), copy.deepcopy(original), original.with_options()):
        assert (other.pooling, other.model, other.model_name) == ("last", None, "bitnet-tiny")
    assert BitNetEmbedding.from_dict(original.to_dict()).pooling == "last"
    assert caplog.text == ""


def test_the_bundled_model() -> None:
    embedding = BitNetEmbedding()
    single = embedding.get_text_embedding("The cat sleeps.")
    batch = embedding.get_text_embedding_batch(["A dog.", "The cat sleeps."])
    assert batch[1] == single  # the same bits, whatever is computed beside it
    assert len(single) == 256
    assert asyncio.run(embedding.aget_text_embedding("The cat sleeps.")) == single
    nodes = IngestionPipeline(transformations=[embedding]).run(nodes=[TextNode(text="The cat sleeps.")])
    assert nodes[0].embedding == single
    embedding.close()
    assert embedding.get_text_embedding("The cat sleeps.") == single
    asyncio.run(embedding.aclose())
