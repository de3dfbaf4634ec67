"""Absmean, which rounds latent weights to ternary codes. Their bytes in files: `tensor_codec`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def absmean(weights: NDArray[np.floating]) -> tuple[NDArray[np.int8], float]:
    """Round latent weights to ternary codes and one scale, as BitNet b1.58 is trained:

    scale = max(mean|W|, 1e-5), t = clamp(round_half_even(W / scale), -1, 1), in f32
    (Ma et al. 2024, "The Era of 1-bit LLMs", section 2).
    """
    latent = np.asarray(weights, dtype=np.float32)
    scale = np.maximum(np.abs(latent).mean(dtype=np.float64).astype(np.float32), np.float32(1e-5))
    codes = np.clip(np.rint(latent * (np.float32(1.0) / scale)), -1, 1).astype(np.int8)
    return codes, float(scale)
