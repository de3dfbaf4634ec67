"""BitNet-embedding models: vectors of the last token, whole or shortened, as transformers and NumPy have
them; and the activations of architectures whose name stands for two.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet import BitNet, ModelFileError, ValidationError
from bitnet.models.gguf_writer import GgufWriter, TensorType
from gguf_anatomy import F32, U32, KeyValue, assemble, f32, parse, u32, with_metadata
from reference import model_factory
from reference.cases import CASES
from reference.model_factory import ModelSpec, make_model, random_model, write_gguf
from reference.numpy_model import NumpyModel, relative_error

NAMES = ["qwen3-f16-hd128", "gemma3-bf16-hd256"]
TEXTS = ["The cat sat on the mat.", "x", "Paris is the capital of France. " * 3]
Float = NDArray[np.float64]


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("name", NAMES)
def test_vectors_equal_the_float64_reference(name: str, models_folder: Path) -> None:
    path = make_model(CASES[name], models_folder)
    reference = NumpyModel(path)
    with BitNet(path) as model:
        assert model.info.pooling == "last"
        vectors = model.embed(TEXTS)
        for text, vector in zip(TEXTS, vectors, strict=True):
            ids = model.tokenize(text)
            assert ids[-1] == model._engine._tokenizer.eos_id  # type: ignore[attr-defined]
            assert cosine(vector, reference.hidden(ids)[-1]) >= 0.9999
            assert abs(np.linalg.norm(vector) - 1) < 1e-6
        means = model.embed(TEXTS, pooling="mean")
        assert cosine(means[0], reference.hidden(model.tokenize(TEXTS[0])).mean(axis=0)) >= 0.9999


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_vectors_equal_transformers(name: str, models_folder: Path) -> None:
    pytest.importorskip("torch")
    from reference import hf_model

    module: ModuleType = hf_model
    hf = module.hf_model(random_model(CASES[name]))
    with BitNet(make_model(CASES[name], models_folder)) as model:
        for text, vector in zip(TEXTS, model.embed(TEXTS), strict=True):
            assert cosine(vector, module.hf_hidden(hf, model.tokenize(text))[-1]) >= 0.9999


@pytest.mark.parametrize("name", NAMES)
def test_shortened_vectors_are_the_first_numbers(name: str, models_folder: Path) -> None:
    with BitNet(make_model(CASES[name], models_folder)) as model:
        whole = model.embed(TEXTS, normalize=False)
        size = model.info.hidden_size
        for length in (1, 64, size):
            raw = model.embed(TEXTS, dimensions=length, normalize=False)
            assert raw.shape == (len(TEXTS), length)
            assert np.array_equal(raw, whole[:, :length])
            unit = model.embed(TEXTS, dimensions=length)
            np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
            expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
            np.testing.assert_allclose(unit, expected, atol=1e-6)
        assert model.embed([], dimensions=64).shape == (0, 64)
        for bad in (0, -1, size + 1, True, 2.5):
            with pytest.raises(ValidationError, match="dimensions"):
                model.embed(TEXTS, dimensions=bad)  # type: ignore[arg-type]


def test_other_models_have_whole_vectors_only(random_path: Path) -> None:
    with BitNet(random_path) as model:
        size = model.info.hidden_size
        assert np.array_equal(model.embed("a", dimensions=size), model.embed("a"))
        with pytest.raises(ValidationError, match=f"only be {size}: this model was not trained for shorter"):
            model.embed("a", dimensions=size - 1)


@pytest.mark.parametrize(("declared", "pooling"), [(0, "mean"), (1, "mean"), (3, "last"), (2, None)])
def test_the_declared_pooling_counts(declared: int, pooling: str | None, models_folder: Path) -> None:
    spec = replace(CASES["qwen3-f16-hd128"], n_layers=1, pooling=declared)
    with BitNet(make_model(spec, models_folder)) as model:
        assert model.info.pooling == pooling
        if pooling is None:
            with pytest.raises(ValidationError, match="choose pooling"):
                model.embed("a")


@pytest.mark.parametrize("missing", ["attn_q_norm_in", "ffn_down_norm_in", "attn_v_norm_in"])
def test_norms_of_projections_are_optional(missing: str, models_folder: Path, tmp_path: Path) -> None:
    path = make_model(CASES["qwen3-f16-hd128"], models_folder)
    gguf = parse(path.read_bytes())
    kept = [t for t in gguf.tensors if t.name != f"blk.0.{missing}.weight".encode()]
    assert len(kept) == len(gguf.tensors) - 1
    file = tmp_path / "model.gguf"
    file.write_bytes(assemble(gguf.version, gguf.metadata, kept))
    reference = NumpyModel(file)
    token_ids = reference.decided_sequence(4, seed=0)
    with BitNet(file, n_ctx=64) as model:
        assert relative_error(model.logits(token_ids), reference.forward(token_ids)).max() < 1e-4


@pytest.mark.parametrize("missing", ["attn_k_norm", "post_ffw_norm", "attn_norm"])
def test_other_norms_are_not(missing: str, models_folder: Path, tmp_path: Path) -> None:
    gguf = parse(make_model(CASES["gemma3-bf16-hd256"], models_folder).read_bytes())
    kept = [t for t in gguf.tensors if t.name != f"blk.1.{missing}.weight".encode()]
    file = tmp_path / "model.gguf"
    file.write_bytes(assemble(gguf.version, gguf.metadata, kept))
    with pytest.raises(ModelFileError, match=f"'blk.1.{missing}.weight' is missing"):
        BitNet(file, n_ctx=64)


@pytest.mark.parametrize(
    "key",
    [
        u32(b"gemma3.attention.sliding_window", 512),
        f32(b"gemma3.final_logit_softcapping", 30.0),
        u32(b"gemma3.expert_count", 4),
        f32(b"gemma3.attention.scale", 0.1),
    ],
    ids=lambda key: key.key.decode(),
)
def test_keys_of_another_graph_are_refused(key: KeyValue, models_folder: Path, tmp_path: Path) -> None:
    gguf = parse(make_model(CASES["gemma3-bf16-hd256"], models_folder).read_bytes())
    file = tmp_path / "model.gguf"
    file.write_bytes(with_metadata(gguf, key))
    with pytest.raises(ModelFileError, match=f"'{key.key.decode()}' asks for something"):
        BitNet(file, n_ctx=64)
    assert key.type in (U32, F32)
    file.write_bytes(with_metadata(gguf, replace(key, value=bytes(4))))  # 0: there is none of it
    BitNet(file, n_ctx=64).close()


def one_bit_llm(spec: ModelSpec, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The spec's model with a vocabulary as the 1bitLLM models have it: SentencePiece, 32002 tokens."""

    def sentence_piece(writer: GgufWriter, spec: ModelSpec) -> None:
        size = spec.vocab_size
        byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
        letters = [f"▁{i}" for i in range(size - 261)]
        tokens = ["<unk>", "<s>", "</s>", *byte_tokens, *letters, "<pad>", "</line>"]
        types = [2, 3, 3, *[6] * 256, *[1] * len(letters), 4, 4]
        writer.add_metadata("tokenizer.ggml.model", "llama", "string")
        writer.add_metadata("tokenizer.ggml.tokens", tokens, ("array", "string"))
        scores = [-float(rank) for rank in range(size)]
        writer.add_metadata("tokenizer.ggml.scores", scores, ("array", "f32"))
        writer.add_metadata("tokenizer.ggml.token_type", types, ("array", "i32"))
        writer.add_metadata("tokenizer.ggml.bos_token_id", 1, "u32")
        writer.add_metadata("tokenizer.ggml.eos_token_id", 2, "u32")

    monkeypatch.setattr(model_factory, "_add_tokenizer", sentence_piece)
    return write_gguf(random_model(spec), path)


