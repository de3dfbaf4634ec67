"""Hugging Face folders of every family in the catalog: read, converted, computed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hf_folders import FAMILIES, Made, make_folder

from bitnet import BitNet, _native
from bitnet.models import catalog
from bitnet.models.gguf_writer import TensorType
from bitnet.models.tensor_codec import decode_dense, decode_ternary

TEXTS = ("Hello world", "the winner, 123 of 1234\n\n  end", "It's 你好 \U0001f680")


@pytest.fixture(params=list(FAMILIES))
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setenv("BITNET_CACHE_DIR", str(tmp_path / "cache"))
    return make_folder(FAMILIES[request.param], tmp_path / f"{request.param}-Instruct")


def converted_file(folder: Path) -> Path:
    [path] = (folder.parent / "cache").glob("*.gguf")
    return path


def read_tensors(path: Path) -> dict[str, tuple[str, Any]]:
    """name -> type and, for ternary ones, codes and scale, for others values."""
    file = _native.ModelFile(str(path))
    data = path.read_bytes()
    found: dict[str, tuple[str, Any]] = {}
    for tensor in file.tensors:
        raw = data[file.data_offset + tensor.offset :][: tensor.n_bytes]
        shape = tuple(reversed(tensor.shape))
        kind = TensorType[tensor.type_name]
        if kind == TensorType.I2_S or (len(shape) == 2 and kind not in (TensorType.F16, TensorType.F32)):
            matrix = decode_ternary(raw, kind, *shape)
            found[tensor.name] = (kind.name, (matrix.codes, matrix.scale))
        else:
            rows = decode_dense(raw, kind, 1 if len(shape) == 1 else shape[0], shape[-1])
            found[tensor.name] = (kind.name, rows.reshape(shape))
    return found


def test_every_model_of_the_catalog_has_a_family_here() -> None:
    assert {model.name for model in catalog.known_models()} - {"2b-4t"} == set(FAMILIES)


def test_the_proportions_are_those_of_the_catalog() -> None:
    for name, family in FAMILIES.items():
        published = catalog.named(name)
        assert published is not None
        if published.dimensions is None:
            continue
        real, config = published.dimensions, family.config
        assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
        ratio = config["intermediate_size"] / config["hidden_size"]
        assert ratio == pytest.approx(real.ffn_size / real.hidden_size, rel=0.12), name
        head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
        assert (head_dim, config["rope_theta"], config["rms_norm_eps"]) == (
            real.head_dim,
            real.rope_base,
            real.norm_eps,
        ), name
        assert (published.architecture == "llama") == (config["architectures"] == ["LlamaForCausalLM"])


def test_a_folder_loads_and_answers(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    entry = catalog.named(made.family.name)
    assert entry is not None
    with caplog.at_level(logging.WARNING, "bitnet"), BitNet(made.folder, n_ctx=256) as model:
        assert "which is done once" in caplog.text
        assert model.info.architecture == entry.architecture
        if entry.dimensions is not None:
            assert model.info.activation == entry.dimensions.activation
        if entry.pooling is not None:
            vectors = model.embed(TEXTS)
            assert vectors.shape == (3, made.family.size("hidden_size"))
            assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
            assert model.info.pooling == entry.pooling
        else:
            first = model.generate("Hello world", max_tokens=6, temperature=0, ignore_eos=True).token_ids
            assert len(first) == 6
            assert np.isfinite(model.logits(model.tokenize("Hello world"))).all()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "bitnet"), BitNet(str(made.folder)):
        assert "done once" not in caplog.text


def test_tensors_arrive_as_they_were(made: Made) -> None:
    BitNet(made.folder, lazy=True).close()
    found = read_tensors(converted_file(made.folder))
    assert found.keys() == {f"{name}.weight" for name in (*made.codes, *made.dense)}
    head_dim = made.family.config.get(
        "head_dim", made.family.size("hidden_size") // made.family.size("num_attention_heads")
    )
    for stem, codes in made.codes.items():
        kind, (stored, scale) = found[f"{stem}.weight"]
        if made.family.config["architectures"] == ["LlamaForCausalLM"] and stem.endswith(
            ("attn_q", "attn_k")
        ):
            # formats of llama: new row 2i + j of a head is the old row j * head_dim / 2 + i.
            old = [
                h + j * (head_dim // 2) + i
                for h in range(0, len(codes), head_dim)
                for i in range(head_dim // 2)
                for j in (0, 1)
            ]
            codes = codes[old]
        assert kind == "I2_S"
        assert np.array_equal(stored, codes), stem
        assert scale == pytest.approx(made.scales[stem], rel=1e-7), stem
    for stem, values in made.dense.items():
        kind, stored = found[f"{stem}.weight"]
        assert kind == ("F16" if stem in ("token_embd", "output") else "F32")
        assert np.array_equal(stored, values.astype(np.float16 if kind == "F16" else np.float32)), stem


def test_the_tokenizer_is_the_same(made: Made) -> None:
    with BitNet(made.folder, n_ctx=64) as model:
        if (made.folder / "tokenizer.json").exists():
            source = tokenizers.Tokenizer.from_file(str(made.folder / "tokenizer.json"))
            for text in TEXTS:
                assert (
                    model.tokenize(text, add_special=False)
                    == source.encode(text, add_special_tokens=False).ids
                )
                expected = source.encode(text).ids
                if made.family.tokenizer == "gemma":
                    expected = [*expected, 1]  # tokenizer_config.json: add_eos_token
                assert model.tokenize(text) == expected
        else:
            import sentencepiece

            piece = sentencepiece.SentencePieceProcessor(model_file=str(made.folder / "tokenizer.model"))
            for text in TEXTS:
                assert model.tokenize(text) == [1, *piece.encode(text)]
            assert model.tokenize("a</line>b", add_special=False) == [
                *piece.encode("a"),
                321,
                *piece.encode("b"),
            ]


def test_metadata(made: Made) -> None:
    with BitNet(made.folder, n_ctx=64) as model:
        assert model.info.repairs == ()
        has_template = model.info.has_chat_template
    metadata = _native.ModelFile(str(converted_file(made.folder))).metadata
    config = made.family.config
    arch = metadata["general.architecture"]
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    expected = {
        "block_count": config["num_hidden_layers"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head_dim,
        "rope.dimension_count": head_dim,
        "context_length": config["max_position_embeddings"],
        "vocab_size": config["vocab_size"],
    }
    assert {key: metadata[f"{arch}.{key}"] for key in expected} == expected
    assert metadata[f"{arch}.rope.freq_base"] == pytest.approx(config["rope_theta"])
    assert metadata[f"{arch}.attention.layer_norm_rms_epsilon"] == pytest.approx(config["rms_norm_eps"])
    assert metadata["general.name"] == made.folder.name
    special = {
        key.split(".")[-1]: value for key, value in metadata.items() if key.endswith(("_token_id", "_token"))
    }
    expected_special = {
        "llama3": {
            "bos_token_id": 512,
            "eos_token_id": config["eos_token_id"],
            "eot_token_id": 521 if config["eos_token_id"] == 513 else 513,
            "add_bos_token": True,
            "add_eos_token": False,
        },
        "falcon3": {"eos_token_id": 11, "add_bos_token": False, "add_eos_token": False},
        "qwen": {"eos_token_id": 512, "eot_token_id": 514, "add_bos_token": False, "add_eos_token": True},
        "sentence_piece": {
            "bos_token_id": 1,
            "eos_token_id": 2,
            "padding_token_id": 320,
            "unknown_token_id": 0,
            "add_bos_token": True,
            "add_eos_token": False,
        },
        "gemma": {
            "bos_token_id": 2,
            "eos_token_id": 1,
            "padding_token_id": 0,
            "unknown_token_id": 3,
            "add_bos_token": True,
            "add_eos_token": True,
        },
    }
    assert special == expected_special[made.family.tokenizer]
    pre = {"llama3": "llama-bpe", "falcon3": "llama-bpe", "qwen": "qwen2"}
    assert metadata["tokenizer.ggml.pre"] == pre.get(made.family.tokenizer, "default")
    assert has_template == (made.family.tokenizer in ("llama3", "falcon3"))
    if made.family.input_norms:
        assert metadata[f"{arch}.pooling_type"] == 3
        assert metadata["bitnet.embedding_prefix.query"] == "query: "
