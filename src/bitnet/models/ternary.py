"""Ternary matrices as bitnet.cpp stores them (I2_S), and absmean, which rounds latent weights to ternary.

I2_S: blocks of 128 elements over the flat row-major tensor, 32 bytes each; byte b holds elements b, 32+b,
64+b, 96+b of its block in bits 7:6, 5:4, 3:2, 1:0, as 0, 1, 2 for -1, 0, +1. One f32 scale follows:
W = scale * t.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

_BLOCK: Final = 128
_BLOCK_BYTES: Final = 32
_TAIL_BYTES: Final = 32  # the scale and 28 bytes of padding
_CHUNK: Final = _BLOCK << 15  # elements handled at a time: temporaries of a few MB whatever the matrix


def pack_i2s(codes: NDArray[np.int8], scale: float) -> bytes:
    """Codes [M, K] of -1, 0, +1 as one I2_S tensor of ceil(M*K / 128) * 32 + 32 bytes.

    A last block that is not full is padded with zeros. Raises ValueError for other codes.
    """
    flat = np.ascontiguousarray(codes, dtype=np.int8).reshape(-1)
    n_blocks = -(-flat.size // _BLOCK)
    packed = np.empty(n_blocks * _BLOCK_BYTES + _TAIL_BYTES, dtype=np.uint8)
    for first in range(0, flat.size, _CHUNK):
        chunk = flat[first : first + _CHUNK]
        if chunk.min() < -1 or chunk.max() > 1:
            raise ValueError("ternary codes must be -1, 0 or 1")
        if chunk.size % _BLOCK:
            chunk = np.concatenate([chunk, np.zeros(-chunk.size % _BLOCK, dtype=np.int8)])
        fields = (chunk + 1).astype(np.uint8).reshape(-1, 4, _BLOCK_BYTES)
        block_bytes = fields[:, 0] << 6 | fields[:, 1] << 4 | fields[:, 2] << 2 | fields[:, 3]
        start = first // 4
        packed[start : start + block_bytes.size] = block_bytes.reshape(-1)
    packed[-_TAIL_BYTES:] = np.frombuffer(struct.pack("<f28x", scale), dtype=np.uint8)
    return packed.tobytes()


def unpack_i2s(
    data: bytes | bytearray | memoryview | NDArray[np.uint8], rows: int, cols: int
) -> tuple[NDArray[np.int8], float]:
    """The codes [rows, cols] and the scale of an I2_S tensor.

    Raises ValueError if `data` is too short or holds the code 3.
    """
    raw = np.frombuffer(data, dtype=np.uint8)
    n_elements = rows * cols
    n_code_bytes = -(-n_elements // _BLOCK) * _BLOCK_BYTES
    if raw.size < n_code_bytes + 4:
        raise ValueError(f"{raw.size} bytes are too few for an I2_S tensor of {rows} x {cols}")
    codes = np.empty(n_elements, dtype=np.int8)
    shifts = np.array([6, 4, 2, 0], dtype=np.uint8)[:, None]
    for first in range(0, n_elements, _CHUNK):
        block_bytes = raw[first // 4 : min((first + _CHUNK) // 4, n_code_bytes)].reshape(-1, 1, _BLOCK_BYTES)
        fields = (block_bytes >> shifts & 3).reshape(-1)[: n_elements - first]
        if fields.max() > 2:
            raise ValueError("an I2_S tensor holds the code 3, which means nothing")
        codes[first : first + fields.size] = fields.astype(np.int8) - 1
    scale = raw[n_code_bytes : n_code_bytes + 4].view("<f4")[0]
    return codes.reshape(rows, cols), float(scale)


def absmean(weights: NDArray[np.floating]) -> tuple[NDArray[np.int8], float]:
    """Round latent weights to ternary codes and one scale, as BitNet b1.58 is trained:

    scale = max(mean|W|, 1e-5), t = clamp(round_half_even(W / scale), -1, 1), in f32
    (Ma et al. 2024, "The Era of 1-bit LLMs", section 2).
    """
    latent = np.asarray(weights, dtype=np.float32)
    scale = np.maximum(np.abs(latent).mean(dtype=np.float64).astype(np.float32), np.float32(1e-5))
    codes = np.clip(np.rint(latent * (np.float32(1.0) / scale)), -1, 1).astype(np.int8)
    return codes, float(scale)
