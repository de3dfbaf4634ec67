"""RMSNorm, int8 activations and ternary products in one differentiable step.

Written out by hand because autograd would make a dozen passes over memory for it, half of a training step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def quantise_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Per-token absmax int8: the integers (as floats) and the factor that turns them back."""
    scale = 127.0 / x.abs().amax(-1, keepdim=True).clamp_(min=1e-5)
    return (x * scale).round_(), scale.reciprocal_()


def ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Absmean quantisation: codes in {-1, 0, 1} (as floats) and the scale of the whole matrix."""
    scale = weight.abs().mean().clamp_(min=1e-5)
    return (weight * scale.reciprocal()).round_().clamp_(-1, 1), scale


class _NormBitLinear(torch.autograd.Function):
    """Straight-through: to the backward pass both roundings are identities and their scales constants."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: Tensor, eps: float, dtype: torch.dtype, *weights: Tensor
    ) -> Tensor:
        inverse_rms = torch.rsqrt(x.square().mean(-1, keepdim=True).add_(eps))
        normed = x * inverse_rms
        integers, factor = quantise_activations(normed * norm)
        # Small integers are exact in `dtype`; their sums are rounded to it, a noise far below int8's.
        integers = integers.to(dtype)
        quantised = [ternary(weight) for weight in weights]
        codes = torch.cat([c.to(dtype) for c, _ in quantised])
        scales = torch.cat([s.expand(len(c)) for c, s in quantised])
        ctx.save_for_backward(normed, norm, inverse_rms, integers, factor, codes, scales)
        ctx.rows = [len(weight) for weight in weights]
        return (integers @ codes.T).float().mul_(factor).mul_(scales)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normed, norm, inverse_rms, integers, factor, codes, scales = ctx.saved_tensors
        grad_weights: tuple[Tensor | None, ...] = (None,) * len(ctx.rows)
        if any(ctx.needs_input_grad[4:]):
            grad_weights = ((grad * factor).to(codes.dtype).T @ integers).float().split(ctx.rows)
        grad_scaled = ((grad * scales).to(codes.dtype) @ codes).float()
        grad_norm = (grad_scaled * normed).sum(0)
        grad_normed = grad_scaled.mul_(norm)
        along = (grad_normed * normed).mean(-1, keepdim=True)
        grad_x = grad_normed.sub_(normed * along).mul_(inverse_rms)
        return (grad_x, grad_norm, None, None, *grad_weights)


def norm_bit_linear(
    x: Tensor, norm: Tensor, weights: Sequence[Tensor], eps: float, dtype: torch.dtype
) -> Tensor:
    """RMSNorm of x [n, in], then the ternary layers `weights`: their outputs side by side.

    `dtype` is that of the matrix products.
    """
    # torch declares apply() without types.
    outputs: Tensor = _NormBitLinear.apply(x, norm, eps, dtype, *weights)  # type: ignore[no-untyped-call]
    return outputs
