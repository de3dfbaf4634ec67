"""RMSNorm, int8 activations and ternary products.

Straight-through: to the backward pass both roundings are identities and their scales constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        return x.round().clamp_(-limit, limit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _rounded(x: Tensor, limit: float) -> Tensor:
    # torch declares apply() without types.
    integers: Tensor = _Round.apply(x, limit)  # type: ignore[no-untyped-call]
    return integers


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def quantise_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Per-token absmax int8: the integers (as floats) and the factor that turns them back."""
    scale = 127.0 / x.detach().abs().amax(-1, keepdim=True).clamp_(min=1e-5)
    return _rounded(x * scale, 127.0), scale.reciprocal()


def ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Absmean quantisation: codes in {-1, 0, 1} (as floats) and the scale of the whole matrix."""
    scale = weight.detach().abs().mean().clamp_(min=1e-5)
    return _rounded(weight * scale.reciprocal(), 1.0), scale


def norm_bit_linear(
    x: Tensor, norm: Tensor, weights: Sequence[Tensor], eps: float, dtype: torch.dtype
) -> Tensor:
    """RMSNorm of x [n, in], then the ternary layers `weights`: their outputs side by side.

    `dtype` is that of the matrix products. Small integers are exact in it; their sums are rounded to it, a
    noise far below int8's.
    """
    integers, factor = quantise_activations(rms_norm(x, norm, eps))
    quantised = [ternary(weight) for weight in weights]
    codes = torch.cat([c for c, _ in quantised])
    scales = torch.cat([s.expand(len(c)) for c, s in quantised])
    return (integers.to(dtype) @ codes.to(dtype).T).float() * factor * scales
