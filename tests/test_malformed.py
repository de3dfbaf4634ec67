"""Damaged and hostile model files: each is refused with an error that names it, whoever finds the damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitnet import BitNet, _native
from bitnet.errors import ModelFileError
from bitnet.models.gguf_writer import TensorType
from malformed_gguf import damaged_ternary_tensors, malformed_variants
from reference.model_factory import ModelSpec, make_model

SPECS = {
    # Small: the list of damages grows with the number of records.
    "bitnet": ModelSpec(n_layers=1, hidden_size=64, n_heads=2, n_kv_heads=1, head_dim=32, ffn_size=40),
    "llama": ModelSpec(
        "llama",
        1,
        64,
        n_heads=2,
        n_kv_heads=1,
        head_dim=32,
        ffn_size=40,
        embedding=TensorType.Q8_0,
        untied=True,
    ),
}


TERNARY = {"tl1": (64, 64, 32), "tl2": (64, 96, 32), "tq1_0": None, "tq2_0": None, "q2_0": None}


def refusal(path: Path, **options: Any) -> str | None:
    """The message with which the file is refused."""
    try:
        BitNet(path, use_mmap=False, n_ctx=32, **options).close()
    except ModelFileError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", SPECS)
def test_every_damaged_file_is_refused(name: str, models_folder: Path, tmp_path: Path) -> None:
    valid = make_model(SPECS[name], models_folder)
    assert refusal(valid) is None
    damaged = tmp_path / "damaged.gguf"
    count, accepted, unnamed = 0, [], []
    for damage, data in malformed_variants(valid.read_bytes()):
        count += 1
        damaged.write_bytes(data)
        message = refusal(damaged)
        if message is None:
            accepted.append(damage)
        elif str(damaged) not in message or len(message) < len(str(damaged)) + len(": empty"):
            unnamed.append((damage, message))
    assert not accepted
    assert not unnamed
    assert count >= 200


@pytest.mark.parametrize("layout", TERNARY)
def test_every_damaged_ternary_tensor_is_refused(layout: str, models_folder: Path, tmp_path: Path) -> None:
    spec = ModelSpec(
        n_layers=1,
        hidden_size=256,
        n_heads=4,
        n_kv_heads=2,
        ffn_size=512,
        layout=layout,
        f16_scales=True,
        tiles=TERNARY[layout] or (0, 0, 0),
    )
    options: dict[str, Any] = {}
    if TERNARY[layout]:
        bm, bk, bmm = spec.tiles
        options["tl_config"] = tmp_path / "kernel_config.ini"
        sections = [
            f"[Kernels_{i}]\nm={m}\nk={k}\nbm={bm}\nbk={bk}\nbmm={bmm}\n"
            for i, (m, k) in enumerate({(256, 256), (128, 256), (512, 256), (256, 512)})
        ]
        options["tl_config"].write_text("".join(sections))
    valid = make_model(spec, models_folder)
    assert refusal(valid, **options) is None
    damaged = tmp_path / "damaged.gguf"
    count, accepted = 0, []
    for damage, data in damaged_ternary_tensors(valid.read_bytes()):
        count += 1
        damaged.write_bytes(data)
        message = refusal(damaged, **options)
        if message is None or str(damaged) not in message:
            accepted.append((damage, message))
    assert not accepted
    assert count >= 150


def test_the_layers_refuse_what_is_theirs(models_folder: Path, tmp_path: Path) -> None:
    """The reader alone refuses a bad container, and the model alone bad weights, without a tokenizer."""
    damaged = tmp_path / "damaged.gguf"
    for damage, data in malformed_variants(make_model(SPECS["bitnet"], models_folder).read_bytes()):
        damaged.write_bytes(data)
        if damage.startswith("container:"):
            with pytest.raises(ModelFileError):
                _native.ModelFile(str(damaged))
        elif damage.startswith("model:"):
            file = _native.ModelFile(str(damaged))
            with pytest.raises(ModelFileError):
                _native.Model(file, use_mmap=False, n_threads=1)
