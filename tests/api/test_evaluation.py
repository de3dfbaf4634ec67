"""Perplexity and comparison against independent arithmetic over the model's logits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet import BitNet, ValidationError, _native
from bitnet.evaluation import Progress, _halves, _sliding, compare, perplexity
from bitnet.models.gguf_writer import TensorType
from bitnet.testing import FakeEngine
from reference.model_factory import ModelSpec, make_model

TEXT = "The capital of France is Paris. The cat sat on the mat, and the dog lay on the rug. " * 6
SPEC = ModelSpec(hidden_size=320, ffn_size=136, layer_gain=1.0, vocab_size=700)


@pytest.fixture(scope="module")
def other(models_folder: Path) -> Iterator[BitNet]:
    """SPEC with its embedding in 8 bits: nearly the same model."""
    with BitNet(make_model(SPEC, models_folder), embd_type="q8_0") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def same(models_folder: Path) -> Iterator[BitNet]:
    with BitNet(make_model(SPEC, models_folder)) as loaded:
        yield loaded


def log_softmax(logits: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    wide = logits.astype(np.float64)
    peak = wide.max(axis=-1, keepdims=True)
    return wide - peak - np.log(np.exp(wide - peak).sum(axis=-1, keepdims=True))


def test_logprobs_are_those_of_the_logits(same: BitNet) -> None:
    ids = same.tokenize(TEXT)[:150]  # several steps of 64
    expected = log_softmax(same.logits(ids))[np.arange(149), ids[1:]]
    np.testing.assert_allclose(same.logprobs(ids), expected, atol=1e-9)
    np.testing.assert_allclose(same.logprobs(ids, first=100), expected[99:], atol=1e-9)
    np.testing.assert_allclose(same.logprobs(ids[:2]), expected[:1], atol=1e-9)
    for wrong in ([], [1], [1, 700]):
        with pytest.raises(ValidationError, match=r"token_ids|outside"):
            same.logprobs(wrong)
    with pytest.raises(ValidationError, match="first must be from 1 to 149"):
        same.logprobs(ids, first=0)


def test_logits_of_the_end_only(same: BitNet) -> None:
    ids = same.tokenize(TEXT)[:200]
    whole = same.logits(ids)
    for first in (0, 1, 63, 64, 65, 130, 199):
        assert np.array_equal(same.logits(ids, first=first), whole[first:])


def test_what_precedes_is_computed_once_for_a_salt(models_folder: Path) -> None:
    with BitNet(make_model(SPEC, models_folder)) as model:
        ids = model.tokenize(TEXT)[:192]
        whole = model.logits(ids)
        before = model.health().n_tokens  # type: ignore[union-attr]
        for begin in (0, 64, 128):
            part = model.logits(ids[: begin + 64], first=begin, cache_salt="mine")
            assert np.array_equal(part, whole[begin : begin + 64])
        assert model.health().n_tokens - before == 192  # type: ignore[union-attr]
        # What is cached beyond `first` is computed again, for its logits are wanted.
        assert np.array_equal(model.logits(ids, first=10, cache_salt="mine"), whole[10:])


@pytest.mark.parametrize(("window", "stride"), [(None, None), (64, 20), (100, 99), (33, 1)])
def test_sliding_perplexity(same: BitNet, window: int | None, stride: int | None) -> None:
    text = TEXT[:170]
    ids = same.tokenize(text)
    result = perplexity(same, text, window=window, stride=stride)
    width, step = window or 512, stride or (window or 512) // 2
    # Every token but BOS, given BOS and as many before it as the window of its turn has.
    losses = []
    end = min(width, len(ids))
    turns = dict.fromkeys(range(1, end), end)
    while end < len(ids):
        turns |= {i: min(end + step, len(ids)) for i in range(end, min(end + step, len(ids)))}
        end = min(end + step, len(ids))
    for i in range(1, len(ids)):
        begin = max(1, turns[i] - (width - 1))
        context = [ids[0], *ids[begin:i]]
        losses.append(-log_softmax(same.logits(context)[-1])[ids[i]])
    assert result.n_tokens == len(losses) == len(ids) - 1
    assert result.mean_nll == pytest.approx(np.mean(losses), abs=1e-9)
    assert result.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-9)
    assert result.mean_nll_error == pytest.approx(np.std(losses, ddof=1) / math.sqrt(len(losses)), rel=1e-6)
    assert result.error == pytest.approx(result.perplexity * result.mean_nll_error)
    assert (result.window, result.stride) == (width, step)
    assert result.tokens_per_second == pytest.approx(result.n_computed / result.seconds)


def test_perplexity_as_llama_cpp_measures_it(same: BitNet) -> None:
    ids = same.tokenize(TEXT)
    n_ctx = 64
    losses = []
    for chunk in range(len(ids) // n_ctx):
        part = [ids[0], *ids[chunk * n_ctx + 1 : (chunk + 1) * n_ctx]]
        logprobs = log_softmax(same.logits(part))
        # llama-perplexity: for j in first .. n_ctx - 2, the probability of part[j + 1]
        losses += [-logprobs[j, part[j + 1]] for j in range(n_ctx // 2, n_ctx - 1)]
    result = perplexity(same, TEXT, window=n_ctx, chunking="llama.cpp")
    assert result.n_tokens == len(losses) > 60
    assert result.mean_nll == pytest.approx(np.mean(losses), abs=1e-9)


def test_every_token_is_scored_once() -> None:
    ids = list(range(1000, 1300))
    for prefix in ([], [1]):
        for window, stride in ((300, 150), (64, 32), (64, 63), (64, 1), (4, 3)):
            scored = []
            for part in _sliding(prefix, ids, window, stride):
                assert list(part.token_ids[: len(prefix)]) == prefix
                assert len(part.token_ids) <= window
                scored += part.token_ids[part.first :]
            assert scored == (ids if prefix else ids[1:])
    assert [len(part.token_ids) for part in _halves([1], ids, 100, 100)] == [100, 100, 100]
    assert list(_halves([1], ids, 100, 100))[1].token_ids[:2] == (1, 1100)


def test_progress(same: BitNet) -> None:
    seen: list[Progress] = []
    result = perplexity(same, TEXT, window=64, on_progress=seen.append)
    assert [step.done for step in seen] == list(range(1, result.n_windows + 1))
    assert {step.total for step in seen} == {result.n_windows}
    assert seen[-1].perplexity == pytest.approx(result.perplexity)


def test_comparison(same: BitNet, other: BitNet) -> None:
    ids = same.tokenize(TEXT)[:200]
    text = same.detokenize(ids)
    assert same.tokenize(text) == ids
    a, b = (log_softmax(model.logits(ids))[:-1] for model in (same, other))
    divergences = (np.exp(a) * (a - b)).sum(axis=1)
    result = compare(same, other, text)
    assert result.n_tokens == 199
    assert result.mean_divergence == pytest.approx(divergences.mean(), rel=1e-6)
    assert result.max_divergence == pytest.approx(divergences.max(), rel=1e-6)
    assert result.divergence_error == pytest.approx(divergences.std(ddof=1) / math.sqrt(199), rel=1e-6)
    assert result.top1_agreement == (a.argmax(1) == b.argmax(1)).mean()
    targets = np.arange(199), ids[1:]
    assert result.perplexity_a == pytest.approx(math.exp(-a[targets].mean()), rel=1e-9)
    assert result.perplexity_b == pytest.approx(math.exp(-b[targets].mean()), rel=1e-9)
    assert result.perplexity_a == pytest.approx(perplexity(same, text).perplexity, rel=1e-9)
    raw = np.abs(same.logits(ids)[:-1] - other.logits(ids)[:-1]).max()
    assert result.largest_logit_difference == pytest.approx(raw, rel=1e-6)
    assert result.mean_divergence > 0


def test_a_model_equals_itself(same: BitNet) -> None:
    result = compare(same, same, TEXT, window=64)
    assert (result.mean_divergence, result.top1_agreement) == (0, 1)
    assert result.largest_logit_difference == 0
    assert (
        result.perplexity_a
        == result.perplexity_b
        == pytest.approx(perplexity(same, TEXT, window=64).perplexity)
    )


def test_different_vocabularies_are_refused(same: BitNet, model: BitNet, models_folder: Path) -> None:
    sizes = rf"\(700 and {model.info.vocab_size} tokens\)"
    with pytest.raises(ValidationError, match=f"different vocabularies {sizes}"):
        compare(same, model, TEXT)
    with (
        BitNet.from_engine(FakeEngine()) as fake,
        BitNet(make_model(ModelSpec(vocab_size=300), models_folder)) as small,
        pytest.raises(ValidationError, match="different vocabularies"),
    ):
        compare(fake, small, TEXT)


def test_comparing_logits_natively() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(scale=5, size=(9, 1001)).astype(np.float32) for _ in range(2))
    targets = rng.integers(-1, 1001, size=9).astype(np.int32)
    targets[3] = -1
    found = _native.compare_logits(a, b, targets)
    p, q = log_softmax(a), log_softmax(b)
    np.testing.assert_allclose(found[:, 0], (np.exp(p) * (p - q)).sum(axis=1), rtol=1e-10)
    np.testing.assert_array_equal(found[:, 1], np.abs(a.astype(np.float64) - b).max(axis=1))
    np.testing.assert_array_equal(found[:, 2], a.argmax(axis=1))
    np.testing.assert_array_equal(found[:, 3], b.argmax(axis=1))
    kept = targets >= 0
    np.testing.assert_allclose(found[kept, 4], p[np.arange(9), targets][kept], rtol=1e-12)
    np.testing.assert_allclose(found[kept, 5], q[np.arange(9), targets][kept], rtol=1e-12)
    assert np.isnan(found[~kept, 4:]).all()
    with pytest.raises(ValidationError, match="same shape"):
        _native.compare_logits(a, b[:3], targets)
    with pytest.raises(ValidationError, match="1001 is outside"):
        _native.compare_logits(a, b, np.full(9, 1001, np.int32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 3}, "window must be from 4"),
        ({"window": 4096}, "does not fit into n_ctx=512"),
        ({"window": 64, "stride": 64}, "stride must be from 1 to 63"),
        ({"chunking": "none"}, "chunking must be one of sliding, llama.cpp"),
        ({"chunking": "llama.cpp", "stride": 3}, "has no stride"),
        ({"chunking": "llama.cpp", "window": 512}, "must have 512 tokens, one window"),
    ],
)
def test_what_cannot_be_measured(same: BitNet, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        perplexity(same, TEXT[:300], **options)
    with pytest.raises(ValidationError, match="it must have two tokens"):
        perplexity(same, "")


def test_memory_stays_bounded(models_folder: Path) -> None:
    """The logits of all positions at once would be 512 x 50,000 x 4 bytes = 98 MiB."""
    import resource

    spec = ModelSpec(vocab_size=50_000, hidden_size=64, n_heads=1, n_kv_heads=1, ffn_size=64, n_layers=1)
    with BitNet(make_model(spec, models_folder)) as model:
        ids = list(range(512))
        model.logprobs(ids[:100])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        model.logprobs(ids)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 40 * 1024  # KiB


def test_embedding_type_of_the_other_model(other: BitNet) -> None:
    assert other.info.embd_type == TensorType.Q8_0.name
