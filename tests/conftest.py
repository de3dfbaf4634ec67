"""Models for all tests: the bundled one, loaded once, and random ones made on the spot."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bitnet import BitNet
from reference.model_factory import ModelSpec, make_model

# A shell without job control starts background jobs with Ctrl-C ignored, and children inherit that; here it
# is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def model() -> Iterator[BitNet]:
    """The bundled model, computing up to four requests together."""
    with BitNet(n_batch=4) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def random_path(models_folder: Path) -> Path:
    """A random model whose layers outweigh its embedding. Its greedy text never ends."""
    return make_model(ModelSpec(hidden_size=320, ffn_size=136, layer_gain=2.5), models_folder)


@pytest.fixture(scope="session")
def slow_path(models_folder: Path) -> Path:
    """A random model big enough that a piece of prompt takes a noticeable part of a second."""
    spec = ModelSpec(hidden_size=640, n_heads=10, ffn_size=2560, n_layers=4, context_length=4096)
    return make_model(spec, models_folder)


@pytest.fixture(scope="session")
def base_path(models_folder: Path) -> Path:
    """A random llama model: it has no chat template."""
    return make_model(ModelSpec("llama", hidden_size=320, ffn_size=136), models_folder)


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits until something is true, for ten seconds at most."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "it did not happen within ten seconds"
            time.sleep(0.002)

    return wait
