"""Writing model files: the bytes of I2_S, absmean, and GGUF files as other readers see them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from bitnet import _native
from bitnet.models.gguf_writer import GgufWriter, TensorType, tensor_bytes
from bitnet.models.tensor_codec import decode_ternary as decode_tensor
from bitnet.models.tensor_codec import encode_ternary
from bitnet.models.ternary import absmean
from reference.cases import CASES
from reference.model_factory import random_model, write_gguf
from reference.numpy_model import GgufReader, decode_ternary


def test_i2s_bytes_are_those_of_the_format() -> None:
    codes = np.zeros((1, 128), dtype=np.int8)
    codes[0, [0, 32, 127]] = 1
    codes[0, [1, 64]] = -1
    packed = encode_ternary(codes, 0.5, TensorType.I2_S)
    assert packed == bytes([0xA1, 0x15, *[0x55] * 29, 0x56]) + struct.pack("<f28x", 0.5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 200), (4, 96), (33, 8640), (3000, 3001)])
def test_i2s_of_any_size_reads_back(shape: tuple[int, int]) -> None:
    codes = np.random.default_rng(0).integers(-1, 2, shape).astype(np.int8)
    packed = encode_ternary(codes, 0.123, TensorType.I2_S)
    assert len(packed) == tensor_bytes(TensorType.I2_S, shape[::-1])
    unpacked = decode_tensor(packed, TensorType.I2_S, *shape)
    assert np.array_equal(unpacked.codes, codes)
    assert unpacked.scale == np.float32(0.123)


def test_what_is_not_ternary_is_refused() -> None:
    with pytest.raises(ValueError, match="-1, 0 or 1"):
        encode_ternary(np.array([[0, 2]], dtype=np.int8), 1.0, TensorType.I2_S)
    packed = bytearray(encode_ternary(np.zeros((2, 64), dtype=np.int8), 1.0, TensorType.I2_S))
    with pytest.raises(ValueError, match="too few"):
        decode_tensor(packed[:20], TensorType.I2_S, 2, 64)
    packed[5] |= 0b11
    with pytest.raises(ValueError, match="stands for no ternary weight"):
        decode_tensor(packed, TensorType.I2_S, 2, 64)


def test_absmean_rounds_halves_to_even() -> None:
    codes, scale = absmean(np.array([[2.0, -2.0, 0.5, -0.5], [1.5, -1.5, 0.0, 0.0]]))
    assert scale == 1.0
    assert codes.tolist() == [[1, -1, 0, 0], [1, -1, 0, 0]]
    assert absmean(np.zeros((2, 2)))[1] == np.float32(1e-5)


@pytest.mark.parametrize("case", ["bitnet-f32-hd24", "llama-bf16-hd40-tied"])
def test_written_models_hold_the_weights(case: str, tmp_path: Path) -> None:
    model = random_model(CASES[case])
    file = GgufReader(write_gguf(model, tmp_path / "model.gguf"))
    head_dim = CASES[case].head_dim
    for name, linear in model.linears.items():
        codes, scale = decode_ternary(file.tensors[f"{name}.weight"])
        if case.startswith("llama") and name.endswith(("attn_q", "attn_k")):
            # File row 2*i + j of a head is its row j * head_dim/2 + i.
            rows = np.arange(len(codes))
            head, i, j = rows // head_dim, rows % head_dim // 2, rows % 2
            assert np.array_equal(codes, linear.codes[head * head_dim + j * head_dim // 2 + i])
        else:
            assert np.array_equal(codes, linear.codes)
        assert scale == np.float32(linear.scale)


def test_metadata_and_tensors_as_the_engine_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file.gguf"
    writer = GgufWriter(path)
    values = {
        "a.u8": (255, "u8"),
        "a.i8": (-128, "i8"),
        "a.u16": (65535, "u16"),
        "a.i16": (-32768, "i16"),
        "a.u32": (2**32 - 1, "u32"),
        "a.i32": (-(2**31), "i32"),
        "a.u64": (2**64 - 1, "u64"),
        "a.i64": (-(2**63), "i64"),
        "a.f32": (0.5, "f32"),
        "a.f64": (0.1, "f64"),
        "a.bool": (True, "bool"),
        "a.text": ("naïve ✓", "string"),
        "a.empty": ([], ("array", "i32")),
        "a.texts": (["", "é"], ("array", "string")),
        "a.floats": ([1.5, -2.0], ("array", "f32")),
        "a.flags": ([True, False], ("array", "bool")),
    }
    for key, (value, kind) in values.items():
        writer.add_metadata(key, value, kind)
    numbers = np.arange(21, dtype=np.float32).reshape(3, 7)
    writer.add_tensor("numbers", [7, 3], TensorType.F32, numbers)
    writer.add_tensor("late", [5], TensorType.F16, lambda: np.ones(5, np.float16))
    writer.write()
    assert [entry.name for entry in path.parent.iterdir()] == ["file.gguf"]
    file = _native.ModelFile(str(path))
    assert file.metadata == {key: value for key, (value, _) in values.items()}
    assert [(t.name, t.type_name, t.shape, t.offset) for t in file.tensors] == [
        ("numbers", "F32", [7, 3], 0),
        ("late", "F16", [5], 96),
    ]
    assert np.array_equal(GgufReader(path).tensors["numbers"].raw[:84].view("<f4").reshape(3, 7), numbers)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"older")
    writer = GgufWriter(path)
    writer.add_tensor("late", [4], TensorType.F32, lambda: np.ones(3, np.float32))
    with pytest.raises(ValueError, match="12 bytes given, its type and dimensions need 16"):
        writer.write()
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]
    assert path.read_bytes() == b"older"
    with pytest.raises(ValueError, match="multiple of 256"):
        writer.add_tensor("rows", [100, 2], TensorType.Q6_K, b"")
    with pytest.raises(ValueError, match="added before"):
        writer.add_tensor("late", [1], TensorType.F32, bytes(4))
    with pytest.raises(ValueError, match="unknown metadata kind 'f16'"):
        writer.add_metadata("x", 1, "f16")
