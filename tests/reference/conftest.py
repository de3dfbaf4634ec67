"""The models of the cases, made once a session, with the goldens that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from reference.cases import CASES
from reference.engine import Engine
from reference.model_factory import ModelSpec, make_model

GOLDENS = Path(__file__).parent.parent / "goldens"


@dataclass(frozen=True)
class Golden:
    token_ids: list[list[int]]  # decided sequences: see numpy_model.py
    numpy: NDArray[np.float32]  # [sequences, tokens, vocab]
    transformers: NDArray[np.float32]
    gguf_sha256: str


@pytest.fixture
def golden(case: str) -> Golden:
    with np.load(GOLDENS / f"{case}.npz") as stored:
        return Golden(
            stored["token_ids"].tolist(), stored["numpy"], stored["transformers"], str(stored["gguf_sha256"])
        )


@pytest.fixture
def path(case: str, models_folder: Path) -> Path:
    return make_model(CASES[case], models_folder)


@pytest.fixture(scope="session")
def engine_for(models_folder: Path) -> Iterator[Callable[..., Engine]]:
    """Engines by spec and kv_type, each loaded once."""
    engines: dict[tuple[ModelSpec, str], Engine] = {}

    def load(spec: ModelSpec, kv_type: str = "f16") -> Engine:
        if (spec, kv_type) not in engines:
            engines[spec, kv_type] = Engine(make_model(spec, models_folder), kv_type=kv_type)
        return engines[spec, kv_type]

    yield load
    engines.clear()
