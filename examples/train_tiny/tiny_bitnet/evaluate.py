"""Evaluation of the exported file: probes, every fact it was taught, and held-out samples per skill.

All answers are generated greedily by the NumPy forward pass of the file; "right" means equal to the letter.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from .corpus import Message, Sample
from .corpus.facts import canonical_questions
from .forward import NumpyModel, probes
from .scoring import held_out_samples


class Count(NamedTuple):
    right: int
    total: int

    def row(self, name: str) -> str:
        return f"| {name} | {self.right} | {self.total} | {100 * self.right / self.total:.0f}% |"


def _answered(model: NumpyModel, messages: list[Message]) -> bool:
    """Whether every assistant message is what the model says at its place."""
    turns = (i for i, (role, _) in enumerate(messages) if role == "assistant")
    return all(model.answer(messages[:i]) == messages[i][1] for i in turns)


def _counts(model: NumpyModel, samples: list[Sample], title: str) -> dict[str, Count]:
    found: dict[str, list[bool]] = defaultdict(list)
    for sample in tqdm(samples, desc=title, unit="sample", dynamic_ncols=True):
        found[sample.skill].append(_answered(model, sample.messages))
    return {skill: Count(sum(right), len(right)) for skill, right in sorted(found.items())}


def _table(title: str, counts: dict[str, Count]) -> list[str]:
    total = Count(sum(c.right for c in counts.values()), sum(c.total for c in counts.values()))
    rows = [count.row(name) for name, count in counts.items()]
    return [f"## {title}", "", "| | right | of | |", "|---|---|---|---|", *rows, total.row("all"), ""]


def _probe_lines(model: NumpyModel) -> list[str]:
    lines = ["## Probes", "", "| question | answer | |", "|---|---|---|"]
    for probe in probes():
        messages = [(role, text) for role, text in probe["messages"]]
        answer = model.answer(messages)
        mark = "right" if probe["expected"] in answer else "wrong"
        asked, said = (text.replace("\n", " ") for text in (messages[-1][1], answer))
        lines.append(f"| {asked} | {said} | {mark} |")
    return [*lines, ""]


def evaluate(path: Path, per_skill: int = 100, seed: int = 21) -> str:
    """A report in Markdown."""
    model = NumpyModel(path)
    # A story may go on in many ways: there is no one right answer to compare with.
    held_out = [s for s in held_out_samples(per_skill, seed) if s.skill != "story"]
    taught = [Sample([("user", q), ("assistant", a)], family) for family, q, a in canonical_questions()]
    lines = [
        f"# {model.metadata['general.name']}: evaluation of {path.name}",
        "",
        *_probe_lines(model),
        *_table("Held-out samples by skill", _counts(model, held_out, "held-out")),
        *_table("Every fact, asked in its first wording (seen in training)", _counts(model, taught, "facts")),
    ]
    return "\n".join(lines)
