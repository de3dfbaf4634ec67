"""The examples run as they stand. What a tiny model answers is only looked at where it is sure of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"
PRINTED = {
    "langchain_chat.py": (
        r"invoke: The capital of Japan is Tokyo\.",
        r"usage: .*'total_tokens': \d+",
        r"stream: Once upon a time .+",
        r"batch: \['The capital of France is Paris\.', 'The capital of Italy is Rome\.', ",
        r"conversation: .+",
        r"reused: [1-9]\d* tokens",
    ),
    "langchain_agent.py": (
        r"human: What is the weather in Paris\?",
        r"call: get_weather\(\{'city': '.+'\}\)",
        r"tool: It is sunny in .+",
        r"ai: .+",
        r"object: Person\(name='.*', age=-?\d+\)",
    ),
    "langchain_rag.py": (
        r"found: The capital of Norway is Oslo\.",
        r"answer: The capital of Norway is Oslo\.",
    ),
}


def test_every_example_is_here() -> None:
    assert {path.name for path in EXAMPLES.glob("langchain_*.py")} == set(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_an_example(name: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BITNET_BASE")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=200, env=environment
    )
    assert done.returncode == 0, done.stderr
    for pattern in PRINTED[name]:
        assert re.search(f"^{pattern}", done.stdout, re.MULTILINE), f"{pattern!r} is not in\n{done.stdout}"
