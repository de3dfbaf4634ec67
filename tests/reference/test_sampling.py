"""What the native sampler draws, against the distribution NumPy computes from the same logits: never a token
outside of the allowed set, and inside of it the right frequencies.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet import _native
from reference.engine import Engine
from reference.model_factory import ModelSpec, encode_dense, random_model, write_gguf

DRAWS = 3000


@dataclass(frozen=True)
class Options:
    """The sampler's options with its defaults turned off, and the tokens it has accepted."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    prompt_ids: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()

    def sampler(self, seed: int) -> _native.Sampler:
        options = {name: value for name, value in vars(self).items() if name != "accepted"}
        sampler = _native.Sampler(seed=seed, **options)
        for token in self.accepted:
            sampler.accept(token)
        return sampler

    def adjusted(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits after bias and penalties."""
        z = logits.astype(np.float64)
        for token, bias in self.logit_bias.items():
            z[token] += bias
        for token in {*self.prompt_ids, *self.accepted}:
            z[token] = (
                z[token] / self.repetition_penalty if z[token] > 0 else z[token] * self.repetition_penalty
            )
        for token, count in Counter(self.accepted).items():
            z[token] -= self.presence_penalty + self.frequency_penalty * count
        return z

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Temperature, top_k, top_p, min_p: in this order, each on what the one before left."""
        z = self.adjusted(logits)
        order = np.argsort(-z, kind="stable")
        if self.top_k:
            order = order[: self.top_k]
        p = np.exp((z[order] - z[order[0]]) / self.temperature)
        p /= p.sum()
        if self.top_p < 1:
            order = order[: np.searchsorted(np.cumsum(p), self.top_p) + 1]
            p = p[: len(order)]
        kept = p >= self.min_p * p[0]
        result = np.zeros(len(z))
        result[order[kept]] = p[kept] / p[kept].sum()
        return result


@pytest.fixture(scope="module", params=[288, 1500])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Logits of a moderate spread, so that many tokens share the probability. Of the larger vocabulary the
    sampler knows most logits in int8 precision only.
    """
    spec = ModelSpec("llama", n_layers=1, vocab_size=request.param, untied=True)
    model = random_model(spec)
    assert model.output is not None
    model.output = encode_dense(spec.embedding, model.output.values * np.float32(0.1))
    loaded = Engine(write_gguf(model, tmp_path_factory.mktemp("sampling") / "model.gguf"))
    loaded.logits([3, 1, 4, 1, 5])
    return loaded


def draw(engine: Engine, options: Options, seed: int = 1, n: int = DRAWS) -> list[int]:
    """Tokens after the last position, each drawn from the same state."""
    sampler = options.sampler(seed)
    return [engine.runner.sample(4, sampler).token_id for _ in range(n)]


LIKELY = (60, 61, 62)  # ids, made likely by the biases that accompany them
BOOST = dict.fromkeys(LIKELY, 4.0)


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(temperature=0.4),
        Options(temperature=1.7),
        Options(top_k=1),
        Options(top_k=5),
        Options(top_k=40),
        Options(top_k=100),
        Options(top_p=0.3),
        Options(top_p=0.9),
        Options(top_p=0.999),
        Options(min_p=0.05),
        Options(min_p=1.0),
        Options(temperature=0.7, top_k=40, top_p=0.9),
        Options(temperature=1.5, top_k=20, top_p=0.8, min_p=0.1),
        Options(top_k=1000000),
        Options(top_p=0.0),
        Options(logit_bias={7: 6.0, 8: 5.5, 9: -100.0}),
        Options(logit_bias=BOOST, repetition_penalty=1.8, prompt_ids=LIKELY[:1], accepted=LIKELY[1:2]),
        Options(logit_bias=BOOST, repetition_penalty=0.7, prompt_ids=(LIKELY[0], 1, 2, 3)),
        Options(logit_bias=BOOST, presence_penalty=1.5, prompt_ids=LIKELY[:1], accepted=LIKELY[1:2] * 3),
        Options(logit_bias=BOOST, frequency_penalty=0.8, accepted=LIKELY[:1] * 3 + LIKELY[1:2]),
        Options(logit_bias=BOOST, frequency_penalty=-0.5, presence_penalty=-0.5, accepted=LIKELY[2:]),
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in vars(options).items() if v != vars(Options())[k]),
)
def test_draws_follow_the_distribution(options: Options, engine: Engine) -> None:
    logits = engine.runner.logits()[4]
    expected = DRAWS * options.probabilities(logits)
    counts = np.bincount(draw(engine, options), minlength=len(expected))
    # Nothing outside of the allowed set, but for what int8 logits cannot tell from the last token inside.
    z = options.adjusted(logits)
    assert np.all(z[counts > 0] >= z[expected > 0].min() - 0.01 * logits.std())
    often = expected >= 8
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    chi_square = np.sum((observed - wanted) ** 2 / np.maximum(wanted, 8))
    degrees = len(wanted) - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * max(degrees, 1))


def test_the_same_seed_gives_the_same_tokens(engine: Engine) -> None:
    options = Options(temperature=1.2, top_p=0.95)
    first = draw(engine, options, seed=2**64 - 1, n=50)
    assert draw(engine, options, seed=2**64 - 1, n=50) == first
    assert draw(engine, options, seed=2**63, n=50) != first


def test_seeds_in_a_row_are_independent(engine: Engine) -> None:
    """The first token under the seeds 0, 1, 2, .. follows the distribution as well."""
    options = Options(top_k=4)
    probabilities = options.probabilities(engine.runner.logits()[4])
    firsts = [draw(engine, options, seed, n=1)[0] for seed in range(DRAWS)]
    for token in np.flatnonzero(probabilities):
        expected = DRAWS * probabilities[token]
        assert abs(firsts.count(token) - expected) < 4.5 * np.sqrt(expected)


def test_a_mask_confines_the_draws(engine: Engine) -> None:
    logits = engine.runner.logits()[4]
    allowed = np.arange(len(logits)) % 3 == 0
    words = np.packbits(np.pad(allowed, (0, -len(logits) % 32)), bitorder="little").view(np.int32)
    sampler = Options(top_k=10).sampler(seed=5)
    sampler.set_mask(words)
    drawn = {engine.runner.sample(4, sampler).token_id for _ in range(500)}
    ten_best = np.argsort(-np.where(allowed, logits, -np.inf))[:10]
    assert drawn <= set(ten_best.tolist())
    assert len(drawn) >= 8


@pytest.mark.parametrize(
    "options",
    [
        Options(temperature=0),
        Options(top_k=20, temperature=0.8),
        Options(top_k=9, logit_bias=BOOST, accepted=LIKELY),
    ],
)
def test_logits_from_elsewhere(options: Options, engine: Engine) -> None:
    """They are drawn from as the model's own, with the same log-probabilities."""
    logits = np.ascontiguousarray(engine.runner.logits()[4])
    own, other = options.sampler(seed=3), options.sampler(seed=3)
    for _ in range(30):
        expected, sampled = engine.runner.sample(4, own, 3), other.sample(logits, 3)
        assert (sampled.token_id, sampled.top) == (expected.token_id, expected.top)
        assert sampled.logprob == expected.logprob
    allowed = np.zeros(-(-len(logits) // 32), np.int32)
    allowed[1] = 1 << 9  # token 41
    other.set_mask(allowed)
    assert other.sample(logits).token_id == 41


def test_a_flag_is_read_without_the_interpreter() -> None:
    flag = _native.Flag()
    read = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)(flag.reader)
    assert not read(flag.address)
    flag.set()
    assert read(flag.address)
    assert flag.take()
    assert not read(flag.address)
    assert not flag.take()
