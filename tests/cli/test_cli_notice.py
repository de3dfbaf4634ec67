"""The line that says that the small bundled model answers: once, and only for eyes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
NOTICE = b"this is the small bundled model"


def on_a_terminal(*arguments: str, **environment: str) -> tuple[bytes, bytes]:
    """stdout of `bitnet ARGUMENTS`, and its stderr, which is a terminal."""
    import pty

    controller, terminal = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "bitnet", *arguments],
        stdout=subprocess.PIPE,
        stderr=terminal,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        timeout=120,
    )
    os.close(terminal)
    os.set_blocking(controller, False)
    try:
        shown = os.read(controller, 65536)
    except OSError:  # nothing was written
        shown = b""
    os.close(controller)
    assert done.returncode == 0
    return done.stdout, shown


def test_one_dim_line_on_the_terminal() -> None:
    answer, shown = on_a_terminal("run", "Hello!", "--temperature", "0", TERM="xterm")
    assert shown.startswith(b"\x1b[2mbitnet: " + NOTICE)
    assert shown.count(b"\n") == 1
    assert b"-m 2b-4t" in shown
    assert NOTICE not in answer


def test_no_colour_where_none_is_wanted() -> None:
    assert on_a_terminal("run", "Hello!", NO_COLOR="1")[1].startswith(b"bitnet: " + NOTICE)


def test_not_beside_json_nor_for_another_model(random_path: Path) -> None:
    assert NOTICE not in on_a_terminal("run", "Hello!", "--json")[1]
    assert (
        NOTICE not in on_a_terminal("run", "Hello!", "--raw", "--max-tokens", "2", "-m", str(random_path))[1]
    )
