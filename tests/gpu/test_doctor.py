"""`bitnet doctor`, without a GPU, with an emulated one, and with one that computes wrongly."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from bitnet import _native
from bitnet.engines import gpu, gpu_check
from cli.command import bitnet, environment
from reference.model_factory import ModelSpec, make_model


@pytest.fixture
def env(emulated_library: str) -> dict[str, str]:
    return environment(**{gpu.ENVIRONMENT: emulated_library})


def test_without_a_gpu() -> None:
    done = bitnet("doctor", env=environment(**{gpu.ENVIRONMENT: ""}))
    if gpu.library() is None:
        assert "none      this build has no CUDA library" in done.stdout
    assert "Used: the CPU (n_gpu_layers is 0" in done.stdout
    assert _native.cpu_kernels()[0] in done.stdout


def test_devices(env: dict[str, str]) -> None:
    done = bitnet("doctor", env=env)
    assert "0         emulated device (emulated by this machine's processor, for tests)" in done.stdout
    assert "compute capability 9.0, 4 processors, 2.0 GiB of 2.0 GiB free" in done.stdout
    assert "can be used" in done.stdout
    assert "Used: the CPU (n_gpu_layers is 0; -1 uses the GPU)" in done.stdout


def test_why_not(env: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "bitnet.yaml"
    file.write_text("bitnet: {n_gpu_layers: -1}\n")
    assert "Used: GPU 0, for all layers" in bitnet("doctor", "--config", file, env=env).stdout
    none = bitnet("doctor", "--config", file, env=env | {"BITNET_EMULATED_DEVICES": "0"})
    assert "Used: nothing: n_gpu_layers is -1, and there is no NVIDIA driver" in none.stdout
    old = bitnet("doctor", "--config", file, env=env | {"BITNET_EMULATED_CAPABILITY": "6.1"})
    assert "cannot be used: compute capability 6.1 is too old" in old.stdout
    broken = bitnet("doctor", env=environment(**{gpu.ENVIRONMENT: "/nowhere.so"}))
    assert broken.returncode == 0
    assert "none      the CUDA library '/nowhere.so' cannot be loaded" in broken.stdout


def test_check(env: dict[str, str], models_folder: Path) -> None:
    path = make_model(
        ModelSpec(hidden_size=64, n_heads=2, n_kv_heads=1, head_dim=32, ffn_size=72), models_folder
    )
    done = bitnet("doctor", "--check", path, env=env)
    assert done.returncode == 0, done.stderr
    assert "ok      products with 72 x 64: all integers equal" in done.stdout
    assert "ok      128 tokens, all layers, low_vram: the same bits, the same tokens" in done.stdout
    assert "ok      128 tokens, 1 of 2 layers: the same bits, the same tokens" in done.stdout
    assert done.stdout.count("\n  ok      ") == 7
    assert "not timed: the device is emulated" in done.stdout


def test_json(env: dict[str, str]) -> None:
    report = json.loads(bitnet("doctor", "--json", env=env).stdout)
    assert report["gpu"]["devices"][0]["capability"] == "9.0"
    assert report["used"].startswith("the CPU")


@pytest.mark.skipif(importlib.util.find_spec("mlx") is not None, reason="the package mlx is installed")
def test_check_without_a_gpu() -> None:
    done = bitnet("doctor", "--check", env=environment(**{gpu.ENVIRONMENT: "/nowhere.so"}))
    assert done.returncode == 1
    assert "there is no GPU to check: " in done.stderr


def test_a_device_that_computes_wrongly_is_found(
    emulated_library: str, models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same model with another weight stands for a device that gets it wrong."""
    spec = ModelSpec(hidden_size=64, n_heads=2, n_kv_heads=1, head_dim=32, ffn_size=72)
    right, wrong = (
        make_model(spec, models_folder),
        make_model(ModelSpec(**(vars(spec) | {"seed": 2})), models_folder),
    )
    runner, product = _native.Runner, _native.gpu_product

    def other_weights(model: _native.Model, **options: object) -> _native.Runner:
        if options.get("n_gpu_layers"):
            model = _native.Model(_native.ModelFile(str(wrong)))
        return runner(model, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(_native, "Runner", other_weights)
    results = list(gpu_check.compare(right, emulated_library, 0))
    assert [result.passed for result in results if "tokens" in result.name] == [False] * 3
    monkeypatch.setattr(_native, "gpu_product", lambda *a, **k: (product(*a, **k)[0] + 1, 0.0, 0, 0.0))
    assert not any(result.passed for result in gpu_check.compare(right, emulated_library, 0))
