"""Command-line options that several commands have: how a model is loaded, and how it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet.values import GenerateOptions, Request, Sampling

if TYPE_CHECKING:
    from bitnet.config import BitNetConfig

_SAMPLING = Sampling()

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A GGUF file or a Hugging Face folder; or a name that bitnet list --remote shows or "
        "org/name[:file], which is downloaded if it is not here. Default: the bundled model.",
    ),
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="A YAML file with a bitnet block (see config/bitnet.yaml). Options of the command line win over "
        "it. Default: the file that $BITNET_CONFIG names, if it is set.",
    ),
]
System = Annotated[
    str | None,
    typer.Option("--system", metavar="TEXT", help="What the model is told before the conversation."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        help="Compute threads. Default, and at most: one for each physical core.",
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--ctx",
        metavar="N",
        help="Tokens of conversation and answer together; 0: as many as the model was made for.",
    ),
]
KvType = Annotated[
    str | None,
    typer.Option(
        "--kv-type",
        metavar="TYPE",
        help="How keys and values are kept: f16 (default), or q8_0 in half the memory.",
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="NAME",
        help="How the file's ternary tensors are laid out, where it does not say. I2_S: x128 (default), "
        "arm64 or row4; TL1: preset. A wrong one gives gibberish. auto: the one that predicts a small text "
        "best, found out once.",
    ),
]
TlConfig = Annotated[
    str | None,
    typer.Option(
        "--tl-config",
        metavar="FILE",
        help="The kernel_config.ini that a TL1 or TL2 file was made with. Default: the tiles that bitnet.cpp "
        "makes for the published models.",
    ),
]
Activation = Annotated[
    str | None,
    typer.Option(
        "--activation",
        metavar="NAME",
        help="relu2 or silu, for a file whose architecture does not tell. Default: by the file.",
    ),
]
Scales = Annotated[
    str | None,
    typer.Option(
        "--scales",
        metavar="HOW",
        help="Whether the file's scales multiply (default) or divide; auto: found out, as by --layout auto.",
    ),
]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        metavar="KEY=VALUE",
        help="What is known better than by the file, such as tokenizer.ggml.pre=llama-bpe, "
        "tokenizer.chat_template=@FILE, tokenizer.ggml.eot_token_id=TOKEN or pooling_type=last. May be given "
        "several times.",
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="Who computes: native, mlx or llama_cpp. Default: auto, which is native; but mlx on Apple "
        "silicon if --gpu-layers is not 0.",
    ),
]
GpuLayers = Annotated[
    int | None,
    typer.Option(
        "--gpu-layers",
        metavar="N",
        min=-1,
        help="Layers to compute on a GPU; -1: all of them, 0 (default): none. See bitnet doctor.",
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        metavar="N",
        help=f"Tokens of the answer at most. Default: {Request.__dataclass_fields__['max_tokens'].default}.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="X",
        help=f"0: always the likeliest token; higher: more varied. Default: {_SAMPLING.temperature:g}.",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        metavar="N",
        help=f"Choose among the N likeliest tokens; 0: all. Default: {_SAMPLING.top_k}.",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        metavar="X",
        help=f"Choose among the likeliest that together have this probability. Default: {_SAMPLING.top_p:g}.",
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        metavar="X",
        help=f"Leave out tokens less likely than X times the likeliest. Default: {_SAMPLING.min_p:g}.",
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty",
        metavar="X",
        help=f"Above 1: say less often what was said. Default: {_SAMPLING.repetition_penalty:g}.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", help="The same seed gives the same answer. Default: random."),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", metavar="TEXT", help="End the answer before this text. May be given several times."
    ),
]


def settings(
    config: str | None, *, model: str | None = None, override: list[str] | None = None, **options: Any
) -> BitNetConfig:
    """The configuration file, if there is one, and what the command line says otherwise.

    model: a file, or in mode api the name of a model. override: KEY=VALUE. options: keys of the schema;
    None = not given. Raises ConfigError and ValidationError.
    """
    from bitnet.config import load  # late: --help needs no schema

    if override:
        from bitnet.models import overrides

        options["metadata_overrides"] = overrides.parse(override)
    found = load(config, **options)
    if model is not None:
        found = load(found, **{"model" if found.mode == "api" else "model_path": model})
    # Without a file, all cores are used: 8 is Orbit's default.
    if options.get("n_threads") is None and not found.given("n_threads"):
        found = load(found, n_threads=0)
    return found


def given(**values: Any) -> GenerateOptions:
    """The options that were given on the command line."""
    # mypy cannot see that the names are those of GenerateOptions; Request.build checks them.
    return {name: value for name, value in values.items() if value is not None}  # type: ignore[return-value]
