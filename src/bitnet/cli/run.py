"""`bitnet run`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from bitnet.cli import options
from bitnet.cli.notice import note_bundled
from bitnet.cli.terminal import decode, note_ending, write, write_answer
from bitnet.errors import ValidationError
from bitnet.values import Delta


def run(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help='The question or text; "-" reads it from standard input.')
    ],
    model: options.Model = None,
    system: options.System = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue PROMPT as plain text, without the model's chat format.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole reply as JSON, with token ids, usage and timings.")
    ] = False,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    threads: options.Threads = None,
    ctx: options.Context = None,
    kv_type: options.KvType = None,
    layout: options.Layout = None,
    tl_config: options.TlConfig = None,
    activation: options.Activation = None,
    scales: options.Scales = None,
    override: options.Override = None,
    engine: options.Engine = None,
    gpu_layers: options.GpuLayers = None,
    config: options.Config = None,
) -> None:
    """Answer one prompt and leave.

    The prompt is put into the model's chat format where it has one, otherwise continued as plain text.

    Example: bitnet run --temperature 0 "What is the capital of France?"
    """
    from bitnet.model import BitNet  # late: usage errors and --help need no engine

    if prompt == "-":
        prompt = decode(sys.stdin.buffer.read()).removesuffix("\n")
    how = options.given(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
    )
    settings = options.settings(
        config,
        model=model,
        n_ctx=ctx,
        n_threads=threads,
        n_batch=1,
        kv_type=kv_type,
        layout=layout,
        tl_config=tl_config,
        activation=activation,
        scales=scales,
        override=override,
        engine=engine,
        n_gpu_layers=gpu_layers,
    )
    with BitNet.from_config(settings) as loaded:
        if raw or not loaded.info.has_chat_template:
            if system is not None:
                raise ValidationError("--system needs a chat format: without one, put it into PROMPT")
            generation = loaded.stream(prompt, **how)
        else:
            messages = [] if system is None else [{"role": "system", "content": system}]
            generation = loaded.stream_chat([*messages, {"role": "user", "content": prompt}], **how)
        if not as_json:
            note_bundled(model)
        if as_json:
            write(json.dumps(generation.result().to_dict(), ensure_ascii=False, indent=2) + "\n")
        else:
            write_answer(generation if settings.stream else [Delta(generation.result().text)])
            note_ending(generation.result())
