"""`bitnet perplexity` and `bitnet compare`: the numbers of the Python API, and errors in one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import bitnet, start

from bitnet import BitNet
from bitnet.cli.measuring import progress_bar
from bitnet.evaluation import Progress, compare, perplexity

TEXT = "The capital of France is Paris. The opposite of hot is cold. " * 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_perplexity(model: BitNet, file: Path) -> None:
    done = bitnet("perplexity", "--file", file, "--json", "--window", "128", "--stride", "32")
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    expected = perplexity(model, TEXT, window=128, stride=32)
    for name in ("perplexity", "mean_nll", "mean_nll_error", "error", "n_tokens", "n_computed", "n_windows"):
        assert shown[name] == getattr(expected, name)
    text = bitnet("perplexity", model.info.path, "--file", "-", "--window", "128", stdin=TEXT)
    assert text.returncode == 0
    assert f"perplexity         {perplexity(model, TEXT, window=128).perplexity:.4f} +/- " in text.stdout
    assert "windows of 128 (sliding)" in text.stdout


def test_perplexity_as_llama_cpp(model: BitNet, file: Path) -> None:
    done = bitnet("perplexity", "--file", file, "--json", "--window", "64", "--chunking", "llama.cpp")
    assert json.loads(done.stdout)["perplexity"] == pytest.approx(
        perplexity(model, TEXT, window=64, chunking="llama.cpp").perplexity
    )


def test_compare(random_path: Path, file: Path, tmp_path: Path) -> None:
    config = tmp_path / "bitnet.yaml"
    done = bitnet("compare", random_path, random_path, "--file", file, "--json")
    assert done.returncode == 0
    shown = json.loads(done.stdout)
    assert (shown["mean_divergence"], shown["top1_agreement"]) == (0, 1)
    with BitNet(random_path) as a:
        assert shown["perplexity_a"] == compare(a, a, TEXT).perplexity_a
    config.write_text("quant_type: tl1\n")
    text = bitnet("compare", random_path, random_path, "--file", file, "--config", config)
    assert "divergence (KL)     0 +/- 0 nats a token, 0 at most\n" in text.stdout
    assert "same likeliest      100.00% of tokens\n" in text.stdout


def test_different_vocabularies(model: BitNet, random_path: Path, file: Path) -> None:
    done = bitnet("compare", model.info.path, random_path, "--file", file)
    assert done.returncode == 1
    sizes = f"({model.info.vocab_size} and 288 tokens)"
    assert f"error: the models have different vocabularies {sizes}" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--file", "nowhere.txt"], 1, "cannot read nowhere.txt: No such file"),
        (["--file", "-", "--window", "99999"], 1, "n_ctx=99999 is more than"),
        (["--file", "-"], 1, "the text has 1 tokens; it must have two tokens at least"),
        (["--file", "-", "--chunking", "odd"], 1, "chunking must be one of sliding, llama.cpp, not 'odd'"),
        ([], 2, "--file"),
    ],
)
def test_errors(arguments: list[str], status: int, message: str) -> None:
    done = bitnet("perplexity", *arguments)
    assert done.returncode == status
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin1").write_bytes(b"caf\xe9")
    done = bitnet("perplexity", "--file", tmp_path / "latin1")
    assert "latin1 is not UTF-8: byte 3 is 0xe9" in done.stderr


def test_interrupted(slow_path: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("some words " * 20000)
    process = start(
        "perplexity", slow_path, "--file", tmp_path / "long.txt", "--window", "64",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")


@pytest.mark.parametrize("terminal", [False, True])
def test_what_there_was_when_it_was_interrupted(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)

    def interrupted() -> None:
        with progress_bar("perplexity") as on_progress:
            assert on_progress is not None
            on_progress(Progress(3, 8, 12.5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "bitnet: stopped after 3 of 8 windows; perplexity so far 12.5000\n" in capsys.readouterr().err
