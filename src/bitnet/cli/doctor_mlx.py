"""The part of `bitnet doctor` about MLX: whether it is here, what it computes on, and whether rightly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitnet.cli.terminal import printable
from bitnet.config import BitNetConfig
from bitnet.engines import mlx, selection
from bitnet.errors import DeviceError, ValidationError
from bitnet.models import weight_cache


def report(settings: BitNetConfig) -> dict[str, Any]:
    """version and device, or why there is none (problem); used: what a model with these settings runs on."""
    found: dict[str, Any] = {"device": None, "problem": None}
    try:
        mlx.require()
        found["device"] = mlx.describe()
    except ValidationError as error:
        found["problem"] = str(error)
    found["used"] = is_used(settings)
    return found


def is_used(settings: BitNetConfig) -> bool:
    """Whether a model that is loaded with these settings is computed by MLX."""
    try:
        load, _ = selection.choose(
            settings.engine,
            n_gpu_layers=settings.n_gpu_layers,
            main_gpu=settings.main_gpu,
            low_vram=settings.low_vram,
        )
    except ValidationError:
        return False
    return load is mlx.load


def lines(found: dict[str, Any]) -> list[str]:
    return [
        "MLX",
        f"  device    {printable(found['device'] or 'none')}",
        *([f"            {printable(found['problem'])}"] if found["problem"] else []),
        f"  used      {'yes' if found['used'] else 'no'}",
    ]


def check(path: Path, settings: BitNetConfig, show: Callable[[str], None]) -> list[dict[str, Any]]:
    """Compare MLX with the CPU, whatever was found before; the verdict is remembered. The findings.

    Raises ValidationError without MLX, what loading a model raises, and OSError without a cache directory.
    """
    from bitnet.engines import mlx_check
    from bitnet.model import BitNet

    mlx.require()
    weight_cache.own_folder()  # where the verdict goes
    mlx_check.forget(path)
    show(f"\nCheck of MLX ({printable(mlx.describe())}) with {printable(str(path))}\n")
    try:
        BitNet.from_config(settings, model_path=str(path), engine="mlx", n_gpu_layers=0).close()
    except DeviceError:
        if mlx_check.last(path) is None:
            raise
    verdict = mlx_check.last(path)
    assert verdict is not None
    for finding in verdict.findings:
        show(f"  {'ok' if finding.passed else 'FAILED':8}{finding.name}: {finding.detail}\n")
    return [asdict(finding) for finding in verdict.findings]
