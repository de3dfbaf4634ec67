"""`bitnet perplexity`: how well a model predicts a text."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bitnet.cli import measuring, options
from bitnet.cli.terminal import finite, write


def perplexity(
    file: measuring.File,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A GGUF model file. Default: the bundled model.")
    ] = None,
    window: measuring.Window = None,
    stride: measuring.Stride = None,
    chunking: measuring.Chunks = "sliding",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    threads: options.Threads = None,
    kv_type: options.KvType = None,
    layout: options.Layout = None,
    tl_config: options.TlConfig = None,
    activation: options.Activation = None,
    scales: options.Scales = None,
    override: options.Override = None,
    config: options.Config = None,
) -> None:
    """Measure how well a model predicts a text: its perplexity, the lower the better.

    A model that is read wrongly, or damaged, has a far higher one than it should. Numbers are comparable for
    the same text, vocabulary, --window and --chunking only.

    Example: bitnet perplexity model.gguf --file book.txt
    """
    from bitnet import evaluation
    from bitnet.model import BitNet  # late: usage errors and --help need no engine

    text = measuring.read_text(file)
    settings = options.settings(
        config,
        model=model,
        n_ctx=window,
        n_threads=threads,
        n_batch=1,
        kv_type=kv_type,
        layout=layout,
        tl_config=tl_config,
        activation=activation,
        scales=scales,
        override=override,
        mode="direct",
    )
    with BitNet.from_config(settings) as loaded, measuring.progress_bar("perplexity") as on_progress:
        result = evaluation.perplexity(
            loaded,
            text,
            window=window,
            stride=stride,
            chunking=measuring.as_chunking(chunking),
            on_progress=on_progress,
        )
    if as_json:
        write(json.dumps(finite(result.to_dict()), indent=2) + "\n")
        return
    write(
        f"perplexity         {result.perplexity:.4f} +/- {result.error:.4f}\n"
        f"mean negative log  {result.mean_nll:.5f} +/- {result.mean_nll_error:.5f} nats a token\n"
        f"tokens             {result.n_tokens} scored, in {result.n_windows} windows of {result.window} "
        f"({result.chunking})\n"
        f"speed              {result.tokens_per_second:.1f} tokens/s\n"
    )
