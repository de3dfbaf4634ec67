"""The evaluation, whole, on few samples; and that the card of the bundled model tells what it finds."""

from __future__ import annotations

import re

import pytest

from bitnet.models.bundled import path
from tiny_bitnet.evaluate import evaluate

pytestmark = pytest.mark.reference  # it takes half a minute

_ROW = re.compile(r"^\| ([^|]+) \| (\d+) \| (\d+) \| \d+% \|", re.MULTILINE)


def _rows(table: str) -> dict[str, tuple[int, int]]:
    """Of each row, how many were right and of how many."""
    return {name: (int(right), int(total)) for name, right, total in _ROW.findall(table)}


@pytest.fixture(scope="module")
def card() -> str:
    return (path().parent / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report() -> str:
    return evaluate(path(), per_skill=2)


def test_the_card_has_the_rows_of_the_report(card: str, report: str) -> None:
    samples, *everyday, _ = report.split("\n## ")[1:]
    found = _rows(samples).keys()
    assert found <= _rows(card).keys()
    goals = re.findall(r"^\| ([^|]+) \|.*\| \d+% \| \d+% \|$", card, re.MULTILINE)
    # So few calls have not values of every kind.
    assert len(goals) == 10
    assert {name for name in goals if "arguments" not in name} <= found
    assert [_rows(part)["whole call"][1] for part in everyday] == [6, 6]


def test_the_numbers_of_the_card_are_those_of_the_file(card: str, report: str) -> None:
    """Those that do not depend on how many samples are drawn, up to a few that are near a tie."""
    samples, *_, facts = report.split("\n## ")[1:]
    stated = re.search(r"Of its (\d+) facts, .* it answers (\d+) to the letter", card)
    assert stated is not None
    rows = _rows(facts).values()
    assert sum(total for _, total in rows) == int(stated[1])
    assert sum(right for right, _ in rows) == pytest.approx(int(stated[2]), abs=4)
    embeddings = "question to its passage among 50 (embeddings)"
    (right, total), (stated_right, stated_total) = _rows(samples)[embeddings], _rows(card)[embeddings]
    assert total == stated_total
    assert right == pytest.approx(stated_right, abs=8)
