"""The catalog: sound, true to the files' formats, and understood wherever a model is named."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hf_folders import FAMILIES, make_folder
from pydantic import ValidationError as PydanticError

from bitnet import BitNet, ModelNotFoundError
from bitnet.config import load
from bitnet.models import bundled, catalog, find, reference
from bitnet.models.catalog import CatalogModel
from bitnet.models.reference import HubReference


def test_the_catalog_is_sound() -> None:
    models = catalog.known_models()
    assert {model.name for model in models} >= {
        "2b-4t", "2b-4t-packed", "2b-4t-bf16", "bitnet-large", "bitnet-3b", "llama3-8b",
        "falcon3-1b", "falcon3-3b", "falcon3-7b", "falcon3-10b", "falcon-e-1b", "falcon-e-3b",
        "embedding-0.6b", "embedding-270m",
    }  # fmt: skip
    for model in models:
        assert reference.is_short_name(model.name)
        assert reference.parse(model.name) == HubReference(model.repository, model.file)
        assert reference.parse(model.reference) == HubReference(model.repository, model.file)
        assert reference.parse(model.repository.upper()) == HubReference(model.repository.upper(), model.file)
        if model.dimensions is not None:
            size = model.dimensions
            assert size.n_heads % size.n_kv_heads == 0
            # Attention is as wide as the model, except in the two that make vectors.
            assert (size.n_heads * size.head_dim == size.hidden_size) == (model.pooling is None)
        assert (model.pooling is not None) == bool(model.embedding_prefixes)


def test_sizes_add_up() -> None:
    """The exact size of the official file: 2-bit codes, f16 embedding, f32 norms, and its header."""
    model = catalog.named("2b-4t")
    assert model is not None
    assert model.dimensions is not None
    size = model.dimensions
    q, kv = size.n_heads * size.head_dim, size.n_kv_heads * size.head_dim
    linear = size.hidden_size * (2 * q + 2 * kv + 3 * size.ffn_size)
    norms = size.n_layers * (2 * size.hidden_size + q + size.ffn_size) + size.hidden_size
    tensors = size.n_layers * (linear // 4 + 7 * 32) + 2 * size.vocab_size * size.hidden_size + 4 * norms
    assert tensors == 1_179_449_920
    assert model.n_bytes is not None
    assert 5e6 < model.n_bytes - tensors < 15e6  # the vocabulary


@pytest.mark.parametrize(
    "change",
    [{"name": "Has Spaces"}, {"repository": "no-slash"}, {"storage": "zip"}, {"file": "x.gguf"},
     {"n_bytes": 0}, {"n_bytes": 5, "about_bytes": 6}, {"surprise": 1}, {"architecture": "mamba"}],
)  # fmt: skip
def test_nonsense_is_refused(change: dict[str, object]) -> None:
    known = catalog.named("bitnet-3b")
    assert known is not None
    fields = known.model_dump(exclude_none=True) | change
    if change == {"n_bytes": 0}:
        fields.pop("about_bytes")
    with pytest.raises(PydanticError):
        CatalogModel.model_validate(fields)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("2B-4T", HubReference("microsoft/bitnet-b1.58-2B-4T-gguf", "ggml-model-i2_s.gguf")),
        ("org/name", HubReference("org/name")),
        ("org/name:a.gguf", HubReference("org/name", "a.gguf")),
        ("org/name:dir/a.gguf", HubReference("org/name", "dir/a.gguf")),
        ("org/name@v1.0", HubReference("org/name", None, "v1.0")),
        ("org/name@bfloat16:a.gguf", HubReference("org/name", "a.gguf", "bfloat16")),
        ("models/model.gguf", None),
        ("models/deep/er", None),
        ("./org/name", None),
        ("/org/name", None),
        ("~/name", None),
        ("C:\\name", None),
        ("org\\name", None),
        ("https://huggingface.co/org/name", None),
        ("..", None),
        ("../name", None),
        ("org/..", None),
        ("", None),
        ("name", None),
    ],
)
def test_references(name: str, expected: HubReference | None) -> None:
    assert reference.parse(name) == expected
    if expected is not None and "/" in name:
        assert str(expected) == name


def test_a_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2b-4t").write_bytes(bundled.path().read_bytes())
    assert find("2b-4t") == Path("2b-4t")
    with BitNet("2b-4t", lazy=True) as model:
        assert model.n_ctx > 0
    assert find("bitnet-tiny") == bundled.path()
    config = tmp_path / "bitnet.yaml"
    config.write_text("bitnet: {model_path: falcon3-7b}\n")
    assert load(config).direct_options()["model"] == "falcon3-7b"
    config.write_text("bitnet: {model_path: 2b-4t}\n")
    assert load(config).direct_options()["model"] == str(tmp_path / "2b-4t")
    with pytest.raises(ModelNotFoundError, match=r"there is no model '2b-4'; did you mean '2b-4t'\?"):
        find("2b-4")


def test_prefixes_of_embedding_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("embedding-0.6b", "embedding-270m"):
        entry = catalog.named(name)
        assert entry is not None
        named = {"general.architecture": entry.architecture, "general.name": entry.repository.split("/")[1]}
        assert catalog.embedding_prefixes(named) == {"query": "query: "}
        assert catalog.embedding_prefixes({**named, "general.architecture": "llama"}) == {}
        own = {**named, "bitnet.embedding_prefix.query": "q: ", "bitnet.embedding_prefix.document": "d: "}
        assert catalog.embedding_prefixes(own) == {"query": "q: ", "document": "d: "}
    assert catalog.embedding_prefixes({}) == {}
    monkeypatch.setenv("BITNET_CACHE_DIR", str(tmp_path / "cache"))
    with BitNet(make_folder(FAMILIES["embedding-0.6b"], tmp_path / "m").folder) as model:
        query, plain = model.embed(["the winner"], kind="query"), model.embed(["query: the winner"])
        assert np.array_equal(query, plain)
        assert not np.array_equal(query, model.embed(["the winner"]))
        copy = pickle.loads(pickle.dumps(model))
        assert np.array_equal(copy.embed(["the winner"]), model.embed(["the winner"]))
        copy.close()
