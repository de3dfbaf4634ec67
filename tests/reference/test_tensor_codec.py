"""Tensor codecs against the gguf package, against the layouts' definitions (ternary_layouts), and against
worked examples.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet.errors import ValidationError
from bitnet.models.gguf_writer import TensorType, tensor_bytes
from bitnet.models.tensor_codec import (
    TernaryMatrix,
    decode_dense,
    decode_ternary,
    encode_dense,
    encode_ternary,
)
from reference import ternary_layouts as defined

T = TensorType
BLOCK_TYPES = (T.TQ1_0, T.TQ2_0, T.Q2_0)
# m, k, bm, bk, bmm of every shape whose tiles are known, as setup_env.py of bitnet.cpp generates them.
TL1_TILES = {
    (1536, 4096): (256, 128, 32),
    (1536, 1536): (128, 64, 64),
    (4096, 1536): (256, 128, 32),
    (3200, 8640): (160, 64, 32),
    (3200, 3200): (320, 128, 64),
    (8640, 3200): (320, 64, 32),
    (14336, 4096): (256, 128, 32),
    (4096, 14336): (128, 64, 64),
    (1024, 4096): (256, 128, 32),
    (4096, 4096): (128, 64, 64),
}
TL1_PRESETS = {
    (14336, 4096): (256, 128, 64),
    (4096, 14336): (256, 128, 32),
    (1024, 4096): (128, 64, 64),
    (4096, 4096): (128, 64, 32),
}
TL2_TILES = {
    (1536, 4096): (256, 96, 32),
    (1536, 1536): (128, 192, 32),
    (4096, 1536): (256, 96, 32),
    (3200, 8640): (160, 96, 32),
    (3200, 3200): (320, 96, 32),
    (8640, 3200): (320, 96, 32),
    (14336, 4096): (256, 96, 32),
    (4096, 14336): (128, 96, 32),
    (1024, 4096): (256, 96, 32),
    (4096, 4096): (128, 96, 32),
}


def random_codes(rows: int, columns: int, seed: int = 0) -> NDArray[np.int8]:
    return np.random.default_rng(seed).integers(-1, 2, (rows, columns)).astype(np.int8)


def assert_is(matrix: TernaryMatrix, codes: NDArray[np.int8], scale: float) -> None:
    assert matrix.codes.dtype == np.int8
    assert np.array_equal(matrix.codes, codes)
    assert matrix.scale == scale


@pytest.mark.parametrize("shape", [(1, 128), (4, 96), (3, 100), (5, 1), (64, 640)])
def test_i2_s_is_its_definition(shape: tuple[int, int]) -> None:
    codes = random_codes(*shape)
    data = encode_ternary(codes, 0.375, T.I2_S)
    assert data == defined.i2_s(codes, 0.375)
    assert len(data) == tensor_bytes(T.I2_S, shape[::-1])
    assert_is(decode_ternary(data, T.I2_S, *shape), codes, 0.375)


def test_i2_s_of_the_worked_example() -> None:
    codes = np.zeros((1, 128), np.int8)
    codes[0, [0, 32, 127]], codes[0, [1, 64]] = 1, -1
    data = encode_ternary(codes, 0.5, T.I2_S)
    assert data == bytes([161, 21, *[85] * 29, 86]) + struct.pack("<f", 0.5) + bytes(28)


@pytest.mark.parametrize("layout", ["arm64", "row4"])
def test_other_orders_of_i2_s_are_read(layout: str) -> None:
    codes = random_codes(12, 320)
    encode: Callable[..., bytes] = defined.LAYOUTS[f"i2_s-{layout}"][2]
    data = encode(codes, 0.25)
    assert_is(decode_ternary(data, T.I2_S, 12, 320, layout=layout), codes, 0.25)  # type: ignore[arg-type]
    assert not np.array_equal(decode_ternary(data, T.I2_S, 12, 320).codes, codes)
    with pytest.raises(ValidationError, match="x128"):
        decode_ternary(bytes(4096), T.I2_S, 3, 100, layout=layout)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [s for s in TL1_TILES if s[0] * s[1] < 2**23])
def test_tl1_of_the_published_shapes(shape: tuple[int, int]) -> None:
    codes = random_codes(*shape)
    data = encode_ternary(codes, 0.75, T.TL1)
    assert data == defined.tl1(codes, 0.75, TL1_TILES[shape])
    assert len(data) == tensor_bytes(T.TL1, shape[::-1])
    assert_is(decode_ternary(data, T.TL1, *shape), codes, 0.75)
    preset = encode_ternary(codes, 0.75, T.TL1, layout="preset")
    assert preset == defined.tl1(codes, 0.75, TL1_PRESETS.get(shape, TL1_TILES[shape]))
    assert_is(decode_ternary(preset, T.TL1, *shape, layout="preset"), codes, 0.75)


@pytest.mark.parametrize("shape", [s for s in TL2_TILES if s[0] * s[1] < 2**23])
def test_tl2_of_the_published_shapes(shape: tuple[int, int]) -> None:
    codes = random_codes(*shape)
    data = defined.tl2(codes, 0.75, TL2_TILES[shape])
    assert len(data) == tensor_bytes(T.TL2, shape[::-1])
    assert_is(decode_ternary(data, T.TL2, *shape), codes, 0.75)


@pytest.mark.parametrize("shape", TL1_TILES)
def test_tiles_of_the_published_shapes(shape: tuple[int, int]) -> None:
    codes = np.tile(random_codes(64, 64), (shape[0] // 64, shape[1] // 64))
    codes[: shape[0] // 2 + 1, shape[1] // 2 :] *= -1  # so that no tile is like all others
    for layout, tiles in (("x128", TL1_TILES), ("preset", TL1_TILES | TL1_PRESETS)):
        data = encode_ternary(codes, 1.0, T.TL1, layout=layout)  # type: ignore[arg-type]
        assert data == encode_ternary(codes, 1.0, T.TL1, tiles=[(*shape, *tiles[shape])])
    size = tensor_bytes(T.TL2, shape[::-1])
    data2 = np.resize(np.array([0x12, 0x83, 0x40, 0x05, 0x66, 0x71, 0x28], np.uint8), size)
    three = shape[1] // TL2_TILES[shape][1] * TL2_TILES[shape][1]
    data2[shape[0] * three // 6 : shape[0] * three * 5 // 24] = 0  # no signs
    data2[-32:] = 0
    known = decode_ternary(data2, T.TL2, *shape)
    given = decode_ternary(data2, T.TL2, *shape, tiles=[(*shape, *TL2_TILES[shape])])
    assert np.array_equal(known.codes, given.codes)


def test_tl1_of_the_worked_example() -> None:
    codes = np.zeros((256, 384), np.int8)
    codes[0, :4] = 1, -1, 1, 0
    codes[1, 0] = -1
    tiles = [(256, 384, 128, 64, 64)]
    data = encode_ternary(codes, 1.0, T.TL1, tiles=tiles)
    assert data[:3] == bytes([0x67, 0x14, 0x44])
    assert_is(decode_ternary(data, T.TL1, 256, 384, tiles=tiles), codes, 1.0)


def test_tl2_of_the_worked_example() -> None:
    codes = np.zeros((256, 448), np.int8)
    codes[0, :6] = 1, -1, 0, -1, 0, 1
    codes[8, 2] = 1
    data = defined.tl2(codes, 2.0, (256, 96, 32))
    assert (data[0], data[16], data[16384:16386], data[20480]) == (0x68, 0x10, b"\x00\x20", 0x44)
    assert_is(decode_ternary(data, T.TL2, 256, 448, tiles=[(256, 448, 256, 96, 32)]), codes, 2.0)


def test_unknown_and_impossible_tiles_are_refused() -> None:
    for kind in (T.TL1, T.TL2):
        with pytest.raises(ValidationError, match=r"256 x 512 .*kernel_config.ini"):
            decode_ternary(bytes(2**20), kind, 256, 512)
        with pytest.raises(ValidationError, match="not known"):  # of another shape
            decode_ternary(bytes(2**24), kind, 1536, 1536, tiles=[(256, 512, 128, 64, 32)])
        for bad in (
            (0, 0, 0),
            (100, 96, 32),
            (128, 100, 32),
            (128, 96, 48),
            (-128, -96, -32),
            (2**31 - 1,) * 3,
        ):
            with pytest.raises(ValidationError, match="cannot cut a matrix of 256 x 512"):
                decode_ternary(bytes(2**20), kind, 256, 512, tiles=[(256, 512, *bad)])


@pytest.mark.parametrize("kind", BLOCK_TYPES)
@pytest.mark.parametrize("scale", [1.0, 0.0375, 6e-8, 65504.0])
def test_block_types_are_their_definition(kind: TensorType, scale: float) -> None:
    codes = random_codes(5, 768)
    codes[2, :300] = 0  # a whole block
    data = encode_ternary(codes, scale, kind)
    assert data == getattr(defined, kind.name.lower())(codes, scale)
    assert len(data) == tensor_bytes(kind, (768, 5))
    matrix = decode_ternary(data, kind, 5, 768)
    assert_is(matrix, codes, float(np.float16(scale)))
    assert matrix.scales.size == codes.size // (64 if kind == T.Q2_0 else 256)
    assert np.count_nonzero(matrix.scales == 0) == (4 if kind == T.Q2_0 else 1)
    assert np.array_equal(matrix.values(), codes * np.float32(np.float16(scale)))


@pytest.mark.parametrize("kind", [T.TQ1_0, T.TQ2_0])
def test_block_types_equal_those_of_the_gguf_package(kind: TensorType) -> None:
    codes = random_codes(6, 1024)
    codes[1, 256:512] = 0
    other = gguf.GGMLQuantizationType(int(kind))
    expected = gguf.quants.quantize(codes * np.float32(0.3125), other)
    assert encode_ternary(codes, 0.3125, kind) == expected.tobytes()
    # Random bytes, where the package reads what no quantiser writes; TQ2_0 has no code for a third value.
    raw = np.random.default_rng(3).integers(0, 256, expected.shape, dtype=np.uint8)
    scales = raw.reshape(-1, 54 if kind == T.TQ1_0 else 66)
    scales[:, -2:] = np.random.default_rng(4).random((len(scales), 1)).astype("<f2").view(np.uint8)
    if kind == T.TQ2_0:
        codes_of = scales[:, :64]
        codes_of &= ~(codes_of >> 1 & codes_of & 0x55)
    matrix = decode_ternary(raw, kind, 6, 1024)
    assert np.array_equal(matrix.values(), gguf.quants.dequantize(raw, other))
    with pytest.raises(ValueError, match="different scales"):
        matrix.scale  # noqa: B018


def test_digits_of_tq1_0_of_the_worked_examples() -> None:
    codes = np.zeros((1, 256), np.int8)
    codes[0, [0, 32, 64, 96, 128]] = np.array([2, 0, 1, 2, 1]) - 1
    codes[0, [240, 244, 248, 252]] = np.array([2, 0, 1, 2]) - 1
    data = encode_ternary(codes, 1.0, T.TQ1_0)
    assert (data[0], data[48]) == (188, 187)
    codes[0, [0, 32, 64, 96]] = np.array([2, 0, 1, 2]) - 1
    assert encode_ternary(codes, 1.0, T.TQ2_0)[0] == 0x92


def test_codes_of_no_weight_are_refused() -> None:
    codes = random_codes(256, 768)

    def refused(data: bytes, at: int, value: int, kind: TensorType, **options: Any) -> None:
        damaged = bytearray(data)
        damaged[at] = value
        with pytest.raises(ValidationError, match="stands for no ternary weight"):
            decode_ternary(bytes(damaged), kind, 256, 768, **options)

    for layout in ("x128", "arm64", "row4"):
        refused(encode_ternary(codes, 1.0, T.I2_S), 40000, 0b11, T.I2_S, layout=layout)
    refused(encode_ternary(codes, 1.0, T.TQ2_0), 66 * 100 + 5, 0b1100, T.TQ2_0)
    refused(encode_ternary(codes, 1.0, T.Q2_0), 18 * 100 + 5, 0b110000, T.Q2_0)
    tiles = [(256, 768, 128, 64, 32)]
    refused(encode_ternary(codes, 1.0, T.TL1, tiles=tiles), 777, 0x94, T.TL1, tiles=tiles)
    tiles = [(256, 768, 128, 96, 32)]
    data = defined.tl2(np.zeros_like(codes), 1.0, tiles[0][2:])
    refused(data, 777, 0x0E, T.TL2, tiles=tiles)  # a magnitude of 14
    refused(data, 256 * 768 // 6, 1, T.TL2, tiles=tiles)  # a zero with a sign


@pytest.mark.parametrize("kind", [T.I2_S, *BLOCK_TYPES])
def test_what_cannot_be_decoded_is_refused(kind: TensorType) -> None:
    codes = random_codes(2, 256)
    data = encode_ternary(codes, 1.0, kind)
    with pytest.raises(ValidationError, match="bytes are too few for 2 x 256"):
        decode_ternary(data[:-1], kind, 2, 256)
    assert_is(decode_ternary(data + b"more", kind, 2, 256), codes, 1.0)
    for rows, columns in ((0, 256), (2, 0)):
        with pytest.raises(ValidationError, match="rows and columns"):
            decode_ternary(data, kind, rows, columns)
    at = {T.I2_S: 128, T.Q2_0: 18, T.TQ1_0: 52, T.TQ2_0: 64}[kind]
    for bad in (np.nan, np.inf, -1.0):
        form = "<f" if kind == T.I2_S else "<e"
        scale = struct.pack(form, bad)
        with pytest.raises(ValidationError, match="negative or not finite"):
            decode_ternary(data[:at] + scale + data[at + len(scale) :], kind, 2, 256)


@pytest.mark.parametrize("kind", [T.I2_S, *BLOCK_TYPES])
def test_what_cannot_be_encoded_is_refused(kind: TensorType) -> None:
    codes = random_codes(2, 256)
    for bad in (np.nan, np.inf, -1.0):
        with pytest.raises(ValidationError, match="finite and not negative"):
            encode_ternary(codes, bad, kind)
    with pytest.raises(ValidationError, match="must be -1, 0 or 1, found 2"):
        encode_ternary(np.where(np.arange(512).reshape(2, 256) == 300, 2, codes), 1.0, kind)
    if kind != T.I2_S:
        with pytest.raises(ValidationError, match=r"multiple of (64|256) elements, not 200"):
            encode_ternary(codes[:, :200], 1.0, kind)
        for bad in (1e6, 1e-9):
            with pytest.raises(ValidationError, match="does not fit the f16"):
                encode_ternary(codes, bad, kind)


def test_wrong_types_and_layouts_are_refused() -> None:
    with pytest.raises(ValidationError, match="is no ternary type"):
        decode_ternary(bytes(1024), T.F16, 1, 256)
    with pytest.raises(ValidationError, match="no ternary encoding as TL2"):
        encode_ternary(random_codes(256, 512), 1.0, T.TL2)
    with pytest.raises(ValidationError, match="is no dense type"):
        decode_dense(bytes(1024), T.I2_S, 1, 256)
    with pytest.raises(ValidationError, match=r"no layout 'x64'.*x128, arm64, row4 or preset"):
        decode_ternary(bytes(1024), T.I2_S, 1, 256, layout="x64")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="x128 only"):
        encode_ternary(random_codes(4, 256), 1.0, T.I2_S, layout="arm64")


def dense_rows() -> NDArray[np.float32]:
    random = np.random.default_rng(7)
    rows = random.standard_normal((40, 512)) * 10.0 ** random.uniform(-6, 3, (40, 1))
    rows[1], rows[2, 32:64], rows[3, 5] = 0, 0, 100
    return rows.astype(np.float32)


@pytest.mark.parametrize("kind", [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0])
def test_dense_types_are_encoded_as_gguf_does(kind: TensorType) -> None:
    expected = gguf.quants.quantize(dense_rows(), gguf.GGMLQuantizationType(int(kind)))
    data = encode_dense(dense_rows(), kind)
    assert data == expected.tobytes()
    assert len(data) == tensor_bytes(kind, (512, 40))


@pytest.mark.parametrize("kind", [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q6_K])
def test_dense_types_are_decoded_as_gguf_does(kind: TensorType) -> None:
    raw = np.random.default_rng(1).integers(0, 256, (9, tensor_bytes(kind, (512,))), dtype=np.uint8)
    if kind in (T.F32, T.F16, T.BF16):
        raw = np.frombuffer(encode_dense(dense_rows(), kind), np.uint8).reshape(40, -1)
    else:  # scales that are numbers
        block = {T.Q8_0: 34, T.Q4_0: 18, T.Q6_K: 210}[kind]
        at = 208 if kind == T.Q6_K else 0
        raw.reshape(-1, block)[:, at + 1] &= 0xBF
    decoded = decode_dense(raw, kind, len(raw), 512)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(int(kind)))
    assert decoded.dtype == np.float32
    assert decoded.tobytes() == np.ascontiguousarray(expected, np.float32).tobytes()


def test_dense_blocks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="multiple of 256 elements, not 128"):
        encode_dense(np.zeros((1, 128), np.float32), T.Q6_K)
    with pytest.raises(ValidationError, match="bytes are too few for 2 x 32"):
        decode_dense(bytes(67), T.Q8_0, 2, 32)
