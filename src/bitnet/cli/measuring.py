"""What `bitnet perplexity` and `bitnet compare` share: their options, the text, and a progress bar."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from bitnet.cli.terminal import decode, note
from bitnet.errors import ValidationError

if TYPE_CHECKING:
    from bitnet.evaluation import Chunking, OnProgress, Progress

File = Annotated[
    str, typer.Option("--file", "-f", metavar="TEXT", help='A text file in UTF-8; "-" reads standard input.')
]
Window = Annotated[
    int | None,
    typer.Option(
        "--window",
        metavar="N",
        min=4,
        help="Tokens computed together. Default: 512, or what the model was made for if that is less.",
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride",
        metavar="N",
        min=1,
        help="Tokens that the window moves on by, and that are scored in it. Default: half of the window.",
    ),
]
Chunks = Annotated[
    str,
    typer.Option(
        "--chunking",
        metavar="HOW",
        help="sliding: windows overlap, every token is scored once. llama.cpp: windows follow each other, "
        "and the second half of each is scored, as llama-perplexity does.",
    ),
]


def as_chunking(value: str) -> Chunking:
    """Checked by the function that gets it."""
    return cast("Chunking", value)


def read_text(file: str) -> str:
    """Raises ValidationError."""
    if file == "-":
        return decode(sys.stdin.buffer.read())
    try:
        return Path(file).read_bytes().decode()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValidationError(f"{file} is not UTF-8: byte {error.start} is {byte:#04x}") from None
    except OSError as error:
        raise ValidationError(f"cannot read {file}: {error.strerror}") from None


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[OnProgress | None]:
    """Draws on the terminal, if stderr is one. Interrupted, it tells how far it came."""
    last: Progress | None = None
    try:
        if not sys.stderr.isatty():

            def keep(progress: Progress) -> None:
                nonlocal last
                last = progress

            yield keep
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[so_far]}"),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=None, so_far="")

            def draw(progress: Progress) -> None:
                nonlocal last
                last = progress
                so_far = f"perplexity {progress.perplexity:.4g}"
                bar.update(task, completed=progress.done, total=progress.total, so_far=so_far)

            yield draw
    except KeyboardInterrupt:
        if last is not None:
            note(
                f"stopped after {last.done} of {last.total} windows; perplexity so far {last.perplexity:.4f}"
            )
        raise
