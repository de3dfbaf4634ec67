"""`bitnet doctor`: what this machine computes on, what is used of it, and whether a GPU computes right."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet.cli import options
from bitnet.cli.terminal import printable, size_text, write
from bitnet.errors import BitNetError, DeviceError, ValidationError

if TYPE_CHECKING:
    from bitnet.engines.gpu import Gpus


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A GGUF model file for --check. Default: the bundled model."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Compare what GPU and CPU compute, product by product and token by token, and time the GPU.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    config: options.Config = None,
) -> None:
    """List processors and GPUs, what is used of them, and why not.

    With --check the status is 1 if GPU and CPU differ.

    Example: bitnet doctor --check model.gguf
    """
    from bitnet import _native, models
    from bitnet.cli import doctor_mlx
    from bitnet.engines import gpu

    settings = options.settings(config, model=model, mode="direct")
    try:
        found = gpu.find()
    except DeviceError as error:
        found = gpu.Gpus(library=gpu.library(), devices=(), problem=str(error))
    report: dict[str, Any] = {
        "cpu": {"kernels": _native.cpu_kernels(), "cores": _native.physical_cores()},
        "gpu": {
            "library": found.library,
            "problem": found.problem,
            "devices": [_device(device) for device in found.devices],
        },
        "settings": {name: getattr(settings, name) for name in ("n_gpu_layers", "main_gpu", "low_vram")},
        "used": _used(found, settings.n_gpu_layers, settings.main_gpu),
    }

    def show(text: str) -> None:
        if not as_json:
            write(text)

    report["mlx"] = doctor_mlx.report(settings)
    report["llama_cpp"] = _llama_cpp()
    if report["mlx"]["used"]:
        report["used"] = f"MLX ({report['mlx']['device']})"
    elif settings.engine == "llama_cpp":
        report["used"] = f"llama.cpp ({report['llama_cpp']['version'] or 'which is not there'})"
    show(_described(report, doctor_mlx.lines(report["mlx"])))
    failed = False
    if check:
        path = models.find(settings.direct_options()["model"])
        # Whatever there is, if not what the settings choose.
        has_gpu = bool(found.devices) and not report["mlx"]["used"]
        if not has_gpu and report["mlx"]["problem"] is None:
            report["mlx"]["checks"] = doctor_mlx.check(path, settings, show)
            failed = not all(finding["passed"] for finding in report["mlx"]["checks"])
        else:
            failed = _check(path, found, settings.main_gpu, report, show)
    if as_json:
        write(json.dumps(report, indent=2) + "\n")
    if failed:
        raise BitNetError(
            "the GPU does not compute what the CPU does: set n_gpu_layers to 0 and engine to native, and "
            f"please report this with the output of bitnet doctor --check --json ({path})"
        )


def _llama_cpp() -> dict[str, Any]:
    """Its version and whether it has a GPU, or why there is none (problem)."""
    from bitnet.engines import llama_cpp

    try:
        llama_cpp.require()
    except ValidationError as error:
        return {"version": None, "problem": str(error)}
    return {"version": llama_cpp.describe(), "problem": None}


def _device(device: Any) -> dict[str, Any]:
    names = ("name", "capability", "n_processors", "total_bytes", "free_bytes", "emulated", "problem")
    return {name: getattr(device, name) for name in names}


def _used(found: Gpus, n_gpu_layers: int, main_gpu: int) -> str:
    """What a model that is loaded with these settings is computed on."""
    if n_gpu_layers == 0:
        usable = any(not device.problem for device in found.devices)
        return "the CPU (n_gpu_layers is 0" + ("; -1 uses the GPU)" if usable else ")")
    if found.problem:
        return f"nothing: n_gpu_layers is {n_gpu_layers}, and {found.problem}"
    if main_gpu >= len(found.devices):
        return f"nothing: main_gpu is {main_gpu}, and there are {len(found.devices)} devices"
    if problem := found.devices[main_gpu].problem:
        return f"nothing: device {main_gpu} cannot be used: {problem}"
    layers = "all layers" if n_gpu_layers == -1 else f"the first {n_gpu_layers} layers"
    return f"GPU {main_gpu}, for {layers}"


def _described(report: dict[str, Any], mlx: list[str]) -> str:
    cpu, gpu = report["cpu"], report["gpu"]
    lines = [
        "CPU",
        f"  cores     {cpu['cores']}",
        f"  kernels   {cpu['kernels'][0]}"
        + (f" (also {', '.join(cpu['kernels'][1:])})" * (len(cpu["kernels"]) > 1)),
        "",
        "GPU",
    ]
    if gpu["library"] is not None:
        lines.append(f"  library   {printable(gpu['library'])}")
    if gpu["problem"]:
        lines.append(f"  none      {printable(gpu['problem'])}")
    for index, device in enumerate(gpu["devices"]):
        kind = "emulated by this machine's processor, for tests" if device["emulated"] else ""
        problem = printable(device["problem"])
        lines += [
            f"  {index}         {printable(device['name'])}" + (f" ({kind})" if kind else ""),
            f"            compute capability {device['capability']}, {device['n_processors']} processors, "
            f"{size_text(device['free_bytes'])} of {size_text(device['total_bytes'])} free",
            f"            {f'cannot be used: {problem}' if problem else 'can be used'}",
        ]
    llama_cpp = report["llama_cpp"]
    lines += ["", *mlx, "", "llama.cpp", f"  version   {printable(llama_cpp['version'] or 'none')}"]
    if llama_cpp["problem"]:
        lines.append(f"            {printable(llama_cpp['problem'])}")
    lines += ["", f"Used: {printable(report['used'])}"]
    return "\n".join(lines) + "\n"


def _check(
    path: Any, found: Gpus, main_gpu: int, report: dict[str, Any], show: Callable[[str], None]
) -> bool:
    """Adds the checks to the report, and shows them as they come. True = one of them failed."""
    from bitnet.engines import gpu_check

    if found.problem or main_gpu >= len(found.devices) or found.devices[main_gpu].problem:
        why = _used(found, -1, main_gpu).removeprefix("nothing: ")
        raise DeviceError(
            "; ".join(filter(None, [f"there is no GPU to check: {why}", report["mlx"]["problem"]]))
        )
    assert found.library is not None
    device = found.devices[main_gpu]
    report["checks"], report["speeds"] = [], []
    show(f"\nCheck with {printable(str(path))}\n")
    for result in gpu_check.compare(path, found.library, main_gpu):
        report["checks"].append({"name": result.name, "passed": result.passed, "detail": result.detail})
        show(f"  {'ok' if result.passed else 'FAILED':8}{result.name}: {result.detail}\n")
    failed = not all(one["passed"] for one in report["checks"])
    if device.emulated or failed:
        if device.emulated:
            show("  not timed: the device is emulated\n")
        return failed
    for speed in gpu_check.speeds(path, found.library, main_gpu):
        report["speeds"].append(
            {"name": speed.name, "value": speed.value, "unit": speed.unit, "detail": speed.detail}
        )
        show(f"  {'time':8}{speed.name}: {speed.detail}\n")
    return failed
