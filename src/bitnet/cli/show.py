"""`bitnet show`: what a model file holds, what was repaired in it, and the memory it needs."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from typing import Annotated, Any

import typer

from bitnet import models
from bitnet.cli import options
from bitnet.cli.terminal import printable, write
from bitnet.errors import ModelFileError
from bitnet.values import ModelInfo

# Longer lists (vocabularies) and strings (chat templates) are shortened for the screen; --json has them
# whole.
SHOWN_ITEMS = 6
SHOWN_CHARACTERS = 400


def show(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A GGUF model file. Default: the bundled model.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    ctx: options.Context = None,
    kv_type: options.KvType = None,
    layout: options.Layout = None,
    tl_config: options.TlConfig = None,
    activation: options.Activation = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch", metavar="N", help="Requests computed together; for the memory needed. Default: 2."
        ),
    ] = None,
    config: options.Config = None,
) -> None:
    """Show what a model file holds: metadata, tensors, what was repaired, the memory needed.

    Example: bitnet show model.gguf
    """
    from bitnet.model import BitNet  # late: usage errors and --help need no engine
    from bitnet.models.inspect import inspect

    settings = options.settings(
        config,
        model=model,
        n_ctx=ctx,
        n_batch=batch,
        kv_type=kv_type,
        layout=layout,
        tl_config=tl_config,
        activation=activation,
        mode="direct",
    )
    path = models.find(settings.direct_options()["model"])
    report = inspect(path)
    # Warnings are shown below, among the rest.
    logging.getLogger("bitnet").addFilter(lambda record: record.levelno != logging.WARNING)
    info, problem = None, None
    try:
        with BitNet.from_config(settings) as loaded:
            info = loaded.info
    except ModelFileError as error:
        problem = str(error)
    if as_json:
        everything = {**report.to_dict(), "loaded": info and dataclasses.asdict(info), "problem": problem}
        write(json.dumps(_finite(everything), indent=2) + "\n")
        return
    lines = [f"{report.path}: GGUF {report.version}, {_size(report.n_bytes)}", "", "Metadata"]
    lines += [f"  {printable(key)} = {_shorten(value)}" for key, value in report.metadata.items()]
    lines += ["", f"Tensors ({len(report.tensors)})"]
    rows = [
        (printable(tensor.name), tensor.type, " x ".join(map(str, tensor.shape)), _size(tensor.n_bytes))
        for tensor in report.tensors
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    lines += [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    ]
    lines += [
        "",
        *(_describe(info) if info is not None else ["Cannot be run", f"  {printable(problem or '')}"]),
    ]
    write("\n".join(line.rstrip() for line in lines) + "\n")


def _describe(info: ModelInfo) -> list[str]:
    kv_for = f"{info.n_batch} x {info.n_ctx} tokens, {info.kv_type}"
    lines = [
        "Model",
        f"  architecture  {printable(info.architecture)}, {info.activation}",
        f"  parameters    {info.n_parameters:,}",
        f"  layers        {info.n_layers} of {info.hidden_size}, feed-forward {info.ffn_size}",
        f"  attention     {info.n_heads} heads of {info.head_dim}, {info.n_kv_heads} for keys and values",
        f"  vocabulary    {info.vocab_size}",
        f"  context       {info.context_length} tokens",
        f"  chat          {'yes' if info.has_chat_template else 'no chat template'}",
        f"  weights       {info.ternary_type}{info.layout and f', layout {info.layout}'}",
        f"  kernels       {info.kernels}, {info.n_threads} threads",
        "",
        "Memory needed",
        f"  ternary weights      {_size(info.ternary_bytes)}",
        f"  embedding and head   {_size(info.head_bytes)} ({info.embd_type})",
        f"  keys and values      {_size(info.kv_bytes)} ({kv_for})",
        f"  together             {_size(info.memory_bytes)}",
    ]
    for title, sentences in (("Repaired", info.repairs), ("Warnings", info.warnings)):
        lines += ["", title, *(f"  {printable(sentence)}" for sentence in sentences or ("nothing",))]
    return lines


def _shorten(value: Any) -> str:
    if isinstance(value, list):
        items = ", ".join(_shorten(item) for item in value[:SHOWN_ITEMS])
        return f"[{items}]" if len(value) <= SHOWN_ITEMS else f"[{items}, ... {len(value)} in all]"
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        return f"{value[:SHOWN_CHARACTERS]!r}... {len(value)} characters in all"
    return f"{value:.7g}" if isinstance(value, float) else repr(value)


def _size(n_bytes: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if n_bytes >= 1 << shift:
            return f"{n_bytes / (1 << shift):.1f} {unit}"
    return f"{n_bytes} bytes"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: those become strings."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
