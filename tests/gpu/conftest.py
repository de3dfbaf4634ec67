"""The CUDA library built for this machine's processor: the same kernels and host code, emulated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bitnet import BitNet
from bitnet.engines import gpu

NATIVE = Path(__file__).parents[2] / "native"


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("the emulator is for Linux, and needs a C++ compiler")
    library = tmp_path_factory.mktemp("cuda") / "libbitnet_cuda.so"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-DBITNET_CUDA_EMULATE"]
    if " fma " in Path("/proc/cpuinfo").read_text("utf-8", errors="replace"):
        flags.append("-mfma")  # else fused operations are function calls
    source = NATIVE / "cuda" / "bitnet_cuda.cu"
    subprocess.run([compiler, *flags, f"-I{NATIVE}", "-x", "c++", source, "-o", library], check=True)
    return str(library)


@pytest.fixture
def emulated(emulated_library: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The package uses the emulated device."""
    monkeypatch.setenv(gpu.ENVIRONMENT, emulated_library)
    return emulated_library


@pytest.fixture
def make(emulated: str) -> Iterator[Callable[..., BitNet]]:
    """Models that are closed in the end."""
    models: list[BitNet] = []

    def load(*arguments: object, **options: object) -> BitNet:
        models.append(BitNet(*arguments, **options))  # type: ignore[arg-type]
        return models[-1]

    yield load
    for model in models:
        model.close()
