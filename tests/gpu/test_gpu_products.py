"""Ternary products on the device: exact integers, for any shape, number of tokens and device generation."""

from __future__ import annotations

import numpy as np
import pytest

from bitnet import DeviceError, ValidationError, _native

SHAPES = [(1, 1), (16, 128), (17, 130), (40, 72), (200, 320), (320, 200), (129, 1000), (130, 8640)]
# Every kernel, with and without tokens left over, and more tokens than one block of threads takes.
N_TOKENS = [1, 3, 8, 9, 16, 25, 32, 33, 64, 65, 150]


def exact(codes: np.ndarray, x: np.ndarray) -> np.ndarray:
    return x.astype(np.int64) @ codes.T.astype(np.int64)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_random_weights(emulated: str, shape: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    codes = random.integers(-1, 2, shape, np.int8)
    for n_tokens in N_TOKENS if shape[1] < 1000 else (1, 9, 70):
        x = random.integers(-128, 128, (n_tokens, shape[1]), np.int8)
        y, *_ = _native.gpu_product(emulated, 0, codes, x)
        assert np.array_equal(y, exact(codes, x)), n_tokens


@pytest.mark.parametrize("n_tokens", [1, 20, 70])
@pytest.mark.parametrize("code", [1, -1])
def test_the_largest_sums(emulated: str, code: int, n_tokens: int) -> None:
    codes = np.full((33, 8640), code, np.int8)
    x = np.full((n_tokens, 8640), 127, np.int8)
    x[::2] = -128
    y, *_ = _native.gpu_product(emulated, 0, codes, x)
    assert np.array_equal(y, exact(codes, x))


def test_a_device_with_little_shared_memory(emulated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_EMULATED_CAPABILITY", "7.5")
    random = np.random.default_rng(2)
    codes, x = random.integers(-1, 2, (700, 300), np.int8), random.integers(-128, 128, (140, 300), np.int8)
    y, *_ = _native.gpu_product(emulated, 0, codes, x)
    assert np.array_equal(y, exact(codes, x))


def test_timing_does_not_change_the_result(emulated: str) -> None:
    random = np.random.default_rng(3)
    codes, x = random.integers(-1, 2, (64, 256), np.int8), random.integers(-128, 128, (2, 256), np.int8)
    y, seconds, n_bytes, copy = _native.gpu_product(emulated, 0, codes, x, timed=True)
    assert np.array_equal(y, exact(codes, x))
    assert seconds > 0
    assert n_bytes == 64 * 256 // 4
    assert copy > 0


def test_shapes_that_do_not_fit(emulated: str) -> None:
    with pytest.raises(ValidationError, match="codes must be"):
        _native.gpu_product(emulated, 0, np.zeros((4, 8), np.int8), np.zeros((1, 9), np.int8))


def test_no_library() -> None:
    with pytest.raises(DeviceError, match=r"'/nowhere/lib.so' cannot be loaded .* set n_gpu_layers to 0"):
        _native.gpu_devices("/nowhere/lib.so")
