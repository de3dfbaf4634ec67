"""`import bitnet` does no work; its public names are all there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import bitnet

MEASURE = """
import sys, time
start = time.perf_counter()
import bitnet
elapsed = time.perf_counter() - start
slow = {"numpy", "tokenizers", "jinja2", "typer", "asyncio", "bitnet._native", "bitnet.model"}
handlers = sys.modules["logging"].getLogger("bitnet").handlers
print(elapsed, sorted(slow & set(sys.modules)), [type(handler).__name__ for handler in handlers])
"""


def test_import_is_fast_and_loads_nothing() -> None:
    runs = [
        subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    ]
    assert all(run.split(maxsplit=1)[1].strip() == "[] ['NullHandler']" for run in runs), runs
    assert min(float(run.split()[0]) for run in runs) < 0.3


def test_every_public_name_exists() -> None:
    for name in bitnet.__all__:
        assert getattr(bitnet, name) is not None
    assert set(bitnet.__all__) <= set(dir(bitnet))
    assert isinstance(bitnet.__version__, str)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Bitnet'"):
        bitnet.Bitnet  # noqa: B018
