"""What goes wrong with a GPU is said with the numbers and the setting to change; never a wrong token."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet import BitNet, DeviceError
from bitnet.engines import gpu


def test_no_driver(make: Callable[..., BitNet], random_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_EMULATED_DEVICES", "0")
    with pytest.raises(
        DeviceError, match=r"there is no NVIDIA driver, or it is too old .*set n_gpu_layers to 0"
    ):
        make(random_path, n_gpu_layers=-1)
    assert gpu.find().devices == ()


def test_an_old_device(
    make: Callable[..., BitNet], random_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITNET_EMULATED_CAPABILITY", "6.1")
    with pytest.raises(
        DeviceError, match=r"device 0 \(emulated device\): compute capability 6.1 is too old: 7.5"
    ):
        make(random_path, n_gpu_layers=-1)


def test_turing(make: Callable[..., BitNet], random_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_EMULATED_CAPABILITY", "7.5")
    assert make(random_path, n_gpu_layers=-1, n_ctx=64).generate("a", max_tokens=2, ignore_eos=True).token_ids


def test_no_such_device(make: Callable[..., BitNet], random_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"main_gpu is 3, and there is 1 device \(0\)"):
        make(random_path, n_gpu_layers=-1, main_gpu=3)


def test_too_little_memory(
    make: Callable[..., BitNet], random_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITNET_EMULATED_MEMORY", str(100 << 20))
    with pytest.raises(DeviceError) as e:
        make(random_path, n_gpu_layers=-1, n_ctx=512, n_batch=256)
    message = str(e.value)
    assert "has 100.0 MiB of its 100.0 MiB free, and 2 layers need" in message
    assert "keys and values 320.0 MiB" in message
    assert "set n_gpu_layers to 0, lower n_batch or n_ctx, or set low_vram" in message
    # What it says helps.
    assert make(random_path, n_gpu_layers=-1, n_ctx=512, n_batch=256, low_vram=True).info.n_gpu_layers == 2
    assert make(random_path, n_gpu_layers=-1, n_ctx=512, n_batch=2).info.n_gpu_layers == 2


def test_memory_is_given_back(make: Callable[..., BitNet], random_path: Path) -> None:
    (before,) = gpu.find().devices
    model = make(random_path, n_gpu_layers=-1, n_ctx=64)
    (loaded,) = gpu.find().devices
    assert before.free_bytes - loaded.free_bytes >= model.info.gpu_bytes * 0.95
    model.close()
    (after,) = gpu.find().devices
    assert after.free_bytes == before.free_bytes


def run(code: str, library: str, **env: str) -> str:
    """In a process of its own, since a lost device stays lost."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, gpu.ENVIRONMENT: library, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_lost_device(emulated_library: str, random_path: Path) -> None:
    printed = run(
        f"""
        import os
        from bitnet import BitNet, DeviceError
        model = BitNet({str(random_path)!r}, n_gpu_layers=-1, n_ctx=64)
        first = model.generate("a", max_tokens=3, temperature=0, ignore_eos=True).token_ids
        os.environ["BITNET_EMULATED_FAILURE"] = "0"
        for _ in range(2):
            try:
                print("answered", model.generate("b", max_tokens=3).token_ids)
            except DeviceError as error:
                print(error)
        model.close()
        print("closed")
        """,
        emulated_library,
    ).splitlines()
    assert printed[0].startswith("the GPU failed (unspecified launch failure) during ")
    assert "nothing more can be computed on it" in printed[0]
    assert "set n_gpu_layers to 0" in printed[1]
    assert printed[2] == "closed"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process(emulated_library: str, random_path: Path) -> None:
    """CUDA does not survive a fork: the child is told so, and the parent goes on."""
    printed = run(
        f"""
        import os
        from bitnet import BitNet, DeviceError
        model = BitNet({str(random_path)!r}, n_gpu_layers=-1, n_ctx=64)
        model.generate("a", max_tokens=2)
        child = os.fork()
        if child == 0:
            try:
                print("answered", model.generate("b", max_tokens=2), flush=True)
            except DeviceError as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print(len(model.generate("c", max_tokens=2, ignore_eos=True).token_ids), flush=True)
        model.close()
        """,
        emulated_library,
    ).splitlines()
    assert "a process that was forked from one that used the GPU" in printed[0]
    assert printed[1] == "2"
