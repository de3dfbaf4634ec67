"""bitnet convert: what is written equals what was read, whole or not at all."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hf_folders import FAMILIES, ONLINE, make_folder, write_safetensors
from test_hf_folders import read_tensors

from bitnet import BitNet, ConversionError, ModelFileError, _native
from bitnet.models import bundled
from bitnet.models.conversion import FileType, write_model
from bitnet.models.gguf_source import read_gguf
from bitnet.models.gguf_writer import GgufWriter, TensorType
from bitnet.models.hf_folder import read_folder
from bitnet.models.layouts import read_tl_config
from bitnet.models.model_source import ModelSource
from bitnet.models.tensor_codec import encode_ternary
from bitnet.models.ternary import absmean
from rewritten_model import rewrite


def matrices(source: ModelSource) -> dict[str, tuple[Any, float]]:
    return {tensor.name: tensor.read() for tensor in source.ternary}


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("kind", get_args(FileType))
def test_a_round_trip_keeps_every_code(name: str, kind: FileType, tmp_path: Path) -> None:
    made = make_folder(FAMILIES[name], tmp_path / name)
    source = read_folder(made.folder)
    path = tmp_path / f"{kind}.gguf"
    columns = {tensor.columns for tensor in source.ternary}
    block = {"tq1_0": 256, "tq2_0": 256, "q2_0": 64}.get(kind, 1)
    if any(column % block for column in columns):
        with pytest.raises(
            ConversionError, match=rf"needs rows that are a multiple of {block}, not \d+; choose"
        ):
            write_model(source, path, file_type=kind)
        assert not path.exists()
        return
    tiles = []
    if kind == "tl1":
        if any(tensor.rows % 32 or tensor.columns % 32 for tensor in source.ternary):
            return
        tiles = [(tensor.rows, tensor.columns, 32, 32, 32) for tensor in source.ternary]
    write_model(source, path, file_type=kind, tiles=tiles)
    again = read_gguf(path, tiles=tiles)
    before, after = matrices(source), matrices(again)
    assert before.keys() == after.keys()
    for tensor, (codes, scale) in before.items():
        assert np.array_equal(after[tensor][0], codes), tensor
        expected = np.float32(np.float16(scale)) if block > 1 else np.float32(scale)
        assert after[tensor][1] == expected, tensor
    # And back: the same file as written directly, except for scales that f16 has rounded.
    write_model(again, tmp_path / "back.gguf")
    write_model(source, tmp_path / "direct.gguf")
    back, direct = read_tensors(tmp_path / "back.gguf"), read_tensors(tmp_path / "direct.gguf")
    for tensor, (_, value) in direct.items():
        if tensor in before:
            assert np.array_equal(back[tensor][1][0], value[0])
        else:
            assert np.array_equal(back[tensor][1], value)
    if block == 1:
        assert (tmp_path / "back.gguf").read_bytes() == (tmp_path / "direct.gguf").read_bytes()
    ours = _native.ModelFile(str(path))
    assert (
        ours.metadata["general.file_type"]
        == {"i2_s": 40, "tl1": 38, "tq1_0": 36, "tq2_0": 37, "q2_0": 41}[kind]
    )


@pytest.mark.parametrize("kind", ["i2_s", "tq1_0", "tq2_0", "q2_0"])
@pytest.mark.parametrize("embd_type", [None, "f32", "f16", "q8_0", "q6_k", "q4_0"])
def test_what_is_written_computes_the_same(kind: FileType, embd_type: Any, tmp_path: Path) -> None:
    made = make_folder(FAMILIES["falcon3-1b"], tmp_path / "falcon3")
    # Scales that f16 has exactly, so that nothing is rounded.
    for stem in made.scales:
        made.tensors[_hf_name(stem)] = ("BF16", np.array([64.0], np.float32))
    write_safetensors(made.folder / "model.safetensors", made.tensors)
    source = read_folder(made.folder)
    write_model(source, tmp_path / "a.gguf", embd_type=embd_type)
    write_model(read_gguf(tmp_path / "a.gguf"), tmp_path / "b.gguf", file_type=kind)
    ids = [3, 77, 200, 11, 400]
    with BitNet(tmp_path / "a.gguf") as a, BitNet(tmp_path / "b.gguf") as b:
        assert a.info.embd_type == b.info.embd_type == (embd_type or "f16").upper()
        assert np.array_equal(a.logits(ids), b.logits(ids))


def _hf_name(stem: str) -> str:
    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    _, layer, name = stem.split(".")
    return f"model.layers.{layer}.{names[name]}.weight_scale"


def test_tl1_has_the_tiles_of_bitnet_cpp_or_those_that_are_given(tmp_path: Path) -> None:
    source = read_folder(make_folder(FAMILIES["2b-4t-packed"], tmp_path / "m").folder)
    with pytest.raises(ConversionError, match=r"attn_k.weight: .*128 x 512"):
        write_model(source, tmp_path / "x.gguf", file_type="tl1")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    lines = [
        f"[Kernels_{i}]\nm = {m}\nk = {k}\nbm = 32\nbk = 64\nbmm = 32\n"
        for i, (m, k) in enumerate(sorted({(t.rows, t.columns) for t in source.ternary}))
    ]
    (tmp_path / "kernel_config.ini").write_text("\n".join(lines))
    tiles = read_tl_config(tmp_path / "kernel_config.ini")
    assert (512, 1408, 32, 64, 32) in tiles
    write_model(source, tmp_path / "x.gguf", file_type="tl1", tiles=tiles)
    assert (
        matrices(read_gguf(tmp_path / "x.gguf", tiles=tiles))["blk.0.ffn_down.weight"][1]
        == matrices(source)["blk.0.ffn_down.weight"][1]
    )


def write_f32(path: Path, weight: Any, scale: float | None = None) -> Path:
    """The bundled model with all matrices as F32 in place of I2_S, one of them `weight` of its codes."""
    source = read_gguf(bundled.path())
    writer = GgufWriter(path)
    for key, (value, kind) in source.metadata.items():
        writer.add_metadata(key, value, kind)
    for dense in source.dense:
        writer.add_tensor(dense.name, dense.shape[::-1], dense.stored, lambda dense=dense: dense.raw())
    for ternary in source.ternary:
        codes, s = ternary.read()
        values = codes * np.float32(1 if scale is not None else s)
        if ternary.name == "blk.0.attn_q.weight":
            values = weight(values)
        writer.add_tensor(
            ternary.name, (ternary.columns, ternary.rows), TensorType.F32, values.astype(np.float32)
        )
        if scale is not None:
            writer.add_tensor(
                ternary.name.replace(".weight", ".scale"), (1,), TensorType.F32, np.array([s], np.float32)
            )
    writer.write()
    return path


def test_floating_point_files_that_are_ternary_are_taken_exactly(tmp_path: Path) -> None:
    original = matrices(read_gguf(bundled.path()))
    for scale in (None, 1.0):
        path = write_f32(tmp_path / "f32.gguf", lambda values: values, scale)
        found = matrices(read_gguf(path))
        for name, (codes, s) in original.items():
            assert np.array_equal(found[name][0], codes)
            assert found[name][1] == s  # absmean would have shrunk it to the share of codes that are not 0


def test_scales_beside_tensors_become_the_tensors_own(tmp_path: Path, model: BitNet) -> None:
    path = write_f32(tmp_path / "f32.gguf", lambda values: values, scale=1.0)
    write_model(read_gguf(path), tmp_path / "out.gguf")
    names = {tensor.name for tensor in _native.ModelFile(str(tmp_path / "out.gguf")).tensors}
    assert names == {tensor.name for tensor in _native.ModelFile(str(bundled.path())).tensors}
    with BitNet(tmp_path / "out.gguf") as written:
        assert np.array_equal(written.logits([3, 77, 200]), model.logits([3, 77, 200]))


def test_scales_that_divide(tmp_path: Path) -> None:
    ids = [3, 77, 200, 11, 400]

    def power_of_two(scale: float) -> float:  # its inverse is exact
        return 2.0 ** round(math.log2(scale))

    with BitNet(rewrite(tmp_path / "expected.gguf", scale=power_of_two)) as model:
        expected = model.logits(ids)
    path = rewrite(tmp_path / "a.gguf", layout="arm64", scale=lambda scale: 1 / power_of_two(scale))
    write_model(read_gguf(path, layout="arm64", scales="divide"), tmp_path / "b.gguf")
    with BitNet(path, layout="arm64", scales="divide") as original, BitNet(tmp_path / "b.gguf") as written:
        assert original.logits(ids).tobytes() == expected.tobytes()
        assert written.logits(ids).tobytes() == expected.tobytes()
    write_model(read_gguf(path, layout="arm64"), tmp_path / "c.gguf")
    with BitNet(tmp_path / "c.gguf") as wrong:
        assert not np.allclose(wrong.logits(ids), expected, rtol=1e-1, atol=1e-1)


def test_scales_that_cannot_divide(tmp_path: Path) -> None:
    in_f32 = write_f32(tmp_path / "f32.gguf", lambda values: values)
    with pytest.raises(ConversionError, match=r"blk.0.attn_q.weight is in floating point \(F32\)"):
        read_gguf(in_f32, scales="divide")
    small = rewrite(tmp_path / "small.gguf", scale=lambda scale: 1e-40)
    with pytest.raises(ConversionError, match=r"blk.0.\w+.weight: the scale is too small to divide by"):
        write_model(read_gguf(small, scales="divide"), tmp_path / "out.gguf")
    with pytest.raises(ModelFileError, match="is too small to divide by"):  # nor does the engine
        BitNet(small, scales="divide")
    nothing = rewrite(tmp_path / "nothing.gguf", scale=lambda scale: 0.0)
    write_model(read_gguf(nothing, scales="divide"), tmp_path / "out.gguf")
    assert {scale for _, scale in matrices(read_gguf(tmp_path / "out.gguf")).values()} == {0.0}


def test_floating_point_files_that_are_not_ternary_are_refused(tmp_path: Path) -> None:
    noise = np.random.Generator(np.random.PCG64(3)).standard_normal
    path = write_f32(tmp_path / "f32.gguf", lambda values: noise(values.shape).astype(np.float32))
    with pytest.raises(
        ConversionError, match=r"blk.0.attn_q.weight is not ternary, and nothing declares it to be latent"
    ):
        write_model(read_gguf(path), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
    source = read_gguf(path, latent=True)
    codes, scale = matrices(source)["blk.0.attn_q.weight"]
    noise = np.random.Generator(np.random.PCG64(3)).standard_normal
    expected, expected_scale = absmean(noise(codes.shape).astype(np.float32))
    assert np.array_equal(codes, expected)
    assert scale == expected_scale
    # The others were ternary, and still are what they were.
    assert (
        matrices(source)["blk.0.attn_k.weight"][1]
        == matrices(read_gguf(bundled.path()))["blk.0.attn_k.weight"][1]
    )
    bad = write_f32(tmp_path / "nan.gguf", lambda values: values * np.float32(np.nan))
    with pytest.raises(ConversionError, match=r"not finite"):
        write_model(read_gguf(bad, latent=True), tmp_path / "out.gguf")


def test_a_folder_that_is_not_declared_is_refused(tmp_path: Path) -> None:
    family = FAMILIES["llama3-8b"]
    made = make_folder(family, tmp_path / "m")
    latent = {
        name: (kind, values) for name, (kind, values) in made.tensors.items() if not name.endswith("_scale")
    }
    noise = np.random.Generator(np.random.PCG64(3)).standard_normal
    for name, (kind, values) in latent.items():
        if kind == "U8":
            latent[name] = ("BF16", noise((values.shape[0] * 4, values.shape[1])).astype(np.float32))
    write_safetensors(made.folder / "model.safetensors", latent)
    with pytest.raises(ConversionError, match=r"k_proj.weight is not ternary, and nothing declares it"):
        write_model(read_folder(made.folder), tmp_path / "out.gguf")
    write_model(read_folder(made.folder, latent=True), tmp_path / "out.gguf")
    made.family.config["quantization_config"] = None
    with pytest.raises(ConversionError, match=r"not declared to be a BitNet model"):
        read_folder(_with_config(made.folder, quantization_config=None))
    write_model(read_folder(_with_config(made.folder, quantization_config=ONLINE)), tmp_path / "out.gguf")


def _with_config(folder: Path, **changes: Any) -> Path:
    import json

    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_direction_of_scales_can_be_said(tmp_path: Path) -> None:
    folder = make_folder(FAMILIES["llama3-8b"], tmp_path / "m").folder
    divided, multiplied = (matrices(read_folder(folder, weight_scale=way)) for way in (None, "mul"))
    for name, (codes, scale) in divided.items():
        assert np.array_equal(codes, multiplied[name][0])
        assert scale == float(np.float32(1) / np.float32(multiplied[name][1]))


def test_metadata_is_put_right(tmp_path: Path) -> None:
    """As the official file of 2B-4T has it: no pre-tokenizer, a placeholder as template, no end of turn."""
    folder = make_folder(FAMILIES["2b-4t-packed"], tmp_path / "m").folder
    source = read_folder(folder)
    metadata = {
        key: value
        for key, value in source.metadata.items()
        if key not in ("tokenizer.ggml.pre", "tokenizer.ggml.eot_token_id")
    }
    metadata["tokenizer.chat_template"] = ("Human: {{ x }}\n\nBITNETAssistant: ", "string")
    metadata["general.extra"] = ([1, 2], ("array", "u16"))
    notes = write_model(ModelSource(metadata, source.ternary, source.dense), tmp_path / "a.gguf")
    assert any("names no pre-tokenizer" in note for note in notes)
    assert any("placeholder" in note for note in notes)
    file = _native.ModelFile(str(tmp_path / "a.gguf"))
    assert file.metadata["tokenizer.ggml.eot_token_id"] == 521
    assert file.metadata["tokenizer.ggml.pre"] == "llama-bpe"  # going by the vocabulary
    assert file.metadata["tokenizer.chat_template"].startswith(
        "{{ bos_token }}{% for message in messages %}{{ message.role|capitalize"
    )
    assert file.metadata_kinds["general.extra"] == ("array", "u16")
    again = read_gguf(tmp_path / "a.gguf").metadata
    for key, (value, kind) in metadata.items():
        if key != "tokenizer.chat_template":
            assert again[key] == ((pytest.approx(value, rel=1e-7) if kind == "f32" else value), kind)
    with BitNet(tmp_path / "a.gguf", n_ctx=64) as model:
        assert model.info.repairs == ()


def test_a_mean_where_the_card_says_last_token_is_put_right(tmp_path: Path) -> None:
    source = read_folder(make_folder(FAMILIES["embedding-0.6b"], tmp_path / "m").folder)
    source.metadata["qwen3.pooling_type"] = (1, "u32")
    notes = write_model(source, tmp_path / "a.gguf")
    assert any("last token" in note for note in notes)
    assert _native.ModelFile(str(tmp_path / "a.gguf")).metadata["qwen3.pooling_type"] == 3


def test_too_large_for_f16(tmp_path: Path) -> None:
    made = make_folder(FAMILIES["2b-4t-packed"], tmp_path / "m")
    made.tensors["model.embed_tokens.weight"][1][7, 7] = 1e5
    write_safetensors(made.folder / "model.safetensors", made.tensors)
    with pytest.raises(
        ConversionError, match=r"token_embd.weight has numbers above 65504; choose --embd-type f32"
    ):
        write_model(read_folder(made.folder), tmp_path / "a.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    write_model(read_folder(made.folder), tmp_path / "a.gguf", embd_type="f32")


def test_nothing_is_left_behind_when_it_is_killed(tmp_path: Path) -> None:
    make_folder(FAMILIES["2b-4t-packed"], tmp_path / "m")
    code = """
