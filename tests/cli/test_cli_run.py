"""`bitnet run`, and what all commands share: help, version, errors in one line, statuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from command import bitnet, environment, start

from bitnet import BitNet

QUESTION = "What is the capital of France?"


def test_the_readme_command() -> None:
    done = bitnet("run", QUESTION)
    assert "Paris" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")


def test_options_are_those_of_the_library(model: BitNet) -> None:
    expected = model.chat(
        [{"role": "system", "content": "You are a poet."}, {"role": "user", "content": "Hello"}],
        max_tokens=12,
        temperature=1.5,
        top_k=50,
        top_p=0.95,
        min_p=0.01,
        repetition_penalty=1.1,
        seed=11,
        stop=["zzz", "qqq"],
    )
    done = bitnet(
        *("run", "Hello", "--system", "You are a poet.", "--max-tokens", "12", "--temperature", "1.5"),
        *(
            "--top-k",
            "50",
            "--top-p",
            "0.95",
            "--min-p",
            "0.01",
            "--repetition-penalty",
            "1.1",
            "--seed",
            "11",
        ),
        *("--stop", "zzz", "--stop", "qqq", "--threads", "1", "--ctx", "256", "--json"),
    )
    reply = json.loads(done.stdout)
    assert reply["text"] == expected.text
    assert reply["token_ids"] == list(expected.token_ids)
    assert reply["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert reply["finish_reason"] == expected.finish_reason
    assert reply["timings"]["time_to_first_token"] > 0


def test_raw_continues_text(model: BitNet) -> None:
    expected = model.generate("The capital of", max_tokens=6, temperature=0).text
    done = bitnet("run", "--raw", "The capital of", "--max-tokens", "6", "--temperature", "0")
    assert done.stdout == expected + "\n"


def test_a_base_model_continues_text_without_being_told(base_path: Path) -> None:
    done = bitnet("run", "-m", base_path, "--json", "--max-tokens", "3", "--temperature", "0", "Hello")
    assert json.loads(done.stdout)["usage"]["prompt_tokens"] == 6
    refused = bitnet("run", "-m", base_path, "--system", "x", "Hello")
    assert refused.returncode == 1
    assert refused.stderr.endswith(
        "bitnet: error: --system needs a chat format: without one, put it into PROMPT\n"
    )


def test_a_cut_answer_says_so() -> None:
    done = bitnet("run", QUESTION, "--max-tokens", "2", "--temperature", "0")
    assert done.returncode == 0
    assert done.stderr == "bitnet: the answer was cut after 2 tokens; see --max-tokens and --ctx\n"


def test_dash_reads_standard_input() -> None:
    argument = bitnet("run", QUESTION, "--temperature", "0")
    piped = bitnet("run", "-", "--temperature", "0", stdin=QUESTION + "\n")
    assert piped.stdout == argument.stdout
    assert piped.returncode == 0


def test_version_and_help() -> None:
    assert bitnet("--version").stdout.startswith("bitnet-cpp ")
    overview = bitnet()
    assert overview.returncode == 0
    assert overview.stdout == bitnet("--help").stdout
    for command in ("run", "chat", "show"):
        assert f"  {command} " in overview.stdout
        page = bitnet(command, "--help")
        assert page.returncode == 0
        assert f"Example: bitnet {command}" in page.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["run"], 2, "Missing argument 'PROMPT' (see bitnet run --help)"),
        (["run", "x", "--temprature", "1"], 2, "(see bitnet run --help)"),
        (["run", "x", "--max-tokens", "many"], 2, "--max-tokens"),
        (["walk"], 2, "No such command 'walk'"),
        (["run", "x", "--temperature", "-1"], 1, "temperature must be at least 0"),
        (["run", "x", "--max-tokens", "0"], 1, "max_tokens must be from 1"),
        (["run", "x", "-m", "/no/such.gguf"], 1, "there is no model file '/no/such.gguf'; give the path"),
        (["run", "x", "-m", os.devnull], 1, "/dev/null"),
        (["run", "x", "--kv-type", "q4_0"], 1, "option kv_type: must be 'f16' or 'q8_0', not 'q4_0'"),
        (["run", "x", "--ctx", "10000000"], 1, "n_ctx=10000000 is more than"),
        (["run", "x" * 3000, "--ctx", "64"], 1, "a context of 64 has room for 63"),
        (["run", "-m", __file__, "x"], 1, "test_cli_run.py"),
        (["show", "/no/such.gguf"], 1, "there is no model file"),
        (["chat", "-m", "/no/such.gguf"], 1, "there is no model file"),
    ],
)
def test_errors_are_one_line(arguments: list[str], status: int, message: str) -> None:
    done = bitnet(*arguments)
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr.startswith("bitnet: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_input_that_is_not_text_is_an_error() -> None:
    done = bitnet("run", "-", stdin=b"ab\xff")
    assert (done.returncode, done.stderr) == (
        1,
        "bitnet: error: standard input is not UTF-8: byte 2 is 0xff\n",
    )


@pytest.mark.skipif(os.name != "posix", reason="arguments are bytes on POSIX only")
def test_an_argument_that_is_not_text_is_an_error() -> None:
    done = bitnet("run", os.fsdecode(b"ab\xff"))
    assert done.returncode == 1
    assert "not valid Unicode" in done.stderr


def test_verbose_shows_more() -> None:
    done = bitnet("run", "x", "-m", "/no/such.gguf", env=environment(BITNET_VERBOSE="1"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("or org/name; or none for the bundled model\n")
    quiet = bitnet("run", "x", "-m", "/no/such.gguf", env=environment(BITNET_VERBOSE="0"))
    assert quiet.stderr.count("\n") == 1


def test_warnings_of_the_model_are_shown(random_path: Path) -> None:
    done = bitnet("run", "-m", random_path, "Hello", "--max-tokens", "1")
    assert done.returncode == 0
    assert f"bitnet: WARNING: {random_path.name}: " in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_ctrl_c_ends_with_130(slow_path: Path) -> None:
    process = start(
        *("run", "-m", slow_path, "Hello", "--max-tokens", "100000", "--temperature", "0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(1) != b""  # it is answering
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    assert b"error" not in stderr


@pytest.mark.skipif(os.name != "posix", reason="SIGPIPE is POSIX")
def test_a_reader_who_leaves_is_no_error(random_path: Path) -> None:
    process = start(
        *("run", "-m", random_path, "Hello", "--max-tokens", "100000", "--temperature", "0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    stderr = process.stderr.read().decode()
    process.wait(20)
    process.stderr.close()
    assert all("WARNING" in line for line in stderr.splitlines()), stderr
