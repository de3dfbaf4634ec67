"""`bitnet doctor`: what this machine computes on, what is used of it, and whether it computes right."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from bitnet.cli import options
from bitnet.cli.terminal import write
from bitnet.errors import BitNetError


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A GGUF model file for --check. Default: the bundled model."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Compare what MLX and the CPU compute, product by product and token by token."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    config: options.Config = None,
) -> None:
    """List what can compute here, what is used of it, and why not.

    With --check the status is 1 if the results differ.

    Example: bitnet doctor --check model.gguf
    """
    from bitnet import _native, models
    from bitnet.cli import doctor_mlx

    settings = options.settings(config, model=model, mode="direct")
    kernels = _native.cpu_kernels()
    report: dict[str, Any] = {
        "cpu": {"kernels": kernels, "cores": _native.physical_cores()},
        "mlx": doctor_mlx.report(settings),
    }

    def show(text: str) -> None:
        if not as_json:
            write(text)

    lines = ["CPU", f"  cores     {report['cpu']['cores']}", f"  kernels   {', '.join(kernels)}", ""]
    show("\n".join([*lines, *doctor_mlx.lines(report["mlx"])]) + "\n")
    if check:
        path = models.find(settings.direct_options()["model"])
        report["mlx"]["checks"] = doctor_mlx.check(path, settings, show)
    if as_json:
        write(json.dumps(report, indent=2) + "\n")
    if not all(finding["passed"] for finding in report["mlx"].get("checks", ())):
        raise BitNetError(
            "MLX does not compute what the CPU does: set engine to native, and please report this with the "
            f"output of bitnet doctor --check --json ({path})"
        )
