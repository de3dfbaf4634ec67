"""Runs the `bitnet` command as a user does: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

COMMAND = [sys.executable, "-m", "bitnet"]


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "BITNET_VERBOSE"}
    return {**kept, "PYTHONIOENCODING": "utf-8", **changes}


def bitnet(
    *arguments: str | os.PathLike[str],
    stdin: str | bytes = b"",
    env: dict[str, str] | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=data,
        capture_output=True,
        timeout=120,
        env=env or environment(),
        **options,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def start(*arguments: str | os.PathLike[str], **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, *arguments], env=environment(), **options)
