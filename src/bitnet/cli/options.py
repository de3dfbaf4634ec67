"""Command-line options that several commands have: how a model is loaded, and how it answers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bitnet.values import GenerateOptions, Request, Sampling

_SAMPLING = Sampling()

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="FILE", help="A GGUF model file. Default: the bundled model."),
]
System = Annotated[
    str | None,
    typer.Option("--system", metavar="TEXT", help="What the model is told before the conversation."),
]
Threads = Annotated[
    int,
    typer.Option(
        "--threads", metavar="N", help="Compute threads; 0: one for each physical core.", show_default=True
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
    str,
    typer.Option(
        "--kv-type",
        metavar="TYPE",
        help="How keys and values are kept: f16, or q8_0 in half the memory.",
        show_default=True,
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


def given(**values: Any) -> GenerateOptions:
    """The options that were given on the command line."""
    # mypy cannot see that the names are those of GenerateOptions; Request.build checks them.
    return {name: value for name, value in values.items() if value is not None}  # type: ignore[return-value]
