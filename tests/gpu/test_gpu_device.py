"""On a real GPU: pytest -m gpu. Everything is compared with the CPU, and timed (shown with -s)."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet import BitNet
from bitnet.engines import gpu, gpu_check
from reference.cases import CASES
from reference.model_factory import make_model

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def library() -> str:
    found = gpu.find()
    if found.library is None or not found.devices:
        pytest.skip(found.problem)
    if found.devices[0].problem:
        pytest.skip(found.devices[0].problem)
    return found.library


@pytest.mark.parametrize("case", CASES)
def test_every_architecture(library: str, models_folder: Path, case: str) -> None:
    for result in gpu_check.compare(make_model(CASES[case], models_folder), library, 0):
        print(result.name, result.detail)
        assert result.passed, (result.name, result.detail)
        assert "differ" not in result.detail, "the same bits were to be expected"


def test_the_bundled_model(library: str) -> None:
    with BitNet(n_gpu_layers=-1) as on_gpu, BitNet() as on_cpu:
        for prompt in ("What is the capital of France?", "Tell me a story about a fox."):
            how = {"temperature": 0, "max_tokens": 64}
            assert on_gpu.generate(prompt, **how).token_ids == on_cpu.generate(prompt, **how).token_ids
        for speed in gpu_check.speeds(Path(on_gpu.info.path), library, 0):
            print(speed.name, speed.detail)
