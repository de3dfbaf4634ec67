"""The optimizer of the tiny model's matrices, against PyTorch's own Muon."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from tiny_bitnet.muon import Muon, _orthogonal  # noqa: E402

pytestmark = pytest.mark.reference


def test_it_steps_as_pytorchs() -> None:
    torch.manual_seed(1)
    shapes = [(24, 16), (16, 24), (16, 24), (16, 16)]
    own = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in own]
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    optimizers = [
        Muon(own, **options),
        torch.optim.Muon(theirs, nesterov=True, adjust_lr_fn="match_rms_adamw", **options),
    ]
    for _ in range(4):
        before = [parameter.detach().clone() for parameter in own]
        for one, other in zip(own, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        for one, other, old in zip(own, theirs, before, strict=True):
            # Theirs rounds to bfloat16 on the way.
            assert (one - other).norm() < 0.03 * (one - old).norm()
            other.data.copy_(one)


def test_all_directions_move_alike() -> None:
    torch.manual_seed(2)
    for shape in ((3, 40, 64), (3, 64, 40)):
        sizes = torch.tensor([1e-3, 1, 1e3])[:, None, None]
        singular = torch.linalg.svdvals(_orthogonal(torch.randn(shape) * sizes, torch.float32))
        assert singular.min() > 0.5
        assert singular.max() < 1.4
