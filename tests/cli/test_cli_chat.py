"""`bitnet chat`, from a pipe and in a terminal."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import bitnet, start

from bitnet import BitNet


def test_piped_conversation_has_a_history(model: BitNet) -> None:
    first = {"role": "user", "content": "My name is Mirelda."}
    answer = model.chat([first], temperature=0).text
    second = {"role": "user", "content": "What is my name?"}
    with_history = model.chat([first, {"role": "assistant", "content": answer}, second], temperature=0).text
    without = model.chat([second], temperature=0).text
    done = bitnet(
        "chat",
        "--temperature",
        "0",
        stdin="My name is Mirelda.\nWhat is my name?\n\n/clear\nWhat is my name?\n",
    )
    assert done.stdout == f"{answer}\n{with_history}\n{without}\n"
    assert (done.returncode, done.stderr) == (0, "")


def test_system_message(model: BitNet) -> None:
    question = {"role": "user", "content": "Hello!"}
    system = {"role": "system", "content": "Your name is Zorblat. Answer in one sentence."}
    plain, told = (model.chat(messages, temperature=0).text for messages in ([question], [system, question]))
    by_option = bitnet(
        "chat", "--temperature", "0", "--system", system["content"], stdin="Hello!\n/system\nHello!\n"
    )
    assert by_option.stdout == f"{told}\n{plain}\n"
    by_command = bitnet("chat", "--temperature", "0", stdin=f"/system {system['content']}\nHello!\n")
    assert by_command.stdout == f"{told}\n"


def test_commands() -> None:
    done = bitnet("chat", stdin="/help\n/exit\nHello\n")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "/clear",
        "/system",
        "/help",
        "/exit",
        "Ctrl-C",
    ]
    assert done.returncode == 0
    unknown = bitnet("chat", stdin="/dance\n/etc/passwd is a file\n", env=None)
    assert unknown.stderr.startswith("bitnet: there is no command /dance; /help lists them\n")
    assert unknown.stdout != ""


def test_keys_and_values_in_8_bits() -> None:
    done = bitnet("chat", "--kv-type", "q8_0", "--temperature", "0", stdin="What is the capital of France?\n")
    assert "Paris" in done.stdout
    assert done.returncode == 0


def test_a_piped_message_that_does_not_fit_is_an_error() -> None:
    done = bitnet("chat", "--ctx", "64", stdin="word " * 300 + "\nHello\n")
    assert done.returncode == 1
    assert "bitnet: error: the prompt has" in done.stderr
    assert done.stdout == ""


def test_a_model_without_chat_template_is_refused(base_path: Path) -> None:
    done = bitnet("chat", "-m", base_path, stdin="Hello\n")
    assert done.returncode == 1
    assert done.stderr.endswith("it only continues text: use bitnet run --raw\n")


class Terminal:
    """A chat in a pseudo-terminal."""

    def __init__(self, *arguments: str | os.PathLike[str]) -> None:
        import pty

        self._controller, terminal = pty.openpty()
        self.process = start(
            "chat", *arguments, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
        )
        os.close(terminal)
        self.seen = ""

    def wait_for(self, text: str) -> str:
        """Everything shown until `text` appears."""
        deadline = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self.read()
        before, _, self.seen = self.seen.partition(text)
        return before

    def read(self) -> None:
        self.seen += os.read(self._controller, 4096).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self._controller, text.encode())

    def interrupt(self, answer: str) -> str:
        """Ctrl-C until `answer` is shown: one that comes just before input() waits has no effect at once."""
        deadline = time.monotonic() + 60
        while answer not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self.process.send_signal(signal.SIGINT)
            if select.select([self._controller], [], [], 1)[0]:
                time.sleep(0.1)
                self.read()
        return self.wait_for(answer)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._controller)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_in_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_leaves(slow_path: Path) -> None:
    terminal = Terminal("-m", slow_path, "--temperature", "0", "--max-tokens", "100000", "--ctx", "1000")
    try:
        terminal.wait_for("Ctrl-D leaves.")
        terminal.wait_for("> ")
        terminal.interrupt("Ctrl-D or /exit leaves")
        terminal.wait_for("> ")
        terminal.type("Hello\n")
        terminal.wait_for("Hello\r\n")
        while not terminal.seen:  # until it answers
            terminal.read()
        answer = terminal.interrupt("> ")
        assert answer != ""
        assert "cut after" not in answer
        assert "error" not in answer
        terminal.type("x" * 1000 + "\n")  # more than the context holds
        terminal.wait_for("(/clear forgets the conversation)")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_ctrl_c_in_a_pipe_leaves_with_130() -> None:
    process = start("chat", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"/help\n")
    process.stdin.flush()
    assert process.stdout.readline() != b""
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, b"")
