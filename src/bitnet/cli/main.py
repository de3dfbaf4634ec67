"""Entry point of the `bitnet` command: its subcommands, its log, and what becomes of errors.

Whatever happens, a user sees one clear line on stderr and a status: 1 for errors, 2 for wrong usage, 130
for Ctrl-C.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import bitnet
from bitnet import logs
from bitnet.cli import chat, compare, convert, doctor, models, perplexity, run, serve, show
from bitnet.cli.terminal import complain
from bitnet.errors import BitNetError

INTERRUPTED = 130

app = typer.Typer(
    name="bitnet",
    help="Run BitNet (1.58-bit) language models on this machine.",
    epilog='Try: bitnet run "What is the capital of France?"',
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("serve", short_help="Serve models over HTTP, as OpenAI's API does.")(serve.serve)
app.command("list", short_help="List the models on this machine, or those there are.")(models.list_models)
app.command("pull", short_help="Download a model.")(models.pull)
app.command("rm", short_help="Remove a downloaded model.")(models.remove)
app.command("convert", short_help="Write a model as a GGUF file of other types.")(convert.convert)
app.command("perplexity", short_help="Measure how well a model predicts a text.")(perplexity.perplexity)
app.command("compare", short_help="Measure how far a model is from another version of it.")(compare.compare)
app.command("doctor", short_help="Tell what this machine computes on, and check it.")(doctor.doctor)
app.command("show", short_help="Show what a model file holds and needs.")(show.show)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(f"bitnet-cpp {bitnet.__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (default: sys.argv) and exit with its status."""
    verbose = logs.verbose_wanted()
    _log_to_stderr(logging.DEBUG if verbose else logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that lacks a character shows a substitute; it is no reason to fail.
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")
    try:
        status = app(arguments, prog_name="bitnet", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except BrokenPipeError:
        status = 1
    except Exception as error:
        if verbose:
            traceback.print_exc()
        status = _explain(error)
    if status:
        _quieten_stdout()
    sys.exit(status if isinstance(status, int) else 0)


def _explain(error: Exception) -> int:
    """Print an error in one line. Returns the exit status."""
    if isinstance(error, BitNetError):
        complain(str(error))
        return 1
    # Usage errors of typer and, in its older versions, of click have this method and no common public class.
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "bitnet"
        complain(f"{format_message().removesuffix('.')} (see {command} --help)")
        return 2
    complain(f"{type(error).__name__}: {error} (BITNET_VERBOSE=1 shows where)")
    return 1


def _log_to_stderr(level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("bitnet: %(levelname)s: %(message)s"))
    logger = logging.getLogger("bitnet")
    logger.addHandler(handler)
    logger.setLevel(level)


def _quieten_stdout() -> None:
    """What is still buffered for a reader who has gone must not cause a complaint at exit."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
