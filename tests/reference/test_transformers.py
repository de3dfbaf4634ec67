"""The NumPy reference, the goldens and the engine against transformers' own BitNet classes, live."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bitnet import BitNet
from bitnet.models.gguf_writer import TensorType
from reference.cases import CASES
from reference.conftest import Golden
from reference.model_factory import encode_dense, random_model
from reference.numpy_model import NumpyModel, Tensor, decode_dense, relative_error

pytestmark = [pytest.mark.reference, pytest.mark.parametrize("case", CASES)]


@pytest.fixture(scope="module")
def hf() -> ModuleType:
    """The module that imports torch; only here, for most test runs go without it."""
    pytest.importorskip("torch")
    from reference import hf_model

    return hf_model


@pytest.mark.parametrize("storage", ["offline", "online", "packed"])
@pytest.mark.filterwarnings("ignore")
def test_numpy_equals_transformers(
    case: str, storage: str, path: Path, golden: Golden, hf: ModuleType
) -> None:
    """However the checkpoint stores its weights: with a factor, latent, or packed with a divisor."""
    numpy_model, transformers_model = NumpyModel(path), hf.hf_model(random_model(CASES[case]), storage)
    for token_ids in golden.token_ids:
        logits = hf.hf_logits(transformers_model, token_ids, f16_cache=True)
        assert relative_error(logits, numpy_model.forward(token_ids)).max() < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_goldens_are_what_the_references_compute(
    case: str, path: Path, golden: Golden, hf: ModuleType
) -> None:
    numpy_model, transformers_model = NumpyModel(path), hf.hf_model(random_model(CASES[case]))
    for i, token_ids in enumerate(golden.token_ids):
        assert relative_error(golden.numpy[i], numpy_model.forward(token_ids)).max() < 1e-6
        assert (
            relative_error(golden.transformers[i], hf.hf_logits(transformers_model, token_ids)).max() < 1e-3
        )


@pytest.mark.filterwarnings("ignore")
def test_engine_equals_transformers(case: str, path: Path, golden: Golden, hf: ModuleType) -> None:
    import torch

    weights = random_model(CASES[case])
    f32, bf16 = hf.hf_model(weights), hf.hf_model(weights, dtype=torch.bfloat16)
    with BitNet(path, use_mmap=False) as model:
        for token_ids in golden.token_ids:
            logits = model.logits(token_ids)
            # With K and V in f16 on both sides only float noise is left; transformers' own are more precise.
            assert relative_error(logits, hf.hf_logits(f32, token_ids, f16_cache=True)).max() < 1e-4
            for transformers_model, most in ((f32, 1e-2), (bf16, 2e-2)):
                expected = hf.hf_logits(transformers_model, token_ids)
                assert relative_error(logits, expected).max() < most
                assert logits.argmax(-1).tolist() == expected.argmax(-1).tolist()


@pytest.mark.filterwarnings("ignore")
def test_longer_texts_stay_near_transformers(case: str, path: Path, hf: ModuleType) -> None:
    transformers_model = hf.hf_model(random_model(CASES[case]))
    token_ids = np.random.default_rng(0).integers(CASES[case].vocab_size, size=100).tolist()
    with BitNet(path, use_mmap=False) as model:
        error = relative_error(model.logits(token_ids), hf.hf_logits(transformers_model, token_ids))
    assert error.max() < 1e-2


def test_dense_types_equal_those_of_the_gguf_package(case: str) -> None:
    """The factory's encoding, decoded by the gguf package and by the NumPy reference."""
    quants = pytest.importorskip("gguf.quants")
    constants = pytest.importorskip("gguf.constants")
    kind: TensorType = CASES[case].embedding
    values = np.random.default_rng(0).standard_normal((3, 512), dtype=np.float32)
    dense = encode_dense(kind, values)
    raw = np.frombuffer(dense.data, dtype=np.uint8)
    decoded = quants.dequantize(raw.reshape(3, -1), constants.GGMLQuantizationType(int(kind)))
    assert np.array_equal(decoded, dense.values)
    assert np.array_equal(decode_dense(Tensor((512, 3), int(kind), raw)), decoded.astype(np.float64))
    assert relative_error(dense.values, values).max() < {TensorType.Q6_K: 0.05, TensorType.Q8_0: 0.01}.get(
        kind, 4e-3
    )
