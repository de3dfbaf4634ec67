"""Folders that transformers itself has written, read and computed here; and packing as transformers packs."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet import BitNet
from bitnet.models.hf_folder import read_folder
from hub.hf_folders import pack
from hub.hf_tokenizers import write_random_tokenizer
from reference.model_factory import ModelSpec, random_model
from reference.numpy_model import relative_error

pytestmark = pytest.mark.reference

SPECS = {
    "bitnet": ModelSpec(layer_gain=0.5, seed=5),
    "llama": ModelSpec("llama", hidden_size=256, n_heads=4, n_kv_heads=2, ffn_size=320, untied=True, seed=6),
}
QUANTIZATION: dict[str, Any] = {
    "offline": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
    "online": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"},
    "packed": {"quant_method": "bitnet"},
}
TOKEN_IDS = [260, 3, 77, 150, 9, 200, 31, 258]


@pytest.fixture(scope="module")
def hf() -> ModuleType:
    pytest.importorskip("torch")
    from reference import hf_model

    return hf_model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("storage", list(QUANTIZATION))
@pytest.mark.parametrize("kind", list(SPECS))
def test_what_transformers_saved_computes_the_same(
    kind: str, storage: str, hf: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITNET_CACHE_DIR", str(tmp_path / "cache"))
    weights = random_model(SPECS[kind])
    theirs = hf.hf_model(weights, storage)
    folder = tmp_path / "saved"
    theirs.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": QUANTIZATION[storage]}))
    write_random_tokenizer(folder, SPECS[kind].vocab_size)
    for tensor in read_folder(folder).ternary:
        codes, scale = tensor.read()
        linear = weights.linears[tensor.name.removesuffix(".weight")]
        if kind == "bitnet":
            assert np.array_equal(codes, linear.codes), tensor.name
        assert np.array_equal(np.sort(codes, axis=0), np.sort(linear.codes, axis=0)), tensor.name
        assert scale == pytest.approx(linear.scale, rel=1e-6)
    with BitNet(folder) as model:
        logits = model.logits(TOKEN_IDS)
    expected = hf.hf_logits(theirs, TOKEN_IDS, f16_cache=True)
    # The embedding is kept as f16 here, which all its values have exactly.
    assert relative_error(logits, expected).max() < 1e-4
    assert logits.argmax(-1).tolist() == expected.argmax(-1).tolist()


@pytest.mark.filterwarnings("ignore")
def test_packing_is_that_of_transformers(hf: ModuleType) -> None:
    import torch
    from transformers.integrations.bitnet import pack_weights

    codes = np.random.default_rng(0).integers(-1, 2, (24, 16)).astype(np.int8)
    theirs = pack_weights(torch.from_numpy(codes.astype(np.float32))).numpy()
    assert np.array_equal(pack(codes), theirs)
