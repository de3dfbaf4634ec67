"""Skill "facts": questions about the world, answered in one whole sentence.

Held out are pairs of a fact and a wording of its question: the fact itself is always learned from its
other wordings. "unknown": questions about invented countries and books, which must not be answered.
"""

from __future__ import annotations

from . import world
from .source import MARK, Sample, Source, marked, unmarked

_QUESTION_SHARE = 24.0  # weight of questions.txt beside the weights of the families
_PREFIXES = ("", "", "", "Question: ", "Please answer: ", "Tell me: ", "Can you answer this? ", "Hi! ")
_UNKNOWN = (
    (("What is the capital of {}?", "Which city is the capital of {}?", "What's the capital of {}?"),
     "I do not know the capital of {}."),
    (("Who wrote {}?", "Who is the author of {}?"), "I do not know who wrote {}."),
    (("What language do people speak in {}?", "What is the language of {}?"),
     "I do not know the language of {}."),
    (("Where is {}?", "Do you know where {} is?"), "I do not know where {} is."),
)  # fmt: skip


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _capital(text: str) -> str:
    first = text.startswith(MARK)
    return text[:first] + text[first : first + 1].upper() + text[first + 1 :]


def _answer(family: world.Family, subject: str, value: str) -> str:
    forms = _forms(subject, value)
    return _capital(family.answer.format(**{**forms, "b": marked(value), "nb": marked(forms["nb"])}))


def _forms(subject: str, value: str) -> dict[str, str]:
    article = with_article(subject)
    return {
        "a": subject,
        "b": value,
        "A": _capital(subject),
        "na": article,
        "nb": with_article(value),
        "NA": _capital(article),
    }


def _rough(source: Source, question: str) -> str:
    """Questions as people type them: sometimes all lower case, sometimes without the final mark."""
    if source.chance(0.08):
        question = question.lower()
    if source.chance(0.08):
        question = question.rstrip("?.")
    return question


def family_question(source: Source, family: world.Family) -> tuple[str, str] | None:
    subject, value = source.choice(family.entries)
    wording = source.choice(family.questions)
    if not source.allows_wording(f"{family.name}|{subject}", wording, family.questions[0]):
        return None
    forms = _forms(subject, value)
    return wording.format(**forms), _answer(family, subject, value)


def single_question(source: Source) -> tuple[str, str] | None:
    wordings, answer = source.choice(world.QUESTIONS)
    wording = source.choice(_PREFIXES) + source.choice(wordings)
    if not source.allows_wording(answer, wording, wordings[0]):
        return None
    return wording, answer


def question(source: Source) -> tuple[str, str]:
    """A question of this split and its answer."""
    weights = [family.weight for family in world.FAMILIES] + [_QUESTION_SHARE]
    while True:
        family = source.weighted((*world.FAMILIES, None), weights)
        found = single_question(source) if family is None else family_question(source, family)
        if found:
            return found


def facts(source: Source) -> Sample:
    asked, answer = question(source)
    return Sample([*source.system(), ("user", _rough(source, asked)), ("assistant", answer)], "facts")


def unknown(source: Source) -> Sample:
    wordings, answer = source.choice(_UNKNOWN)
    thing = source.invented_name(2, 4)
    asked = source.choice(wordings).format(thing)
    return Sample([*source.system(), ("user", asked), ("assistant", answer.format(marked(thing)))], "unknown")


def canonical_questions() -> list[tuple[str, str, str]]:
    """Every fact once: family, question in its first wording, answer."""
    found = [
        (
            family.name,
            family.questions[0].format(**_forms(subject, value)),
            unmarked(_answer(family, subject, value)),
        )
        for family in world.FAMILIES
        for subject, value in family.entries
    ]
    return found + [("questions.txt", wordings[0], answer) for wordings, answer in world.QUESTIONS]
