"""Embedding and head in another type than the file's: encoded as the gguf package does it, and used."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet import BitNet, ValidationError, _native
from bitnet.models.gguf_writer import TensorType
from reference.model_factory import Dense, ModelSpec, encode_dense, random_model, write_gguf

QUANTIZERS = {"q8_0": gguf.quants.Q8_0, "q4_0": gguf.quants.Q4_0, "q6_k": gguf.quants.Q6_K}
IDS = [3, 100, 7, 7, 250, 1, 42] * 5


def rows() -> NDArray[np.float32]:
    """Ordinary values, tiny and large ones, zeros, single spikes, a largest value and its negative."""
    random = np.random.default_rng(7)
    values = random.standard_normal((40, 512)) * 10.0 ** random.uniform(-6, 3, (40, 1))
    values[1] = 0
    values[2, 32:64] = 0
    values[3, 5] = 100
    values[4] *= 1e-36
    values[5] = np.where(np.arange(512) % 2, 1.5, -1.5)
    values[6] = np.round(values[6] / np.abs(values[6]).max() * 127)
    return values.astype(np.float32)


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_blocks_are_encoded_as_gguf_does(name: str) -> None:
    expected = gguf.quants.quantize(rows(), gguf.GGMLQuantizationType[name.upper()])
    assert _native.encode_rows(rows(), name).tobytes() == expected.tobytes()


def test_plain_types_are_encoded_exactly() -> None:
    values = rows()
    assert _native.encode_rows(values, "f32").tobytes() == values.tobytes()
    assert _native.encode_rows(values, "F16").tobytes() == values.astype(np.float16).tobytes()


def test_q6_k_is_as_good_as_its_reference() -> None:
    """gguf decodes Q6_K but does not encode it, so that the error is judged."""

    def decoded(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return gguf.quants.dequantize(_native.encode_rows(values, "q6_k"), gguf.GGMLQuantizationType.Q6_K)

    values = rows()
    largest = np.abs(values).max(axis=1, keepdims=True)
    ordinary = largest[:, 0] > 1e-2  # below, the f16 scale of scales has too few bits left
    assert (np.abs(decoded(values) - values)[ordinary] / largest[ordinary]).max() < 1 / 32
    assert not decoded(values)[1].any()
    values = np.random.default_rng(1).standard_normal((50, 512)).astype(np.float32)
    plain = encode_dense(TensorType.Q6_K, values).values
    assert np.linalg.norm(decoded(values) - values) < 0.95 * np.linalg.norm(plain - values)


def test_encode_rows_refuses_what_it_cannot_do() -> None:
    for name in ("q4_k", "i2_s", ""):
        with pytest.raises(ValidationError, match="f32, f16, bf16, q8_0, q6_k or q4_0"):
            _native.encode_rows(np.zeros((1, 256), np.float32), name)
    with pytest.raises(ValidationError, match="multiple of 256"):
        _native.encode_rows(np.zeros((1, 128), np.float32), "q6_k")


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("name", ["f16", "q8_0", "q4_0", "q6_k"])
def test_a_converted_model_equals_a_file_of_that_type(name: str, untied: bool, tmp_path: Path) -> None:
    spec = ModelSpec(
        hidden_size=256, n_heads=4, n_kv_heads=2, embedding=TensorType.F32, untied=untied, layer_gain=1.0
    )
    model = random_model(spec)
    source = write_gguf(model, tmp_path / "f32.gguf")

    def converted(dense: Dense) -> Dense:
        data = _native.encode_rows(dense.values, name)
        if name == "f16":
            return Dense(data.view(np.float16).astype(np.float32), data.tobytes())
        decoded = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name.upper()])
        return Dense(decoded, decoded.astype(np.float32).tobytes())

    model.embedding = converted(model.embedding)
    model.output = None if model.output is None else converted(model.output)
    if name == "f16":
        model.spec = ModelSpec(**{**vars(spec), "embedding": TensorType.F16})
    decoded_path = write_gguf(model, tmp_path / "decoded.gguf")  # the same numbers, in a type that holds them
    with (
        BitNet(source, embd_type=name) as loaded,  # type: ignore[arg-type]
        BitNet(source, embd_type=name, use_mmap=False) as private,  # type: ignore[arg-type]
        BitNet(decoded_path) as expected,
        BitNet(source) as original,
    ):
        assert loaded.info.embd_type == name.upper()
        assert loaded.logits(IDS).tobytes() == expected.logits(IDS).tobytes()
        assert private.logits(IDS).tobytes() == expected.logits(IDS).tobytes()
        assert loaded.logits(IDS).tobytes() != original.logits(IDS).tobytes()
        options = {"temperature": 0, "max_tokens": 20, "ignore_eos": True}
        assert loaded.generate(IDS, **options).token_ids == expected.generate(IDS, **options).token_ids  # type: ignore[arg-type]


def test_a_file_with_q4_0_embeddings_is_read(tmp_path: Path) -> None:
    model = random_model(ModelSpec(embedding=TensorType.F32))
    data = _native.encode_rows(model.embedding.values, "q4_0")
    decoded = gguf.quants.dequantize(data, gguf.GGMLQuantizationType.Q4_0)
    model.embedding = Dense(decoded, decoded.tobytes())
    expected = write_gguf(model, tmp_path / "decoded.gguf")
    with BitNet(expected) as as_f32, BitNet(expected, embd_type="q4_0") as again:
        # Encoding what was decoded gives the same numbers back.
        assert again.logits(IDS).tobytes() == as_f32.logits(IDS).tobytes()
