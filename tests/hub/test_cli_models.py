"""bitnet list, pull, show, rm and convert, as a user types them; with a hub on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_hub import FakeHub
from hf_folders import FAMILIES, make_folder

from bitnet.models import bundled
from bitnet.models.gguf_source import read_gguf

Bitnet = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("BITNET_VERBOSE", "HF_TOKEN")}
    return {
        **kept,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "BITNET_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONIOENCODING": "utf-8",
    }


@pytest.fixture
def bitnet(environment: dict[str, str], tmp_path: Path) -> Bitnet:
    def run(*arguments: str | os.PathLike[str], **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bitnet", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
            cwd=tmp_path,
            env={**environment, **changes},
        )

    return run


def test_a_model_comes_answers_and_goes(hub: FakeHub, bitnet: Bitnet, tmp_path: Path) -> None:
    hub.repositories["microsoft/bitnet-b1.58-2B-4T-gguf"] = {
        "ggml-model-i2_s.gguf": bundled.path().read_bytes()
    }
    assert "2b-4t" not in bitnet("list").stdout
    shown = bitnet("show", "2b-4t")
    assert shown.stdout.startswith("BitNet b1.58 2B-4T (not on this machine: bitnet pull 2b-4t)\n")
    assert "  licence       MIT\n" in shown.stdout
    assert hub.requests == []  # to look at something is not to download it
    done = bitnet("pull", "2b-4t")
    assert (done.returncode, done.stdout) == (0, "")
    assert "downloading microsoft/bitnet-b1.58-2B-4T-gguf:ggml-model-i2_s.gguf (2.21 MB)" in done.stderr
    assert "2b-4t is here, complete and checked" in done.stderr
    rows = json.loads(bitnet("list", "--json").stdout)
    assert [(row["name"], row["n_bytes"]) for row in rows] == [
        ("bitnet-tiny", bundled.path().stat().st_size),
        ("2b-4t", bundled.path().stat().st_size),
    ]
    known = {row["name"]: row for row in json.loads(bitnet("list", "--remote", "--json").stdout)}
    assert known["2b-4t"]["present"]
    assert not known["falcon3-7b"]["present"]
    assert known["falcon3-7b"]["dimensions"]["ffn_size"] == 23040
    hub.requests.clear()
    question = ("What is the capital of France?", "--temperature", "0")
    for name in (
        "2b-4t",
        "2B-4T",
        "microsoft/bitnet-b1.58-2B-4T-gguf",
        "microsoft/bitnet-b1.58-2B-4T-gguf:ggml-model-i2_s.gguf",
    ):
        assert bitnet("run", *question, "-m", name).stdout == "The capital of France is Paris.\n"
    (tmp_path / "bitnet.yaml").write_text("bitnet: {model_path: 2b-4t}\n")
    assert bitnet("run", *question, "--config", "bitnet.yaml").stdout == "The capital of France is Paris.\n"
    assert "Published as" in bitnet("show", "2b-4t").stdout
    assert hub.requests == []
    done = bitnet("rm", "2b-4t")
    size = bundled.path().stat().st_size / 2**20
    assert f"removed 2b-4t; {size:.1f} MiB are free now" in done.stderr
    assert "2b-4t" not in bitnet("list").stdout
    done = bitnet("rm", "2b-4t")
    assert (done.returncode, done.stderr) == (
        1,
        "bitnet: error: microsoft/bitnet-b1.58-2B-4T-gguf:ggml-model-i2_s.gguf is not on this machine; "
        "bitnet list shows what is\n",
    )


def test_a_folder_from_the_hub_is_converted_once(hub: FakeHub, bitnet: Bitnet, tmp_path: Path) -> None:
    folder = make_folder(FAMILIES["falcon3-1b"], tmp_path / "made").folder
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    hub.repositories["tiiuae/Falcon3-1B-Instruct-1.58bit"] = {**files, "evil.py": b"raise SystemExit"}
    first = bitnet("run", "Hi", "-m", "falcon3-1b", "--max-tokens", "3")
    assert first.returncode == 0, first.stderr
    assert "downloading tiiuae/Falcon3-1B-Instruct-1.58bit" in first.stderr
    assert "which is done once" in first.stderr
    second = bitnet("run", "Hi", "-m", "falcon3-1b", "--max-tokens", "3", HF_HUB_OFFLINE="1")
    assert (second.returncode, "done once" in second.stderr) == (0, False)
    shown = bitnet("show", "falcon3-1b").stdout
    assert "general.name = 'Falcon3-1B-Instruct-1.58bit'" in shown
    assert "Repaired\n  nothing" in shown
    [converted] = (tmp_path / "cache").glob("*.gguf")
    assert "[PAD" not in first.stdout
    assert bitnet("rm", "falcon3-1b").returncode == 0
    assert not converted.exists()
    assert list((tmp_path / "cache").glob("*.gguf")) == []


def test_convert(bitnet: Bitnet, tmp_path: Path) -> None:
    folder = make_folder(FAMILIES["2b-4t-packed"], tmp_path / "m").folder
    done = bitnet("convert", folder, "out.gguf", "--type", "q2_0", "--embd-type", "q8_0")
    assert done.returncode == 0, done.stderr
    assert "keeps the scale of each matrix as f16" in done.stderr
    assert "wrote out.gguf, " in done.stderr
    assert ": 14 ternary matrices as q2_0" in done.stderr
    shown = bitnet("show", "out.gguf").stdout
    assert "Q2_0" in shown
    assert "Q8_0" in shown
    again = bitnet("convert", "out.gguf", "out.gguf", "--type", "tq1_0")
    assert (again.returncode, again.stderr) == (
        1,
        "bitnet: error: out.gguf is there already; --overwrite replaces it\n",
    )
    # Onto itself, which is read until it is replaced. 1408 columns are no multiple of 256.
    again = bitnet("convert", "out.gguf", "out.gguf", "--type", "tq1_0", "--overwrite")
    assert "TQ1_0 needs rows that are a multiple of 256, not 1408; choose another type" in again.stderr
    assert bitnet("convert", "out.gguf", "out.gguf", "--type", "i2_s", "--overwrite").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".gguf") == ["out.gguf"]
    for how, invert in ((("--scales", "divide"), True), (("--scales", "multiply"), False)):
        assert bitnet("convert", "out.gguf", "other.gguf", *how, "--overwrite").returncode == 0
        before, after = (read_gguf(tmp_path / name).ternary for name in ("out.gguf", "other.gguf"))
        for one, other in zip(before, after, strict=True):
            (codes, scale), (other_codes, other_scale) = one.read(), other.read()
            assert np.array_equal(other_codes, codes)
            assert other_scale == (np.float32(1) / np.float32(scale) if invert else scale)
    for arguments, status, message in (
        (("nowhere.gguf", "x.gguf"), 1, "there is no 'nowhere.gguf'"),
        ((".", "x.gguf"), 1, "is no Hugging Face folder"),
        (("out.gguf", "x.gguf", "--type", "q4_k"), 1, "--type must be one of i2_s, tl1, tq1_0, tq2_0, q2_0"),
        (("out.gguf", "x.gguf", "--embd-type", "x"), 1, "--embd-type must be one of f32, f16"),
        (("out.gguf", "m"), 1, "m is a directory; name a file"),
        (("out.gguf", "x.gguf", "--weight-scale", "mul"), 1, "for a GGUF file, --scales multiply or divide"),
        (("m", "x.gguf", "--scales", "divide"), 1, "--scales is for GGUF files; the config.json"),
        (("out.gguf", "x.gguf", "--scales", "auto"), 1, "--scales must be one of multiply, divide, not"),
        (("out.gguf", "x.gguf", "--tl-config", "none.ini"), 1, "cannot read tl_config 'none.ini'"),
        (("out.gguf",), 2, "OUT.gguf"),
    ):  # fmt: skip
        refused = bitnet("convert", *arguments)
        assert (refused.returncode, message in refused.stderr) == (status, True), refused.stderr
        assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pull", "falcn3-7b"), "'falcn3-7b' is no model of the hub; did you mean 'falcon3-7b'?"),
        (("pull", "./model.gguf"), "is no model of the hub"),
        (("pull", "no/body"), "there is no model no/body, neither as a path nor on the Hugging Face Hub"),
        (("pull", "a/b:../c.gguf"), "'../c.gguf' is no name of a file"),
        (("pull", "a/b:model.bin"), "'model.bin' is no .gguf file"),
        (("rm", "bitnet-tiny"), "bitnet-tiny is part of the package"),
        (("run", "x", "-m", "falcn3-7b"), "there is no model 'falcn3-7b'; did you mean 'falcon3-7b'?"),
        (("show", "falcn3-7b"), "did you mean 'falcon3-7b'?"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], message: str, bitnet: Bitnet) -> None:
    done = bitnet(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_ctrl_c_keeps_what_has_arrived(
    hub: FakeHub, environment: dict[str, str], bitnet: Bitnet, tmp_path: Path
) -> None:
    content = bytes(64 << 20)
    hub.repositories["some/model"] = {"model-i2_s.gguf": content}
    hub.pause_after = 40 << 20
    with subprocess.Popen(
        [sys.executable, "-m", "bitnet", "pull", "some/model"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        deadline = time.monotonic() + 60
        while (
            not (partial := list((tmp_path / "home").rglob("*.bitnet-partial")))
            or partial[0].stat().st_size < 10 << 20
        ):
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 130
        assert running.stderr is not None
        assert b"Traceback" not in running.stderr.read()
    hub.pause_after = None
    kept = partial[0].stat().st_size
    assert kept >= 10 << 20
    done = bitnet("pull", "some/model")
    assert done.returncode == 0, done.stderr
    assert hub.downloads()[-1]["range"] == f"bytes={kept}-"


def test_serve_knows_names(hub: FakeHub, bitnet: Bitnet) -> None:
    hub.repositories["some/model"] = {"model-i2_s.gguf": b"GGUF"}
    done = bitnet("serve", "-m", "no/body", "--port", "0")
    assert done.returncode == 1
    assert "there is no model no/body" in done.stderr
