"""Files whose ternary tensors lie in any readable layout give the bits that I2_S gives, which the goldens
check; and what is wrong in a file, or cannot be known of it, is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet import BitNet, ModelFileError, ModelNotFoundError, ValidationError, _native
from bitnet.models import layouts, weight_cache
from bitnet.models.gguf_writer import TensorType
from gguf_anatomy import Tensor, assemble, parse
from reference.model_factory import ModelSpec, make_model
from reference.numpy_model import NumpyModel, relative_error
from reference.ternary_layouts import LAYOUTS

IDS = [3, 100, 7, 7, 250, 1, 42] * 5
# Every matrix a whole number of blocks and tiles in every layout.
SPEC = ModelSpec(
    n_layers=2,
    hidden_size=256,
    n_heads=4,
    n_kv_heads=4,
    head_dim=64,
    ffn_size=512,
    f16_scales=True,
    layer_gain=0.5,
)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bitnet-b1.58": {},
    "bitnet": {"n_kv_heads": 2},
    "llama": {"untied": True},
    "qwen3": {"head_dim": 128},
    "gemma3": {"embedding": TensorType.F32, "norm_type": TensorType.F16},
}
TILES = {"tl1": (128, 64, 32), "tl2": (64, 96, 32)}
SCALE_AT = {"tq1_0": 52, "tq2_0": 64, "q2_0": 0}  # in the first block


def spec_of(architecture: str, layout: str) -> ModelSpec:
    changes = {"architecture": architecture, "layout": layout, **ARCHITECTURES[architecture]}
    return replace(SPEC, tiles=TILES.get(layout, (0, 0, 0)), **changes)


def tl_config(folder: Path, spec: ModelSpec) -> Path:
    """A kernel_config.ini, as setup_env.py of bitnet.cpp writes it."""
    bm, bk, bmm = spec.tiles
    shapes = sorted(set(spec.linear_shapes().values()))
    tiles = f"bm = {bm}\nbk = {bk}\nbmm = {bmm}\n"
    sections = [f"[Kernels_{i}]\nm = {m}\nk = {k}\n{tiles}" for i, (m, k) in enumerate(shapes)]
    path = folder / f"kernel_config-{spec.layout}.ini"
    path.write_text("\n".join(sections))
    return path


def options_for(spec: ModelSpec, folder: Path) -> dict[str, Any]:
    if spec.layout.startswith("tl"):
        return {"tl_config": tl_config(folder, spec)}
    option = LAYOUTS[spec.layout][1]
    return {} if option == "x128" else {"layout": option}


def load(spec: ModelSpec, folder: Path, **options: Any) -> BitNet:
    return BitNet(make_model(spec, folder), use_mmap=False, n_ctx=64, **options_for(spec, folder), **options)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "i2_s"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layout_gives_the_bits_of_i2_s(architecture: str, layout: str, models_folder: Path) -> None:
    spec = spec_of(architecture, layout)
    with load(spec_of(architecture, "i2_s"), models_folder) as expected, load(spec, models_folder) as model:
        assert model.info.ternary_type == layout.split("-")[0].upper()
        assert model.logits(IDS).tobytes() == expected.logits(IDS).tobytes()


def test_tl2_is_known_by_either_type_id(models_folder: Path, tmp_path: Path) -> None:
    """42 is Q2_0 in other files, which the size tells."""
    spec = spec_of("bitnet-b1.58", "tl2")
    gguf = parse(make_model(spec, models_folder).read_bytes())
    for tensor in gguf.tensors:
        tensor.type = {39: 42}.get(tensor.type, tensor.type)
    file = tmp_path / "model.gguf"
    file.write_bytes(assemble(gguf.version, gguf.metadata, gguf.tensors))
    with load(spec, models_folder) as expected, BitNet(file, **options_for(spec, tmp_path)) as model:
        assert model.info.ternary_type == "TL2"
        assert model.logits(IDS).tobytes() == expected.logits(IDS).tobytes()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_i2_s_of_these_models_equals_numpy(architecture: str, models_folder: Path) -> None:
    spec = spec_of(architecture, "i2_s")
    reference = NumpyModel(make_model(spec, models_folder))
    token_ids = reference.decided_sequence(5, seed=0)
    with load(spec, models_folder) as model:
        assert relative_error(model.logits(token_ids), reference.forward(token_ids)).max() < 1e-4


@pytest.mark.parametrize("layout", ["i2_s-arm64", "i2_s-row4"])
def test_a_wrong_order_is_another_model(layout: str, models_folder: Path) -> None:
    path = make_model(spec_of("bitnet-b1.58", layout), models_folder)
    with load(spec_of("bitnet-b1.58", "i2_s"), models_folder) as right, BitNet(path, n_ctx=64) as wrong:
        assert relative_error(wrong.logits(IDS), right.logits(IDS)).min() > 0.1


def test_candidates(models_folder: Path) -> None:
    def of(spec: ModelSpec) -> tuple[str, ...]:
        return layouts.candidates(_native.ModelFile(str(make_model(spec, models_folder))))

    assert of(spec_of("bitnet-b1.58", "i2_s-arm64")) == ("x128", "arm64", "row4")
    assert of(spec_of("bitnet-b1.58", "tl1")) == ("x128", "preset")
    assert of(spec_of("bitnet-b1.58", "tl2")) == of(spec_of("bitnet-b1.58", "tq2_0")) == ()
    assert of(ModelSpec()) == ("x128", "arm64", "row4")
    assert of(ModelSpec(hidden_size=120, head_dim=24, ffn_size=72)) == ("x128",)


def test_layouts_have_packed_weights_of_their_own(
    models_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("BITNET_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(weight_cache.path_for, "__kwdefaults__", {"min_bytes": 0})
    path = make_model(spec_of("bitnet-b1.58", "i2_s"), models_folder)
    logits = []
    for layout in (None, "arm64", "x128", "arm64"):
        with BitNet(path, n_ctx=64, layout=layout) as model:  # type: ignore[arg-type]
            logits.append(model.logits(IDS).tobytes())
    assert logits[0] == logits[2] != logits[1] == logits[3]
    assert len(list(tmp_path.glob("*.packed"))) == 2
    # Whatever name it is given, packed weights of another layout are not taken.
    native = partial(_native.Model, cache_path=str(tmp_path / "one.packed"))
    assert not native(_native.ModelFile(str(path))).from_cache
    assert native(_native.ModelFile(str(path)), layout="x128").from_cache
    assert not native(_native.ModelFile(str(path)), layout="arm64").from_cache


def test_a_choice_the_file_does_not_leave_is_refused(models_folder: Path, tmp_path: Path) -> None:
    config = tl_config(tmp_path, spec_of("bitnet-b1.58", "tl1"))
    tq2, i2s, tl2 = (make_model(spec_of("llama", name), models_folder) for name in ("tq2_0", "i2_s", "tl2"))
    for path, options, message in (
        (tq2, {"layout": "arm64"}, r"layout='arm64' is for I2_S, and .* has TQ2_0; leave it out"),
        (i2s, {"layout": "preset"}, "layout='preset' is for TL1, and .* has I2_S"),
        (tl2, {"layout": "row4"}, "layout='row4' is for I2_S, and .* has TL2"),
        (i2s, {"tl_config": config}, "tl_config is for TL1 and TL2, and .* has I2_S"),
        (i2s, {"layout": "x64"}, "x128"),
        (i2s, {"activation": "relu2"}, "architecture 'llama' have silu"),
        (i2s, {"activation": "gelu"}, "relu2"),
    ):
        with pytest.raises(ValidationError, match=message):
            BitNet(path, n_ctx=64, **options)


def test_tl_config_is_checked(models_folder: Path, tmp_path: Path) -> None:
    path = make_model(spec_of("bitnet-b1.58", "tl1"), models_folder)
    with pytest.raises(ModelFileError, match=r"attn_q.weight': the tile sizes .* 256 x 256 .*tl_config"):
        BitNet(path, n_ctx=64)
    with pytest.raises(ModelNotFoundError, match="cannot read tl_config"):
        BitNet(path, tl_config=tmp_path / "none.ini")
    good = "m = 256\nk = 256\nbm = 128\nbk = 64\nbmm = 32\n"
    for text, message in (
        ("m = 1", "is no ini file"),
        ("", "has no sections"),
        ("[a]\n" + good.replace("bk", "kb"), r"bk of \[a\] must be a positive whole number, not ''"),
        ("[a]\n" + good.replace("32", "-32"), "bmm of .* not '-32'"),
        ("[a]\n" + good.replace("64", "9" * 30), "bk of"),
    ):
        file = tmp_path / "bad.ini"
        file.write_text(text)
        with pytest.raises(ValidationError, match=message):
            BitNet(path, tl_config=file)
    file.write_text("[a]\n" + good.replace("128", "96"))
    with pytest.raises(ModelFileError, match="tiles of bm=96, bk=64, bmm=32 cannot cut"):
        BitNet(path, n_ctx=64, tl_config=file)


def changed(path: Path, name: str, change: Callable[[Tensor], Tensor], folder: Path) -> Path:
    gguf = parse(path.read_bytes())
    tensors = [change(t) if t.name == name.encode() else t for t in gguf.tensors]
    file = folder / "changed.gguf"
    file.write_bytes(assemble(gguf.version, gguf.metadata, tensors))
    return file


def with_scale(path: Path, name: str, values: list[float], folder: Path) -> Path:
    gguf = parse(path.read_bytes())
    data = struct.pack(f"<{len(values)}f", *values)
    extra = Tensor(name.encode(), [len(values)], 0, 0, data)
    file = folder / "scaled.gguf"
    file.write_bytes(assemble(gguf.version, gguf.metadata, [*gguf.tensors, extra]))
    return file


@pytest.mark.parametrize("layout", ["i2_s", "tq2_0"])
def test_scale_tensors_multiply(layout: str, models_folder: Path, tmp_path: Path) -> None:
    spec = spec_of("bitnet-b1.58", layout)
    path = make_model(spec, models_folder)
    with (
        BitNet(path, n_ctx=64) as plain,
        BitNet(with_scale(path, "blk.1.ffn_up.scale", [1.0], tmp_path), n_ctx=64) as one,
    ):
        assert one.logits(IDS).tobytes() == plain.logits(IDS).tobytes()
        original = plain.logits(IDS)
    # The scale of the product itself, doubled in the file.
    doubled = tmp_path / "doubled.gguf"
    made = parse(make_model(replace(spec, layout="i2_s"), models_folder).read_bytes())
    for tensor in made.tensors:
        if tensor.name == b"blk.1.ffn_up.weight":
            (scale,) = struct.unpack_from("<f", tensor.data, tensor.n_bytes - 32)
            at = tensor.n_bytes - 32
            tensor.data = tensor.data[:at] + struct.pack("<f", 2 * scale) + tensor.data[at + 4 :]
    doubled.write_bytes(assemble(made.version, made.metadata, made.tensors))
    scaled = with_scale(path, "blk.1.ffn_up.scale", [2.0], tmp_path)
    with BitNet(scaled, n_ctx=64) as model, BitNet(doubled, n_ctx=64) as expected:
        assert model.logits(IDS).tobytes() == expected.logits(IDS).tobytes() != original.tobytes()
    for values, message in (
        ([-1.0], "must not be negative"),
        ([float("nan")], "not finite"),
        ([1.0, 1.0], "must have shape"),
    ):
        with pytest.raises(ModelFileError, match=message):
            BitNet(with_scale(path, "blk.1.ffn_up.scale", values, tmp_path), n_ctx=64)
    with pytest.raises(ModelFileError, match=r"unexpected tensor 'blk.1.attn_norm.scale'"):
        BitNet(with_scale(path, "blk.1.attn_norm.scale", [1.0], tmp_path), n_ctx=64)


@pytest.mark.parametrize("layout", ["tq1_0", "tq2_0", "q2_0"])
def test_blocks_of_different_scales_are_refused(layout: str, models_folder: Path, tmp_path: Path) -> None:
    path = make_model(spec_of("llama", layout), models_folder)
    at = SCALE_AT[layout]

    def scaled(factor: float) -> Callable[[Tensor], Tensor]:
        def change(tensor: Tensor) -> Tensor:
            (scale,) = struct.unpack_from("<e", tensor.data, at)
            data = tensor.data[:at] + struct.pack("<e", scale * factor) + tensor.data[at + 2 :]
            return replace(tensor, data=data)

        return change

    name = "blk.0.ffn_down.weight"
    with pytest.raises(ModelFileError, match=r"ffn_down.* have different scales.*convert the model from"):
        BitNet(changed(path, name, scaled(1.5), tmp_path), n_ctx=64)
    BitNet(changed(path, name, scaled(0), tmp_path), n_ctx=64).close()  # a block of zeros


@pytest.mark.parametrize("name", ["bitnet-b1.58", "llama"])
def test_weights_that_are_not_ternary_are_refused(name: str, models_folder: Path, tmp_path: Path) -> None:
    path = make_model(spec_of(name, "i2_s"), models_folder)
    rows, columns = SPEC.linear_shapes()["ffn_up"]
    dense = np.zeros((rows, columns), np.float16).tobytes()
    file = changed(path, "blk.0.ffn_up.weight", lambda t: replace(t, type=1, data=dense), tmp_path)
    with pytest.raises(ModelFileError, match=r"must be ternary, found F16.*convert them with a ternary type"):
        BitNet(file, n_ctx=64)
