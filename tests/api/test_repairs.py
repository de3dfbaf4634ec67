"""Files with known defects: the same answers after the repair, one warning, and the user's word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet import BitNet, ModelFileError, ValidationError, _native
from bitnet.models import catalog, overrides
from rewritten_model import rewrite

TEXT = "In 1984, she'll say:  \"it's 12345 o'clock\"\n\n  and   naïve 日本 tokens..."
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PLACEHOLDER = "{% for m in messages %}Human: {{ m.content }}\n\nBITNETAssistant: {{ eos_token }}{% endfor %}"


def test_a_missing_pre_tokenizer(model: BitNet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = rewrite(tmp_path / "model.gguf", metadata={"tokenizer.ggml.pre": None})
    for _ in range(2):
        with BitNet(path) as repaired:
            (repair,) = repaired.info.repairs
            assert repaired.tokenize(TEXT) == model.tokenize(TEXT)
            assert repaired.chat(QUESTION, temperature=0).text == model.chat(QUESTION, temperature=0).text
    assert repair == (
        "The model file names no pre-tokenizer; llama-bpe is used, because the vocabulary has the special "
        "tokens of Llama 3 (metadata override: tokenizer.ggml.pre)."
    )
    assert caplog.messages == [f"model.gguf: {repair}"]  # once in this process
    with BitNet(path, metadata_overrides={"tokenizer.ggml.pre": "gpt-2"}) as told:
        assert told.info.repairs == ()


def test_a_placeholder_template(model: BitNet, tmp_path: Path) -> None:
    path = rewrite(tmp_path / "model.gguf", metadata={"tokenizer.chat_template": PLACEHOLDER})
    with BitNet(path) as repaired:
        (repair,) = repaired.info.repairs
        assert "placeholder" in repair
        assert "metadata override: tokenizer.chat_template" in repair
        assert repaired.render(QUESTION) == model.render(QUESTION)
    own = "{% for m in messages %}Q {{ m.content }}<|eot_id|>{% endfor %}"
    with BitNet(path, metadata_overrides={"tokenizer.chat_template": own}) as told:
        assert told.render(QUESTION) == "<|begin_of_text|>Q What is the capital of France?<|eot_id|>"
        assert told.info.repairs == ()


def test_a_missing_end_of_turn(model: BitNet, tmp_path: Path) -> None:
    expected = model.chat(QUESTION, temperature=0, max_tokens=40)
    assert expected.finish_reason == "stop"
    path = rewrite(tmp_path / "model.gguf", metadata={"tokenizer.ggml.eot_token_id": None})
    with BitNet(path) as repaired:
        found = repaired.chat(QUESTION, temperature=0, max_tokens=40)
        (repair,) = repaired.info.repairs
    assert (found.text, found.finish_reason) == (expected.text, "stop")
    assert "<|eot_id|> (2)" in repair


def renamed(token: str) -> dict[str, Any]:
    """No end of turn, and one that goes by a name that nobody knows."""
    metadata = dict(_native.ModelFile(str(BitNet(lazy=True)._path)).metadata)
    tokens = list(metadata["tokenizer.ggml.tokens"])
    tokens[2] = token
    template = metadata["tokenizer.chat_template"].replace("<|eot_id|>", token)
    return {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.eot_token_id": None,
        "tokenizer.chat_template": template,
    }


def test_the_template_tells_the_end_of_turn(model: BitNet, tmp_path: Path) -> None:
    path = rewrite(tmp_path / "model.gguf", metadata=renamed("<|over|>"))
    with BitNet(path) as repaired:
        found = repaired.chat(QUESTION, temperature=0, max_tokens=40)
        (repair,) = repaired.info.repairs
    assert found.finish_reason == "stop"
    assert found.text == model.chat(QUESTION, temperature=0).text
    assert repair.startswith(
        "The chat template ends each answer with <|over|> (2), which the model file does"
    )


def test_the_user_tells_the_end_of_turn(model: BitNet, tmp_path: Path) -> None:
    metadata = {**renamed("<|over|>"), "tokenizer.chat_template": None, "tokenizer.ggml.eos_token_id": None}
    metadata["tokenizer.ggml.tokens"][1] = "<|fin|>"
    path = rewrite(tmp_path / "model.gguf", metadata=metadata)
    prompt = [0, *model.tokenize("User: What is the capital of France?", add_special=False), 2]
    prompt += model.tokenize("Assistant: ", add_special=False)
    with BitNet(path) as silent:
        assert silent.generate(prompt, temperature=0, max_tokens=40).finish_reason == "length"
        (warning,) = silent.info.warnings
        assert warning.startswith("The model file names no token that ends an answer")
    for word in ("<|over|>", 2):
        with BitNet(path, metadata_overrides={"tokenizer.ggml.eot_token_id": word}) as told:
            assert told.generate(prompt, temperature=0, max_tokens=40).finish_reason == "stop"
            assert told.info.warnings == ()


def test_pooling_of_the_user(tmp_path: Path, model: BitNet) -> None:
    path = rewrite(tmp_path / "model.gguf")
    with BitNet(path, metadata_overrides={"pooling_type": "last"}) as last:
        assert last.info.pooling == "last"
        assert np.array_equal(last.embed("a cat"), model.embed("a cat", pooling="last"))


@pytest.fixture
def card(model: BitNet, monkeypatch: pytest.MonkeyPatch) -> catalog.CatalogModel:
    """A model card of a model with the sizes of the bundled one."""
    info = model.info
    known = catalog.CatalogModel(
        name="tiny-embedding",
        title="Tiny Embedding",
        repository="nobody/tiny-embedding",
        storage="latent",
        architecture="bitnet-b1.58",
        pooling="last",
        embedding_prefixes={"query": "query: "},
        dimensions=catalog.Dimensions(
            n_layers=info.n_layers,
            hidden_size=info.hidden_size,
            n_heads=info.n_heads,
            n_kv_heads=info.n_kv_heads,
            head_dim=info.head_dim,
            ffn_size=info.ffn_size,
            vocab_size=info.vocab_size,
            tied_head=True,
            activation="relu2",
            rope_base=1e5,
            norm_eps=1e-5,
        ),
    )
    monkeypatch.setattr(catalog, "known_models", lambda: (known,))
    return known


def test_pooling_against_the_model_card(tmp_path: Path, model: BitNet, card: catalog.CatalogModel) -> None:
    path = rewrite(tmp_path / "mean.gguf", metadata={"bitnet-b1.58.pooling_type": 1})
    with BitNet(path) as mean:
        (warning,) = mean.info.warnings
        assert warning == (
            "The model file declares the pooling mean, and the model card of Tiny Embedding says last. The "
            "file is followed; if its vectors find the wrong texts, override it (metadata override: "
            "pooling_type=last)."
        )
        assert np.array_equal(mean.embed("a cat"), model.embed("a cat", pooling="mean"))
    with BitNet(path, metadata_overrides={"pooling_type": "last"}) as last:
        assert last.info.warnings == ()
        assert np.array_equal(last.embed("a cat"), model.embed("a cat", pooling="last"))


def test_words_before_queries(tmp_path: Path, model: BitNet, card: catalog.CatalogModel) -> None:
    path = rewrite(tmp_path / "model.gguf", metadata={"bitnet-b1.58.pooling_type": 3})
    with BitNet(path) as embedder:
        assert embedder.info.warnings == ()

        def expected(text: str) -> Any:
            return model.embed(text, pooling="last")

        assert np.array_equal(embedder.embed("a cat", kind="query"), expected("query: a cat"))
        assert np.array_equal(embedder.embed("a cat"), expected("a cat"))
        assert np.array_equal(embedder.embed("a cat", kind="query", prefix=""), expected("a cat"))
        assert np.array_equal(embedder.embed("a cat", prefix="find: "), expected("find: a cat"))
        assert (embedder.embedding_prefix("query"), embedder.embedding_prefix()) == ("query: ", "")
        with pytest.raises(ValidationError, match="prefix must be a string"):
            embedder.embed("a cat", prefix=3)  # type: ignore[arg-type]
        with pytest.raises(ValidationError, match="kind must be one of query, document"):
            embedder.embedding_prefix("title")  # type: ignore[arg-type]


def test_words_before_texts_that_the_file_has(
    tmp_path: Path, model: BitNet, card: catalog.CatalogModel
) -> None:
    path = rewrite(tmp_path / "model.gguf", metadata={"bitnet.embedding_prefix.document": "text: "})
    with BitNet(path, lazy=True) as embedder:
        assert (embedder.embedding_prefix(), embedder.embedding_prefix("query")) == ("text: ", "")
        assert np.array_equal(embedder.embed("a cat"), model.embed("text: a cat"))
        assert np.array_equal(embedder.embed("a cat", kind="query"), model.embed("a cat"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokenizer.ggml.prae": "x"}, "did you mean 'tokenizer.ggml.pre'"),
        ({"llama.block_count": 3}, "cannot be set"),
        ({"tokenizer.ggml.pre": 3}, "must be a text"),
        ({"tokenizer.chat_template": " "}, "must be a text"),
        ({"tokenizer.ggml.eos_token_id": True}, "must be the id of a token"),
        ({"tokenizer.ggml.add_bos_token": "yes"}, "must be true or false"),
        ({"pooling_type": "cls"}, "must be mean or last"),
        ({"tokenizer.ggml.eos_token_id": "<|nowhere|>"}, "has no such token"),
    ],
)
def test_wrong_overrides(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BitNet(metadata_overrides=given)


def test_an_override_that_the_file_contradicts() -> None:
    with pytest.raises(ModelFileError, match="eos_token_id is 99999"):
        BitNet(metadata_overrides={"tokenizer.ggml.eos_token_id": 99999})


def test_overrides_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "template").write_text("{{ messages }}")
    found = overrides.parse(
        [
            "tokenizer.ggml.pre=qwen2",
            f"tokenizer.chat_template=@{tmp_path / 'template'}",
            "tokenizer.ggml.eos_token_id=7",
            "tokenizer.ggml.eot_token_id=<|a=b|>",
            "tokenizer.ggml.add_bos_token=false",
        ]
    )
    assert found == {
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.ggml.eos_token_id": 7,
        "tokenizer.ggml.eot_token_id": "<|a=b|>",
        "tokenizer.ggml.add_bos_token": False,
    }
    for wrong, message in (
        ("pooling_type", "KEY=VALUE"),
        ("tokenizer.chat_template=@/nowhere", "cannot read"),
    ):
        with pytest.raises(ValidationError, match=message):
            overrides.parse([wrong])


def test_overrides_travel_with_the_object(tmp_path: Path) -> None:
    import pickle

    path = rewrite(tmp_path / "model.gguf", metadata={"tokenizer.ggml.pre": None})
    with BitNet(path, metadata_overrides={"tokenizer.ggml.pre": "qwen2"}, lazy=True) as model:
        with pickle.loads(pickle.dumps(model)) as copy:
            assert copy.info.repairs == ()
        assert model.has_chat_template
