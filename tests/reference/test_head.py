"""The output head: greedy tokens and log-probabilities are those of the file's own rows, although most of the
vocabulary is only ever computed in int8.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet import _native
from bitnet.models.gguf_writer import TensorType
from reference.engine import Engine
from reference.model_factory import ExactRandom, ModelSpec, encode_dense, make_model, random_model, write_gguf

EMBEDDINGS = [TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.Q8_0, TensorType.Q6_K]
GREEDY = {"temperature": 0.0}


def spec_with(embedding: TensorType, **changes: object) -> ModelSpec:
    spec = ModelSpec(
        "llama",
        n_layers=1,
        hidden_size=256,
        n_heads=4,
        n_kv_heads=2,
        ffn_size=104,
        vocab_size=2000,
        untied=True,
    )
    return replace(spec, embedding=embedding, **changes)


def greedy_tokens(engine: Engine, n: int, **options: object) -> list[int]:
    sampler = _native.Sampler(**(GREEDY | options))
    return [engine.runner.sample(output, sampler).token_id for output in range(n)]


def engine_with_head(spec: ModelSpec, rows: NDArray[np.float32], folder: Path) -> Engine:
    """The spec's model with another output head."""
    model = random_model(spec)
    model.output = encode_dense(spec.embedding, rows)
    return Engine(write_gguf(model, folder / "model.gguf"))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_greedy_is_the_argmax(embedding: TensorType, tied: bool, models_folder: Path) -> None:
    spec = spec_with(embedding, untied=not tied, layer_gain=2.0)
    engine = Engine(make_model(spec, models_folder))
    token_ids = np.random.default_rng(0).integers(spec.vocab_size, size=100).tolist()
    logits = engine.logits(token_ids)
    assert greedy_tokens(engine, 100) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_greedy_among_hundreds_of_near_ties(
    embedding: TensorType, models_folder: Path, tmp_path: Path
) -> None:
    """Three hundred rows that int8 cannot tell apart lead at each of the positions they were made from."""
    spec = spec_with(embedding)
    token_ids = np.random.default_rng(1).integers(spec.vocab_size, size=6).tolist()
    engine = Engine(make_model(spec, models_folder))
    engine.logits(token_ids)
    random = ExactRandom(1)
    rows = random.normal(spec.vocab_size, spec.hidden_size)
    for i, hidden in enumerate(engine.runner.hidden()):
        leader = 2 * hidden / np.sqrt(np.square(hidden).mean())
        rows[i * 300 : (i + 1) * 300] = leader + np.float32(3e-3) * random.normal(300, spec.hidden_size)
    near_ties = engine_with_head(spec, rows, tmp_path)
    logits = near_ties.logits(token_ids)
    leaders = logits.argmax(-1)
    assert [leader // 300 for leader in leaders] == list(range(6))
    spread = np.sort(logits, axis=-1)[:, -300:]
    assert np.all(spread[:, -1] - spread[:, 0] < 0.01 * spread[:, -1])  # they are near ties indeed
    assert greedy_tokens(near_ties, 6) == leaders.tolist()


def test_greedy_among_exact_ties_is_the_first(models_folder: Path, tmp_path: Path) -> None:
    spec = spec_with(TensorType.F16)
    rows = np.tile(ExactRandom(2).normal(spec.hidden_size), (spec.vocab_size, 1))
    rows[:700] *= -1
    engine = engine_with_head(spec, rows, tmp_path)
    logits = engine.logits([1, 2, 3, 4])
    assert set(logits.argmax(-1).tolist()) == {0, 700}
    assert greedy_tokens(engine, 4) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_greedy_with_rows_int8_represents_badly(embedding: TensorType, tmp_path: Path) -> None:
    """One huge element a row leaves a few int8 steps for all others, and the winner is anywhere."""
    spec = spec_with(embedding)
    random = ExactRandom(3)
    rows = random.normal(spec.vocab_size, spec.hidden_size)
    rows[:, 17] = 60 + random.normal(spec.vocab_size)
    engine = engine_with_head(spec, rows, tmp_path)
    token_ids = np.random.default_rng(3).integers(spec.vocab_size, size=60).tolist()
    logits = engine.logits(token_ids)
    assert greedy_tokens(engine, 60) == logits.argmax(-1).tolist()


def test_greedy_after_bias_and_penalties(models_folder: Path) -> None:
    spec = spec_with(TensorType.Q8_0)
    engine = Engine(make_model(spec, models_folder))
    token_ids = np.random.default_rng(4).integers(spec.vocab_size, size=20).tolist()
    logits = engine.logits(token_ids).astype(np.float64)
    likely = np.argsort(-logits, axis=-1)[:, :3]
    for output, (first, second, third) in enumerate(likely.tolist()):
        row = logits[output]
        assert greedy_tokens(engine, 20, logit_bias={first: -100.0})[output] == second
        assert greedy_tokens(engine, 20, logit_bias={third: 1000.0})[output] == third
        sampler = _native.Sampler(
            temperature=0, repetition_penalty=1.3, presence_penalty=0.5, prompt_ids=[first]
        )
        sampler.accept(second)
        expected = row.copy()
        for token in (first, second):
            expected[token] = row[token] / 1.3 if row[token] > 0 else row[token] * 1.3
        expected[second] -= 0.5
        assert engine.runner.sample(output, sampler).token_id == expected.argmax()


def test_masks_leave_only_what_they_allow(models_folder: Path) -> None:
    spec = spec_with(TensorType.F16)
    engine = Engine(make_model(spec, models_folder))
    logits = engine.logits([5, 6, 7])
    allowed = np.zeros(spec.vocab_size, dtype=bool)
    allowed[np.argsort(logits[2])[:100]] = True  # the hundred least likely
    words = np.packbits(np.pad(allowed, (0, -spec.vocab_size % 32)), bitorder="little").view(np.int32)
    sampler = _native.Sampler(temperature=0)
    sampler.set_mask(words)
    assert engine.runner.sample(2, sampler).token_id == np.where(allowed, logits[2], -np.inf).argmax()
    sampler.set_mask(None)
    assert engine.runner.sample(2, sampler).token_id == logits[2].argmax()


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_logprobs_are_log_softmax_of_the_logits(embedding: TensorType, models_folder: Path) -> None:
    engine = Engine(make_model(spec_with(embedding), models_folder))
    logits = engine.logits([9, 8, 7]).astype(np.float64)
    # Of the model's own distribution: temperature, bias and filters do not show in them.
    sampler = _native.Sampler(temperature=5.0, top_k=3, logit_bias={12: 7.5}, seed=1)
    for output, row in enumerate(logits):
        log_softmax = row - row.max() - math.log(np.exp(row - row.max()).sum())
        sampled = engine.runner.sample(output, sampler, logprobs=20)
        assert sampled.logprob == pytest.approx(log_softmax[sampled.token_id], abs=1e-4)
        assert [token for token, _ in sampled.top] == np.argsort(-row, kind="stable")[:20].tolist()
        assert [value for _, value in sampled.top] == pytest.approx(
            log_softmax[[t for t, _ in sampled.top]], abs=1e-4
        )
        assert engine.runner.sample(output, sampler, logprobs=0).top == []
        assert math.isnan(engine.runner.sample(output, sampler).logprob)
