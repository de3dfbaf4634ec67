"""A progress bar for people: on a terminal, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(title: str) -> Iterator[Callable[[int], Callable[[int], None]]]:
    """Gives a function that takes the number of bytes there are in all, and returns one that takes how many
    more are done."""
    if not sys.stderr.isatty():
        yield lambda total: lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:

        def begin(total: int) -> Callable[[int], None]:
            task = shown.add_task(title, total=total)
            return lambda done: shown.advance(task, done)

        yield begin