def test_the_vocabulary_of_1bitllm_means_silu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Current converters give these models the architecture of 2B-4T, whose activation they do not have."""
    spec = ModelSpec(
        hidden_size=64,
        n_heads=2,
        n_kv_heads=2,
        head_dim=32,
        ffn_size=96,
        vocab_size=32002,
        layer_gain=1.0,
        embedding=TensorType.F32,
    )
    path = one_bit_llm(spec, tmp_path / "b158.gguf", monkeypatch)
    named = one_bit_llm(replace(spec, architecture="bitnet"), tmp_path / "bitnet.gguf", monkeypatch)
    token_ids = [3, 100, 7, 250, 1, 42]
    with BitNet(path) as model, BitNet(named) as silu, BitNet(path, activation="relu2") as relu2:
        assert (model.info.activation, silu.info.activation) == ("silu", "silu")
        assert any("1bitLLM" in repair and "silu" in repair for repair in model.info.repairs)
        assert not any("1bitLLM" in repair for repair in (*silu.info.repairs, *relu2.info.repairs))
        assert model.logits(token_ids).tobytes() == silu.logits(token_ids).tobytes()
        assert relu2.info.activation == "relu2"
        assert relative_error(relu2.logits(token_ids), silu.logits(token_ids)).max() > 0.01


def test_the_activation_can_be_said(models_folder: Path) -> None:
    spec = CASES["bitnet-silu-f16-hd100"]
    path = make_model(spec, models_folder)
    with (
        BitNet(path) as silu,
        BitNet(path, activation="silu") as said,
        BitNet(path, activation="relu2") as relu2,
    ):
        assert (silu.info.activation, relu2.info.activation) == ("silu", "relu2")
        assert silu.logits([1, 2, 3]).tobytes() == said.logits([1, 2, 3]).tobytes()
        assert relative_error(relu2.logits([1, 2, 3]), silu.logits([1, 2, 3])).max() > 0.001
