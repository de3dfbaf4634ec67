"""bitnet doctor: what there is, what is used, and the check of MLX."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from command import bitnet, environment

from bitnet import _native


def test_what_there_is() -> None:
    told = bitnet("doctor")
    assert told.returncode == 0
    assert f"cores     {_native.physical_cores()}\n" in told.stdout
    assert _native.cpu_kernels()[0] in told.stdout
    assert "MLX\n  device    " in told.stdout
    for package, extra in (("mlx", "mlx"), ("llama_cpp", "llama-cpp")):
        missing = importlib.util.find_spec(package) is None
        assert (f"pip install 'bitnet-cpp[{extra}]'" in told.stdout) == missing


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is not None, reason="llama-cpp-python is installed")
def test_llama_cpp_without_the_package() -> None:
    told = bitnet("run", "Hi", "--engine", "llama_cpp")
    assert told.returncode == 1
    assert "needs the package llama-cpp-python, and it is not installed: pip install" in told.stderr


@pytest.mark.llama_cpp
def test_llama_cpp_with_the_package() -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    report = json.loads(bitnet("doctor", "--json").stdout)
    assert report["llama_cpp"]["problem"] is None
    assert report["llama_cpp"]["version"].startswith(f"{llama_cpp.__version__}, ")
    told = bitnet("run", "Hi", "--engine", "llama_cpp")
    assert told.returncode == 1
    assert "llama.cpp computes BitNet models with silu only" in told.stderr


@pytest.mark.skipif(importlib.util.find_spec("mlx") is not None, reason="the package mlx is installed")
def test_a_check_without_the_package() -> None:
    told = bitnet("doctor", "--check")
    assert told.returncode == 1
    assert "the engine mlx needs the package mlx" in told.stderr


@pytest.mark.mlx
def test_the_check_is_shown_and_remembered(base_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlx.core", reason="the package mlx is not installed")
    told = bitnet("doctor", "--check", base_path, env=environment(BITNET_CACHE_DIR=str(tmp_path)))
    assert told.returncode == 0, told.stderr
    assert "used      no\n" in told.stdout
    assert "ok      tokens: 16 of 16 greedy tokens are the CPU's\n" in told.stdout
    assert told.stdout.count("dot products exact") == 4
    (file,) = tmp_path.glob("mlx-check-*.json")
    assert json.loads(file.read_text())["model"] == str(base_path)


@pytest.mark.mlx
def test_as_json(tmp_path: Path) -> None:
    pytest.importorskip("mlx.core", reason="the package mlx is not installed")
    config = tmp_path / "bitnet.yaml"
    config.write_text("engine: mlx\n")
    report = json.loads(bitnet("doctor", "--json", "--config", config).stdout)
    assert report["mlx"]["used"] is True
    assert report["mlx"]["problem"] is None
    assert report["mlx"]["device"].split(", ")[1].startswith(("cpu", "gpu"))
