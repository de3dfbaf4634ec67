"""Perplexity and divergence against transformers, which computes and scores the same weights on its own."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bitnet import BitNet
from bitnet.evaluation import compare, perplexity
from reference.cases import CASES
from reference.model_factory import encode_dense, make_model, random_model, write_gguf

pytestmark = pytest.mark.reference

TEXT = "The quick brown fox jumps over the lazy dog, then it goes home and thinks about the winter. " * 2


@pytest.fixture(scope="module")
def hf() -> ModuleType:
    pytest.importorskip("torch")
    from reference import hf_model

    return hf_model


@pytest.mark.parametrize("case", ["bitnet-f16-hd64", "llama-f16-hd64", "llama-bf16-hd40-tied"])
@pytest.mark.filterwarnings("ignore")
def test_perplexity_equals_that_of_transformers(case: str, hf: ModuleType, models_folder: Path) -> None:
    """The mean loss that transformers returns for labels, to 1e-4 of it (K and V in f16 on both sides)."""
    import torch

    with BitNet(make_model(CASES[case], models_folder), use_mmap=False) as model:
        ids = model.tokenize(TEXT)
        found = perplexity(model, TEXT)
    assert found.n_windows == 1
    reference = hf.hf_model(random_model(CASES[case]))
    cache = hf.HalfCache(config=reference.config)
    with torch.no_grad():
        tokens = torch.tensor([ids])
        loss = reference(tokens, labels=tokens, past_key_values=cache, use_cache=True).loss.item()
    assert found.n_tokens == len(ids) - 1
    assert found.mean_nll == pytest.approx(loss, rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_divergence_equals_that_of_torch(hf: ModuleType, tmp_path: Path) -> None:
    """Of a model with embedding and head in 4 bits from the same in f16, whose logits transformers computes:
    by torch's own kl_div, to 1%."""
    import torch

    weights = random_model(CASES["llama-f16-hd64"])
    assert weights.output is not None
    # A head that spreads the probability over many tokens.
    weights.output = encode_dense(weights.spec.embedding, weights.output.values * np.float32(0.05))
    path = write_gguf(weights, tmp_path / "model.gguf")
    with BitNet(path, use_mmap=False) as a, BitNet(path, use_mmap=False, embd_type="q4_0") as b:
        ids = a.tokenize(TEXT)
        found = compare(a, b, TEXT)
        log_b = torch.log_softmax(torch.from_numpy(b.logits(ids)[:-1]).double(), -1)
    logits = hf.hf_logits(hf.hf_model(weights), ids, f16_cache=True)
    log_a = torch.log_softmax(torch.from_numpy(logits)[:-1].double(), -1)
    expected = torch.nn.functional.kl_div(log_b, log_a, reduction="batchmean", log_target=True).item()
    assert found.mean_divergence == pytest.approx(expected, rel=0.01)
    assert found.mean_divergence > 1e-4
    assert found.top1_agreement == pytest.approx(
        (log_a.argmax(-1) == log_b.argmax(-1)).double().mean().item(), abs=0.01
    )
