"""The host: Orbit's own server where BITNET_ORBIT_DIR names a checkout, else the harness beside this file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent / "harness"
REAL = Path(os.environ["BITNET_ORBIT_DIR"]) if os.environ.get("BITNET_ORBIT_DIR") else None
HOST = REAL or HARNESS

sys.path.insert(0, str(HOST / "server"))


def pytest_configure(config: pytest.Config) -> None:
    if REAL is not None:  # warnings of Orbit and what it imports are not ours
        config.addinivalue_line("filterwarnings", "default")


def pytest_report_header() -> str:
    return f"host: {HOST}"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BITNET_BASE_URL", "BITNET_API_KEY", "BITNET_CONFIG", "BITNET_MODEL", "BITNET_ENABLED"):
        monkeypatch.delenv(name, raising=False)
