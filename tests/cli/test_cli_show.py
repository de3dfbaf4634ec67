"""`bitnet show`: everything in the file, in text and as JSON, and nothing that steers a terminal."""

from __future__ import annotations

import json
from pathlib import Path

from command import bitnet

from bitnet import BitNet
from bitnet.models.gguf_writer import GgufWriter


def test_text(model: BitNet) -> None:
    done = bitnet("show", model.info.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == bitnet("show").stdout
    for expected in (
        "general.architecture = 'bitnet-b1.58'",
        "tokenizer.ggml.tokens = ['<|begin_of_text|>', ",
        f"... {model.info.vocab_size} in all]",
        "blk.0.attn_q.weight ",
        " I2_S ",
        f"context       {model.info.context_length} tokens",
        f"parameters    {model.info.n_parameters:,}",
        "Memory needed",
        "Repaired\n  nothing",
    ):
        assert expected in done.stdout


def test_json(random_path: Path) -> None:
    done = bitnet("show", "--json", "--ctx", "64", "--batch", "3", random_path)
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert shown["path"] == str(random_path)
    assert shown["n_bytes"] == random_path.stat().st_size
    assert shown["metadata"]["bitnet-b1.58.block_count"] == 2
    assert len(shown["metadata"]["tokenizer.ggml.tokens"]) == 288
    tensors = {tensor["name"]: tensor for tensor in shown["tensors"]}
    assert tensors["token_embd.weight"]["shape"] == [320, 288]
    assert tensors["token_embd.weight"]["type"] == "F16"
    assert tensors["token_embd.weight"]["n_bytes"] == 2 * 320 * 288
    assert shown["problem"] is None
    small = json.loads(bitnet("show", "--json", "--kv-type", "q8_0", random_path).stdout)["loaded"]
    assert (shown["loaded"]["kv_type"], small["kv_type"]) == ("f16", "q8_0")
    with BitNet(random_path, n_ctx=64, n_batch=3) as loaded:
        assert shown["loaded"]["kv_bytes"] == loaded.info.kv_bytes
        assert shown["loaded"]["repairs"] == list(loaded.info.repairs)


def test_repairs_are_listed(random_path: Path) -> None:
    done = bitnet("show", random_path)
    assert "Repaired\n  The model file" in done.stdout


def test_a_file_that_cannot_be_run_is_still_shown(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = GgufWriter(path)
    writer.add_metadata("general.architecture", "mamba\x1b[31m", "string")
    writer.add_metadata("evil\x1b]0;title\x07", "a\x1b[2Jb\x9b", "string")
    writer.add_metadata("some.float", float("nan"), "f32")
    writer.write()
    done = bitnet("show", path)
    assert done.returncode == 0
    assert "Cannot be run" in done.stdout
    assert "mamba" in done.stdout.split("Cannot be run")[1]
    assert all(character.isprintable() or character == "\n" for character in done.stdout)
    assert r"evil\x1b]0;title\x07 = 'a\x1b[2Jb\x9b'" in done.stdout
    shown = json.loads(bitnet("show", "--json", path).stdout)
    assert shown["loaded"] is None
    assert "mamba" in shown["problem"]
    assert shown["metadata"]["some.float"] == "nan"
