"""A second model and a server for all tests, and the end of everything they load."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bitnet import BitNet, unload_all


@pytest.fixture(scope="session", autouse=True)
def _unload() -> Iterator[None]:
    yield
    unload_all()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BITNET_BASE_URL", "BITNET_API_KEY", "BITNET_CONFIG", "LC_OUTPUT_VERSION"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The file of the bundled model."""
    with BitNet(lazy=True) as model:
        return Path(model.info.path)


@pytest.fixture(scope="session")
def other_model(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a second model: the same weights in a file of its own, which is another model to bitnet."""
    return str(shutil.copy(model_path, tmp_path_factory.mktemp("models") / "other-model.gguf"))


@pytest.fixture(scope="session")
def server_url(model_path: Path, other_model: str) -> Iterator[str]:
    """The address of a `bitnet serve` with two models, "bitnet-tiny" and "other"."""
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-m", "bitnet", "serve", "--port", "0"]
    command += ["-m", f"bitnet-tiny={model_path}", "-m", f"other={other_model}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    log: list[str] = []
    try:
        for line in process.stderr:
            log.append(line)
            if match := re.search(r"serving .* on (http://\S+)", line):
                break
        else:
            raise AssertionError(f"the server ended: {''.join(log)}")
        # Somebody must read on, or the server will wait once the pipe is full.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield match[1]
    finally:
        process.terminate()
        process.wait(30)
