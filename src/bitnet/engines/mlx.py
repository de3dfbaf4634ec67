"""The engine that computes on MLX: on the GPU of Apple silicon, and anywhere else MLX is installed.

It is the native engine, whose model file, scheduler, sampling and exact head it uses, with another forward
pass. A model is first used after it was checked on this very machine (`mlx_check`); the verdict is
remembered.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet import _native
from bitnet.engines.native import NativeEngine
from bitnet.errors import BitNetError, DeviceError, ValidationError
from bitnet.values import QuantType

if TYPE_CHECKING:
    from bitnet.engines import tiles
    from bitnet.engines.mlx_runner import MlxWeights
    from bitnet.runtime.runner import Runner

logger = logging.getLogger("bitnet")

INSTALL = "pip install 'bitnet-cpp[mlx]'"
# The process whose MLX was used: neither Metal nor MLX's threads survive a fork.
_used_by: int | None = None


def is_apple_silicon() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"


def is_installed() -> bool:
    return importlib.util.find_spec("mlx") is not None


def require() -> None:
    """Raises ValidationError if MLX is not installed, or cannot be imported."""
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        reason = "it is not installed" if not is_installed() else f"it cannot be imported ({error})"
        raise ValidationError(
            f"the engine mlx needs the package mlx, and {reason}: {INSTALL}, or set engine to native",
            field="engine",
        ) from None


def require_gpu(n_gpu_layers: int) -> None:
    """Raises ValidationError if MLX is not installed, or has no GPU."""
    require()
    import mlx.core as mx

    if mx.default_device() != mx.gpu:
        raise ValidationError(
            f"n_gpu_layers={n_gpu_layers} asks for a GPU, and MLX finds none here (a virtual machine?); set "
            "n_gpu_layers to 0",
            field="n_gpu_layers",
        )


def describe() -> str:
    """MLX and its device, such as "0.32.4, gpu: Apple M3 Pro". Only where it can be imported."""
    import mlx.core as mx

    device = mx.default_device()
    name = mx.device_info().get("device_name", "") if device == mx.gpu else platform.machine()
    return f"{mx.__version__}, {device.type.name}: {name or 'unnamed'}"


def load(
    path: Path, *, fall_back: bool, n_gpu_layers: int, main_gpu: int, low_vram: bool, **options: Any
) -> NativeEngine:
    """A model on MLX, once it has passed its check on this machine.

    fall_back: compute it on the CPU, with a warning, if it does not pass; else that is a DeviceError.
    The other options are those of bitnet.BitNet. Raises ValidationError for those that MLX has no way to
    obey, and what loading a model raises.
    """
    require()
    from bitnet.engines import mlx_check

    if main_gpu != 0:
        raise ValidationError(
            f"main_gpu={main_gpu}: MLX knows one device, which is 0; leave main_gpu out", field="main_gpu"
        )
    if options["kv_type"] != "f16":
        raise ValidationError(
            f"the engine mlx keeps keys and values as f16, not {options['kv_type']}; set kv_type to f16, or "
            "engine to native",
            field="kv_type",
        )
    if _used_by not in (None, os.getpid()):
        return _otherwise(
            path,
            "this process was forked from one that used MLX, which does not survive that; start workers with "
            "the method 'spawn'",
            fall_back,
            options,
        )
    engine = MlxEngine(path, **options)
    try:
        verdict = mlx_check.remembered(path, options)
        if verdict is None:
            logger.info("%s: checking MLX against the CPU, once for this model", path.name)
            verdict = mlx_check.check(engine)
            mlx_check.remember(path, options, verdict)
    except BaseException:
        engine.close()
        raise
    if not verdict.passed:
        engine.close()
        return _otherwise(
            path,
            f"MLX ({describe()}) computes it wrongly here: {verdict.summary}. `bitnet doctor --check` tells "
            "more, and checks it again",
            fall_back,
            options,
        )
    n_layers = engine.info.n_layers
    if 0 < n_gpu_layers < n_layers:
        logger.warning(
            "n_gpu_layers=%d: MLX computes all %d layers, because CPU and GPU share their memory",
            n_gpu_layers,
            n_layers,
        )
    if low_vram:
        logger.warning("low_vram has no effect with MLX: CPU and GPU share their memory")
    return engine


def _otherwise(path: Path, reason: str, fall_back: bool, options: dict[str, Any]) -> NativeEngine:
    if not fall_back:
        raise DeviceError(f"{path}: {reason}; or set engine to native")
    logger.warning("%s: computed on the CPU. %s", path.name, reason)
    return NativeEngine(path, **options)


class MlxEngine(NativeEngine):
    """Implements bitnet.engines.Engine. Use `load`, which checks that it computes rightly."""

    name = "mlx"
    survives_fork = False
    _weights: MlxWeights | None = None

    def _choose_tiles(
        self,
        model: _native.Model,
        quant_type: QuantType,
        use_pretuned: bool,
        kernel_params: Iterable[tuple[str, int]],
    ) -> tiles.Tiles:
        return {}  # of the CPU's kernels

    def _new_runner(self, model: _native.Model) -> Runner:
        global _used_by
        from bitnet.engines.mlx_runner import MlxRunner, MlxWeights

        _used_by = os.getpid()
        try:
            if self._weights is None:
                self._weights = MlxWeights(model)
            return MlxRunner(model, self._weights, n_blocks=self._n_blocks, n_threads=self._n_threads)
        except BitNetError:
            raise
        except Exception as error:  # such as memory that is not enough
            raise DeviceError(f"MLX cannot hold the model: {error}; set engine to native") from error

    def close(self) -> None:
        super().close()
        self._weights = None

    @property
    def model_and_weights(self) -> tuple[_native.Model, MlxWeights]:
        """For the check."""
        assert isinstance(self._model, _native.Model)
        assert self._weights is not None
        return self._model, self._weights
