"""Skill "line", a drill: which of several numbered lines has the words of a question.

Choosing among lines, documents and summaries is made of this: each word of the question finds where it
stood before, and the lines that are found vote. Bare words teach it, sentences alone do not.
"""

from __future__ import annotations

from .relations import make_text
from .source import Clue, Family, Sample, Source, marked

_FORMS = ("{}. {}", "{}. {}", "({}) {}", "{}: {}", "{}) {}", "Document {}:\n{}")
_BEHIND = ("", "Answer with the number.", "Reply with the number only.", "Number:", "Which number is right?")
_WORD_QUESTIONS = (
    "{}", "Which line has {}?", "Find {}.", "Where is {}?", "Which one is about {}?", "{}?",
    "The number of {}:", "In which line does {} stand?",
)  # fmt: skip
_SENTENCE_QUESTIONS = (
    "{}", "Question: {}", "Which line has the answer? {}", "{} Which line tells it?",
    "Question: {}\nWhich line has the answer?",
)  # fmt: skip


def numbered(items: list[str], form: str = "{}. {}", end: str = "\n") -> str:
    return end.join(form.format(i + 1, item) for i, item in enumerate(items))


def _word(source: Source) -> str:
    return source.weighted(
        (source.word, source.pick_noun, source.first_name, source.any_text), (3, 4, 2, 1)
    )()


def _words(source: Source, count: int) -> tuple[list[str], list[list[str]]]:
    """Lines of one to five words, no word in two of them; and the words of each apart."""
    used: set[str] = set()
    lines: list[str] = []
    asked: list[list[str]] = []
    most = source.integer(1, 5)
    while len(lines) < count:
        found = list(dict.fromkeys(_word(source) for _ in range(source.integer(1, most))))
        if not used.isdisjoint(found):
            continue
        used.update(found)
        lines.append(" ".join(found))
        asked.append(found)
    return lines, asked


def line_choice(source: Source) -> Family:
    count = source.integer(2, 6)
    if source.chance(0.6):
        lines, asked = _words(source, count)
        questions = [
            [source.choice(_WORD_QUESTIONS).format(source.choice(words)) for _ in range(2)] for words in asked
        ]
    else:
        told = [make_text(source, 1).statements[0] for _ in range(count)]
        lines = [statement.sentence for statement in told]
        questions = [
            [source.choice(_SENTENCE_QUESTIONS).format(statement.question(source)) for _ in range(2)]
            for statement in told
        ]
    form = source.choice(_FORMS)
    before = numbered(lines, form, "\n\n" if form.startswith("Document") else "\n")
    behind = source.choice(_BEHIND)
    family = []
    for number, alternatives in enumerate(questions, 1):
        line = form.format(number, lines[number - 1])
        for question in alternatives:
            clue = Clue(line, str(number), question)
            text = f"{before}\n{question}" + (f"\n{behind}" if behind else "")
            family.append(Sample([("user", text), ("assistant", marked(number))], "line", False, clue))
    return family
