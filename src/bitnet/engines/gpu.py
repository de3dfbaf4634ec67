"""NVIDIA GPUs: the CUDA library that comes with the package if it was built with one, and what it finds.

Nothing here is imported, and the library is not loaded, unless layers are wanted on a GPU or somebody asks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bitnet import _native
from bitnet.errors import ValidationError

ENVIRONMENT = "BITNET_CUDA_LIBRARY"  # another library than that of the package, for tests
BUILD_OPTION = "-C cmake.define.BITNET_CUDA=ON"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """library: its path; None = this build has none. devices: in the order of main_gpu.
    problem: why there is no device; empty = there are."""

    library: str | None
    devices: tuple[_native.GpuDevice, ...]
    problem: str


def library() -> str | None:
    """The CUDA library's path; None = this build has none."""
    if given := os.environ.get(ENVIRONMENT):
        return given
    for name in ("libbitnet_cuda.so", "bitnet_cuda.dll"):
        path = Path(_native.__file__).with_name(name)
        if path.exists():
            return str(path)
    return None


def required_library(n_gpu_layers: int) -> str:
    """The library that computes n_gpu_layers. Raises ValidationError if this build has none."""
    path = library()
    if path is None:
        raise ValidationError(
            f"n_gpu_layers={n_gpu_layers} asks for a GPU, and this build of bitnet-cpp computes on the CPU "
            "only: set n_gpu_layers to 0, or install a build with a GPU backend (with a CUDA toolkit: pip "
            f"install . {BUILD_OPTION})",
            field="n_gpu_layers",
        )
    return path


def find() -> Gpus:
    """What there is. Raises DeviceError if the library cannot be loaded."""
    path = library()
    if path is None:
        return Gpus(
            library=None,
            devices=(),
            problem=f"this build has no CUDA library (with a CUDA toolkit: pip install . {BUILD_OPTION})",
        )
    devices, problem = _native.gpu_devices(path)
    return Gpus(library=path, devices=tuple(devices), problem=problem)
