"""`bitnet show`: what a model file holds, what was repaired in it, and the memory it needs."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet import models
from bitnet.cli import options
from bitnet.cli.models import describe
from bitnet.cli.terminal import finite, printable, size_text, table, write
from bitnet.errors import ModelFileError
from bitnet.values import ModelInfo

if TYPE_CHECKING:
    from bitnet.models.catalog import CatalogModel

# Longer lists (vocabularies) and strings (chat templates) are shortened for the screen; --json has them
# whole.
SHOWN_ITEMS = 6
SHOWN_CHARACTERS = 400


def show(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A file or a name, as -m takes it. Default: the bundled model."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    ctx: options.Context = None,
    kv_type: options.KvType = None,
    layout: options.Layout = None,
    tl_config: options.TlConfig = None,
    activation: options.Activation = None,
    scales: options.Scales = None,
    override: options.Override = None,
    engine: options.Engine = None,
    gpu_layers: options.GpuLayers = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch", metavar="N", help="Requests computed together; for the memory needed. Default: 2."
        ),
    ] = None,
    config: options.Config = None,
) -> None:
    """Show what a model file holds: metadata, tensors, what was repaired, the memory needed.

    Of a model that is not on this machine: what is known of it.

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
        scales=scales,
        override=override,
        engine=engine,
        n_gpu_layers=gpu_layers,
        mode="direct",
    )
    named = settings.direct_options()["model"]
    entry, is_away = _known(named)
    if entry is not None and is_away:
        # Nothing is downloaded to be looked at.
        if as_json:
            write(entry.model_dump_json(indent=2, exclude_none=True) + "\n")
        else:
            lines = [f"{entry.title} (not on this machine: bitnet pull {entry.name})", *describe(entry)]
            write("\n".join(lines) + "\n")
        return
    path = models.find(named)
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
        if entry is not None:
            everything["catalog"] = entry.model_dump(mode="json", exclude_none=True)
        write(json.dumps(finite(everything), indent=2) + "\n")
        return
    lines = [f"{report.path}: GGUF {report.version}, {size_text(report.n_bytes)}"]
    if entry is not None:
        lines += ["", "Published as", *describe(entry)]
    lines += ["", "Metadata"]
    lines += [f"  {printable(key)} = {_shorten(value)}" for key, value in report.metadata.items()]
    lines += ["", f"Tensors ({len(report.tensors)})"]
    rows = [
        (tensor.name, tensor.type, " x ".join(map(str, tensor.shape)), size_text(tensor.n_bytes))
        for tensor in report.tensors
    ]
    lines += [f"  {line}" for line in table(rows)] if rows else []
    lines += [
        "",
        *(_describe(info) if info is not None else ["Cannot be run", f"  {printable(problem or '')}"]),
    ]
    write("\n".join(line.rstrip() for line in lines) + "\n")


def _known(named: str | None) -> tuple[CatalogModel | None, bool]:
    """The model of the catalog that is meant, if it is one, and whether it has to be downloaded."""
    from bitnet.models import catalog, hub, reference  # late, as above

    wanted = reference.parse(named) if named is not None and not os.path.exists(named) else None
    entry = None if wanted is None else catalog.published_at(wanted.repository)
    return entry, wanted is not None and hub.local_path(wanted) is None


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
        f"  weights       {_reading(info)}",
        f"  kernels       {info.kernels}, {info.n_threads} threads",
        *_gpu(info),
        "",
        "Memory needed",
        f"  ternary weights      {size_text(info.ternary_bytes)}",
        f"  embedding and head   {size_text(info.head_bytes)} ({info.embd_type})",
        f"  keys and values      {size_text(info.kv_bytes)} ({kv_for})",
        f"  together             {size_text(info.memory_bytes)}",
    ]
    for title, sentences in (("Repaired", info.repairs), ("Warnings", info.warnings)):
        lines += ["", title, *(f"  {printable(sentence)}" for sentence in sentences or ("nothing",))]
    return lines


def _reading(info: ModelInfo) -> str:
    found = f"{info.ternary_type}{info.layout and f', layout {info.layout}'}, scales {info.scales}"
    tried = ", ".join(f"{printable(way)} {loss:.2f}" for way, loss in info.losses.items())
    return found + (f" (found out: {tried} nats a token)" if tried else "")


def _gpu(info: ModelInfo) -> list[str]:
    if not info.n_gpu_layers:
        return []
    return [
        f"  GPU           {printable(info.gpu)}: {info.n_gpu_layers} of {info.n_layers} layers, "
        f"{size_text(info.gpu_bytes)}"
    ]


def _shorten(value: Any) -> str:
    if isinstance(value, list):
        items = ", ".join(_shorten(item) for item in value[:SHOWN_ITEMS])
        return f"[{items}]" if len(value) <= SHOWN_ITEMS else f"[{items}, ... {len(value)} in all]"
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        return f"{value[:SHOWN_CHARACTERS]!r}... {len(value)} characters in all"
    return f"{value:.7g}" if isinstance(value, float) else repr(value)
