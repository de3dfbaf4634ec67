"""A second model for all tests, and the end of everything they load."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bitnet import BitNet, unload_all


@pytest.fixture(scope="session", autouse=True)
def _unload() -> Iterator[None]:
    yield
    unload_all()


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a second model: the same weights in a file of its own, which is another model to bitnet."""
    with BitNet(keep_alive=300) as model:
        source = Path(model.info.path)
    return str(shutil.copy(source, tmp_path_factory.mktemp("models") / "other-model.gguf"))
