"""`bitnet compare`: how far a model is from another version of it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bitnet.cli import measuring, options
from bitnet.cli.terminal import finite, write


def compare(
    model_a: Annotated[str, typer.Argument(metavar="MODEL_A", help="A GGUF model file: the reference.")],
    model_b: Annotated[str, typer.Argument(metavar="MODEL_B", help="The file that is held against it.")],
    file: measuring.File,
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
    """Measure how far MODEL_B is from MODEL_A: another conversion, or other types, of the same model.

    Both predict the same text. Refuses models of different vocabularies. Two lossless conversions of the same
    weights have a divergence of 0, and agree everywhere.

    Example: bitnet compare model.gguf smaller.gguf --file book.txt
    """
    from bitnet import evaluation
    from bitnet.model import BitNet  # late: usage errors and --help need no engine

    text = measuring.read_text(file)

    def opened(model: str) -> BitNet:
        return BitNet.from_config(
            options.settings(
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
        )

    with (
        opened(model_a) as a,
        opened(model_b) as b,
        measuring.progress_bar("compare") as on_progress,
    ):
        result = evaluation.compare(
            a,
            b,
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
        f"divergence (KL)     {result.mean_divergence:.3g} +/- {result.divergence_error:.2g} nats a token, "
        f"{result.max_divergence:.3g} at most\n"
        f"same likeliest      {result.top1_agreement:.2%} of tokens\n"
        f"perplexity          {result.perplexity_a:.4f} (A), {result.perplexity_b:.4f} (B)\n"
        f"logits differ by    {result.largest_logit_difference:.3g} at most\n"
        f"tokens              {result.n_tokens}, in {result.n_windows} windows of {result.window} "
        f"({result.chunking})\n"
    )
