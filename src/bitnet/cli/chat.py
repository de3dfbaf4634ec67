"""`bitnet chat`: a conversation, kept in memory, typed in a terminal or read from a pipe."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bitnet.cli import options
from bitnet.cli.notice import note_bundled
from bitnet.cli.terminal import complain, decode, note, note_ending, write, write_answer
from bitnet.errors import BitNetError
from bitnet.values import Delta, GenerateOptions, Message

if TYPE_CHECKING:
    from bitnet.model import BitNet

HELP = """\
/clear          forget the conversation
/system TEXT    tell the model TEXT before the conversation, which starts anew; without TEXT: nothing
/help           this list
/exit           leave (so does Ctrl-D)
Ctrl-C stops an answer.
"""


def chat(
    model: options.Model = None,
    system: options.System = None,
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
    """Talk with a model. Type /help there for what else can be typed.

    Reads one message a line; from a pipe it answers each and leaves at the end.

    Example: bitnet chat --system "Answer in one sentence."
    """
    from bitnet.model import BitNet as Loaded  # late: usage errors and --help need no engine

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
    interactive = sys.stdin.isatty()
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
    with Loaded.from_config(settings) as loaded:
        if not loaded.info.has_chat_template:
            raise BitNetError("this model has no chat template, it only continues text: use bitnet run --raw")
        conversation = _Conversation(loaded, system, how, settings.stream)
        if interactive:
            note_bundled(model)
            note(f"{loaded.info.name}. /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.")
        for line in _typed_lines() if interactive else _piped_lines():
            try:
                if conversation.take(line):
                    break
            except BitNetError as error:
                if not interactive:
                    raise
                complain(f"{error} (/clear forgets the conversation)")


class _Conversation:
    def __init__(self, model: BitNet, system: str | None, how: GenerateOptions, streaming: bool) -> None:
        self._model = model
        self._how = how
        self._streaming = streaming
        self._system = system
        self._turns: list[Message] = []

    def take(self, line: str) -> bool:
        """Obey a command or answer a message. True = leave."""
        if not line.strip():
            return False
        command = re.fullmatch(r"\s*/([a-z]+)(?:\s+(.*))?", line, re.DOTALL)
        if command is None:
            self._answer(line)
            return False
        name, argument = command[1], command[2]
        if name in ("exit", "quit"):
            return True
        if name == "clear":
            self._turns.clear()
        elif name == "system":
            self._system = argument or None
            self._turns.clear()
        elif name == "help":
            write(HELP)
        else:
            note(f"there is no command /{name}; /help lists them")
        return False

    def _answer(self, text: str) -> None:
        system = [] if self._system is None else [Message("system", self._system)]
        question = Message("user", text)
        generation = self._model.stream_chat([*system, *self._turns, question], **self._how)
        try:
            write_answer(generation if self._streaming else [Delta(generation.result().text)])
        except KeyboardInterrupt:
            generation.cancel()
            write("\n")
        reply = generation.result()
        note_ending(reply)
        if reply.text:
            self._turns += [question, Message("assistant", reply.text)]


def _typed_lines() -> Iterator[str]:
    """Lines typed in a terminal, until Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - importing it gives input() a history and line editing
    while True:
        try:
            yield input("> ")
        except EOFError:
            write("\n")
            return
        except KeyboardInterrupt:
            write("\n")
            note("Ctrl-D or /exit leaves")


def _piped_lines() -> Iterator[str]:
    for line in sys.stdin.buffer:
        yield decode(line).rstrip("\r\n")
