"""--config and BITNET_CONFIG: on every command, under the options of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import bitnet, environment

QUESTION = "What is the capital of France?"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "bitnet.yaml"
    file.write_text("bitnet:\n  temperature: 0\n  max_tokens: 3\n  n_ctx: 128\n  stop: [Paris]\n")
    return file


@pytest.mark.parametrize("command", ["run", "chat", "show"])
def test_every_command_has_it(command: str, tmp_path: Path) -> None:
    assert "--config" in bitnet(command, "--help").stdout
    file = tmp_path / "bad.yaml"
    file.write_text("\nn_ctxx: 1\n")
    done = bitnet(command, *(["x"] if command == "run" else []), "--config", file)
    assert done.stderr == f"bitnet: error: {file}:2: n_ctxx: unknown key; did you mean 'n_ctx'?\n"
    assert done.returncode == 1


def test_run(config: Path) -> None:
    def run(*options: str | Path, **env: str) -> dict[str, object]:
        done = bitnet("run", QUESTION, "--json", *options, env=environment(**env))
        reply: dict[str, object] = json.loads(done.stdout)
        return reply

    reply = run("--config", config)
    assert (reply["text"], reply["finish_reason"]) == ("The capital", "length")
    assert run(BITNET_CONFIG=str(config))["token_ids"] == reply["token_ids"]
    longer = run("--config", config, "--max-tokens", "40")
    assert (longer["text"], longer["stop_string"]) == ("The capital of France is ", "Paris")
    assert run("--config", config, "--max-tokens", "40", "--stop", "France")["text"] == "The capital of "


def test_chat(config: Path) -> None:
    done = bitnet("chat", "--config", config, stdin=f"{QUESTION}\n")
    assert done.stdout == "The capital\n"


def test_show(config: Path) -> None:
    assert "(2 x 128 tokens, f16)" in bitnet("show", "--config", config).stdout
    assert (
        "(3 x 256 tokens, f16)" in bitnet("show", "--config", config, "--ctx", "256", "--batch", "3").stdout
    )


def test_stream_false_prints_the_same(config: Path) -> None:
    config.write_text(config.read_text() + "  stream: false\n")
    assert bitnet("run", QUESTION, "--config", config).stdout == "The capital\n"
    assert bitnet("chat", "--config", config, stdin=f"{QUESTION}\n").stdout == "The capital\n"


def test_verbose(config: Path) -> None:
    assert "DEBUG: loaded" not in bitnet("run", QUESTION, "--config", config).stderr
    config.write_text(config.read_text() + "  verbose: true\n")
    assert bitnet("run", QUESTION, "--config", config).stderr.count("DEBUG: loaded") == 1


def test_the_model_of_the_command_line_wins(config: Path, tmp_path: Path) -> None:
    config.write_text("model_path: nowhere.gguf\n")
    assert f"{config}:1: model_path: there is no model file" in bitnet("run", "x", "--config", config).stderr
    from bitnet import models

    done = bitnet("run", QUESTION, "--config", config, "-m", models.find(None), "--temperature", "0")
    assert "Paris" in done.stdout


def test_the_command_line_uses_all_cores_unless_told_otherwise(config: Path) -> None:
    config.write_text("n_threads: 1\n")
    assert "1 threads" in bitnet("show", "--config", config).stdout
