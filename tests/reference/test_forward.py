"""The forward pass against itself: however a sequence is cut up, whoever computes beside it, and with
whatever threads and kernels, the logits are the same bits. And against NumPy where the goldens do not reach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitnet import _native
from reference.cases import CASES, STRONG_LAYERS
from reference.engine import Engine
from reference.model_factory import ModelSpec, make_model
from reference.numpy_model import NumpyModel, relative_error

KV_TYPES = ("f16", "q8_0")
# Three blocks of the KV store and a bit; more than one tile of the table-lookup kernels.
LENGTH = 100


def random_ids(spec: ModelSpec, length: int = LENGTH, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(spec.vocab_size, size=length).tolist()


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "chunks", [[1] * LENGTH, [33, 67], [64, 1, 35], [7] * 14 + [2]], ids=["tokens", "two", "blocks", "sevens"]
)
def test_any_chunking_gives_the_same_bits(
    case: str, chunks: list[int], kv_type: str, engine_for: Callable[..., Engine]
) -> None:
    engine = engine_for(CASES[case], kv_type)
    token_ids = random_ids(CASES[case])
    assert np.array_equal(engine.logits(token_ids, chunks), engine.logits(token_ids))


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("case", CASES)
def test_two_threads_give_the_same_bits(
    case: str, kv_type: str, path: Path, engine_for: Callable[..., Engine]
) -> None:
    token_ids = random_ids(CASES[case])
    two_threads = Engine(path, n_threads=2, kv_type=kv_type)
    assert two_threads.runner.n_threads == 2
    one = engine_for(CASES[case], kv_type)
    assert np.array_equal(two_threads.logits(token_ids), one.logits(token_ids))
    assert np.array_equal(two_threads.logits(token_ids, [1] * LENGTH), one.logits(token_ids))


@pytest.mark.parametrize("kernels", [name for name in _native.cpu_kernels() if name != "scalar"])
@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("case", CASES)
def test_all_kernels_give_the_same_bits(case: str, kernels: str, kv_type: str, path: Path) -> None:
    scalar, other = (Engine(path, kernels=name, kv_type=kv_type) for name in ("scalar", kernels))
    assert (scalar.runner.kernels, other.runner.kernels) == ("scalar", kernels)
    token_ids = random_ids(CASES[case])
    for chunks in ([LENGTH], [96, 1, 1, 1, 1]):
        assert np.array_equal(other.logits(token_ids, chunks), scalar.logits(token_ids, chunks))
    greedy = _native.Sampler(temperature=0)
    assert other.runner.sample(0, greedy).token_id == scalar.runner.sample(0, greedy).token_id


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("case", CASES)
def test_neighbours_in_a_batch_change_nothing(
    case: str, kv_type: str, engine_for: Callable[..., Engine]
) -> None:
    engine = engine_for(CASES[case], kv_type)
    sequences = [random_ids(CASES[case], length, seed) for seed, length in enumerate((40, 2, 71))]
    alone = [engine.logits(token_ids) for token_ids in sequences]
    # First most of each prompt side by side, then one token of each as in decoding.
    engine.step([token_ids[:-1] for token_ids in sequences], [0, 0, 0])
    assert np.array_equal(engine.runner.logits(), np.concatenate([logits[:-1] for logits in alone]))
    engine.step([token_ids[-1:] for token_ids in sequences], [39, 1, 70])
    assert np.array_equal(engine.runner.logits(), np.stack([logits[-1] for logits in alone]))


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_copied_blocks_continue_the_sequence(kv_type: str, engine_for: Callable[..., Engine]) -> None:
    spec = CASES["bitnet-q8_0-hd64"]
    engine = engine_for(spec, kv_type)
    token_ids = random_ids(spec, 40)
    expected = engine.logits(token_ids)[-1]
    own, other = engine.block_tables[:2]
    engine.logits(token_ids[:39])
    for source, target in zip(own, other, strict=True):
        engine.runner.copy_block(source, target)
    engine.runner.forward(np.array(token_ids[39:], dtype=np.int32), [other], [39], [1], [0])
    assert np.array_equal(engine.runner.logits()[0], expected)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("architecture", ["bitnet-b1.58", "llama"])
def test_strong_layers_equal_numpy(architecture: str, kv_type: str, models_folder: Path) -> None:
    path = make_model(replace(STRONG_LAYERS, architecture=architecture), models_folder)
    reference = NumpyModel(path, kv_type)
    token_ids = reference.decided_sequence(6, seed=0)
    logits, expected = Engine(path, kv_type=kv_type).logits(token_ids), reference.forward(token_ids)
    assert relative_error(logits, expected).max() < 1e-4
    assert logits.argmax(-1).tolist() == expected.argmax(-1).tolist()


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("architecture", ["bitnet-b1.58", "llama"])
def test_long_contexts_equal_numpy(architecture: str, kv_type: str, models_folder: Path) -> None:
    """Over several blocks of the KV store. With one layer, a rounding tie moves its own position only."""
    spec = ModelSpec(architecture, n_layers=1, hidden_size=200, head_dim=40, ffn_size=104, layer_gain=1.0)
    path = make_model(spec, models_folder)
    token_ids = random_ids(spec)
    logits = Engine(path, kv_type=kv_type).logits(token_ids)
    error = relative_error(logits, NumpyModel(path, kv_type).forward(token_ids))
    assert np.count_nonzero(error < 1e-4) >= 0.9 * LENGTH
    assert error.max() < 1e-2


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("case", CASES)
def test_undecided_positions_stay_near_numpy(
    case: str, kv_type: str, path: Path, engine_for: Callable[..., Engine]
) -> None:
    """On any text, rounding ties that f32 and float64 decide differently move some positions a little."""
    token_ids = random_ids(CASES[case], 32)
    logits = engine_for(CASES[case], kv_type).logits(token_ids)
    error = relative_error(logits, NumpyModel(path, kv_type).forward(token_ids))
    assert error.max() < 1e-2
    # Nothing may be wrong from the start, but one of the first may meet such a tie.
    assert np.count_nonzero(error[:4] < 1e-4) >= 3


@pytest.mark.parametrize("case", CASES)
def test_q8_0_keys_and_values_stay_near_f16(case: str, engine_for: Callable[..., Engine]) -> None:
    token_ids = random_ids(CASES[case])
    f16, q8_0 = (engine_for(CASES[case], kv_type) for kv_type in KV_TYPES)
    head_dim = -(-CASES[case].head_dim // 8) * 8  # as attention has it
    assert q8_0.runner.kv_bytes / f16.runner.kv_bytes == (head_dim + 2 * -(-head_dim // 32)) / (2 * head_dim)
    error = relative_error(q8_0.logits(token_ids), f16.logits(token_ids))
    # Measured: 0.0007 to 0.006.
    assert 0 < error.max() < 1e-2
