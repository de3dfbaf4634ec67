"""The example runs as it stands, with the calls of Orbit's guide."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import HOST

EXAMPLE = Path(__file__).parents[3] / "examples" / "orbit_service.py"


def test_the_example() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "PYTHONPATH": str(HOST / "server")},
    )
    assert done.returncode == 0, done.stderr
    for pattern in (
        r"initialize: True",
        r"verify_connection: True",
        r"generate: The capital of France is Paris\.",
        r"messages: .*Tokyo",
        r"stream: .+",
        r"initialized: False",
    ):
        assert re.search(f"^{pattern}", done.stdout, re.MULTILINE), f"{pattern!r} is not in\n{done.stdout}"
