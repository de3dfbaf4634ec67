"""The engine's logits against what transformers and NumPy computed for the same files (tests/goldens)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from bitnet import BitNet
from reference.cases import CASES
from reference.conftest import Golden
from reference.numpy_model import relative_error


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_goldens(case: str, path: Path, golden: Golden) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == golden.gguf_sha256, (
        "the factory makes another file than the golden's: see goldens/README.md"
    )
    with BitNet(path, use_mmap=False) as model:
        for i, token_ids in enumerate(golden.token_ids):
            logits = model.logits(token_ids)
            assert logits.shape == golden.numpy[i].shape
            assert relative_error(logits, golden.numpy[i]).max() < 1e-4
            assert relative_error(logits, golden.transformers[i]).max() < 1e-2
            assert logits.argmax(-1).tolist() == golden.transformers[i].argmax(-1).tolist()
