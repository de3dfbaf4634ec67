"""Which engine computes a model in this process: what the user says, or what the machine has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bitnet.engines import Engine, llama_cpp, mlx
from bitnet.engines.gpu import required_library
from bitnet.engines.native import NativeEngine
from bitnet.values import EngineChoice

Load = Callable[..., Engine]


def choose(
    engine: EngineChoice, *, n_gpu_layers: int, main_gpu: int, low_vram: bool
) -> tuple[Load, dict[str, Any]]:
    """What loads a model file, and options for it beside those of NativeEngine.

    auto: the CPU, or where n_gpu_layers asks for a GPU, MLX on Apple silicon. Raises ValidationError for what
    is not there, saying how to get it.
    """
    gpu = {"n_gpu_layers": n_gpu_layers, "main_gpu": main_gpu, "low_vram": low_vram}
    if engine == "mlx":
        mlx.require()
        return mlx.load, {"fall_back": False, **gpu}
    if engine == "llama_cpp":
        llama_cpp.require()
        return llama_cpp.LlamaCppEngine, gpu
    if engine == "auto" and n_gpu_layers != 0 and mlx.is_apple_silicon():
        mlx.require_gpu(n_gpu_layers)
        return mlx.load, {"fall_back": True, **gpu}
    if n_gpu_layers != 0:
        required_library(n_gpu_layers)
        return NativeEngine, gpu
    return NativeEngine, {}  # without layers there, the others do not matter