import sys, time
from pathlib import Path
from bitnet.models.conversion import write_model
from bitnet.models.hf_folder import read_folder

def progress(total):
    def advance(done):
        print(done, flush=True)
        time.sleep(0.2)
    return advance

write_model(read_folder(Path(sys.argv[1])), Path(sys.argv[2]), progress=progress)
"""
    out = tmp_path / "out" / "a.gguf"
    for when in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "m"), str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as running:
            assert running.stdout is not None
            assert running.stdout.readline()  # something was written
            running.send_signal(when)
            assert running.wait() != 0
        if when == signal.SIGKILL and not hasattr(os, "O_TMPFILE"):
            assert not out.exists()
        else:
            assert list(out.parent.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
def test_memory_stays_small(tmp_path: Path) -> None:
    """A folder of 200 MB, of which the embedding alone has 131 MB, in much less memory than that."""
    family = FAMILIES["2b-4t-bf16"]
    made = make_folder(family, tmp_path / "m")
    vocab = 128_000
    embedding = np.broadcast_to(np.float32(0.5), (vocab, 512))
    wide = {**made.tensors, "model.embed_tokens.weight": ("BF16", embedding)}
    write_safetensors(made.folder / "model.safetensors", wide)
    _with_config(made.folder, vocab_size=vocab)
    code = """
import resource, sys
from pathlib import Path
from bitnet.models.conversion import write_model
from bitnet.models.hf_folder import read_folder

source = read_folder(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_model(source, Path(sys.argv[2]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(made.folder), str(tmp_path / "a.gguf")],
        capture_output=True,
        check=True,
        text=True,
    )
    assert int(done.stdout) < 100, (done.stdout, time.monotonic() - started)
    assert (tmp_path / "a.gguf").stat().st_size > 2 * vocab * 512


def test_i2s_bytes_are_those_of_the_format(tmp_path: Path) -> None:
    """A row of 128 with +1 at 0, 32 and 127, -1 at 1 and 64, and the scale 0.5."""
    row = np.zeros((1, 128), np.int8)
    row[0, [0, 32, 127]], row[0, [1, 64]] = 1, -1
    data = encode_ternary(row, 0.5, TensorType.I2_S)
    assert data[:2].hex() == "a115"
    assert data[31:36].hex() == "560000003f"
