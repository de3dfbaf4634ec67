"""Files written by bitnet convert, computed by stock llama.cpp.

Skipped where llama-cpp-python is not installed: pip install llama-cpp-python.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitnet import BitNet
from bitnet.models.conversion import FileType, write_model
from bitnet.models.gguf_source import read_gguf
from reference.model_factory import ModelSpec, make_model

pytestmark = [pytest.mark.reference, pytest.mark.llama_cpp]

TOKEN_IDS = [260, 3, 77, 150, 9, 200, 31, 258, 19, 44, 101, 7, 256, 88, 12, 63]


@pytest.mark.parametrize("untied", [True, False])
@pytest.mark.parametrize("kind", ["tq1_0", "tq2_0", "q2_0"])
@pytest.mark.filterwarnings("ignore")
def test_llama_cpp_computes_the_same(kind: FileType, untied: bool, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    spec = ModelSpec(
        "llama", hidden_size=512, n_heads=4, n_kv_heads=2, head_dim=128, ffn_size=1792, untied=untied, seed=7
    )
    original = make_model(spec, tmp_path)
    path = tmp_path / f"{kind}.gguf"
    write_model(read_gguf(original), path, file_type=kind)
    theirs = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=1)
    try:
        theirs.eval(TOKEN_IDS)
        expected = np.array(theirs.scores[: len(TOKEN_IDS)], dtype=np.float64)
        tokens = theirs.tokenize(b"the winner 123", add_bos=True)
    finally:
        theirs.close()
    with BitNet(original) as model:
        logits = model.logits(TOKEN_IDS).astype(np.float64)
        assert model.tokenize("the winner 123") == tokens
    # They quantise activations in blocks of 256, finer than the model was trained with; the rest is the same.
    error = np.linalg.norm(logits - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 0.03, error
    top = np.argmax(logits, axis=1)
    gap = expected.max(axis=1) - expected[np.arange(len(top)), top]
    assert gap.max() < 0.05 * expected.std(), gap
