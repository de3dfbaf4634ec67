"""Skill "arith": sums, differences and products of small numbers, a closed table that is learned by heart.

Held out are pairs of a sum and a wording.
"""

from __future__ import annotations

from .source import Sample, Source, marked

_WORDINGS = (
    "What is {a} {op} {b}?", "What is {a} {word} {b}?", "{a} {op} {b} = ?", "Compute {a} {op} {b}.",
    "{a} {word} {b}?", "How much is {a} {op} {b}?", "Calculate {a} {op} {b}", "{a} {op} {b}",
    "What's {a} {op} {b}?",
)  # fmt: skip
_WORDS = {"+": "plus", "-": "minus", "*": "times"}


def arithmetic(source: Source) -> Sample:
    while True:
        op = source.choice("++--*")
        a, b = source.integer(0, 10), source.integer(0, 10)
        if op == "-" and b > a:
            a, b = b, a
        wording = source.choice(_WORDINGS)
        if source.allows(f"{a}{op}{b}|{wording}"):
            break
    result = {"+": a + b, "-": a - b, "*": a * b}[op]
    asked = wording.format(a=a, b=b, op=op, word=_WORDS[op])
    return Sample(
        [*source.system(0.15), ("user", asked), ("assistant", f"{a} {op} {b} = {marked(result)}")], "arith"
    )
