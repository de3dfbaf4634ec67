"""Skills "judge" (YES or NO: does a text support an answer), "condense" (a follow-up as a whole question)."""

from __future__ import annotations

from . import prompts
from .reading import dressed, not_told
from .relations import RELATIONS, Statement, make_text, statement
from .source import Family, Message, Sample, Source, marked, unmarked

_EXAMPLES = (
    "Information: The lamp is red.\nContext: The lamp stands in the hall. It is red.\nAnswer: YES\n"
    "Information: The lamp is old.\nContext: The lamp stands in the hall. It is red.\nAnswer: NO\n"
)


def _claim(source: Source, told: Statement, true: bool) -> str:
    """A sentence that says what the text says, or something else instead."""
    if not true:
        told = statement(source, told.subject, told.relation)
    return unmarked(told.answer)


def judge(source: Source) -> Family:
    story = make_text(source, 5)
    text = dressed(source, story.text)
    in_line = source.chance(0.5)
    prompt = source.choice(prompts.IN_LINE if in_line else prompts.SUPPORTED)
    examples = _EXAMPLES if source.chance(0.4) else ""
    family = []
    for _ in range(4):
        true = source.chance(0.5)
        told = source.choice(story.statements)
        if true or source.chance(0.7):
            claim = _claim(source, told, true)
            true = true or claim == unmarked(told.answer)
        else:
            told = not_told(source, story)
            claim = unmarked(told.answer)
        user = prompt.format(
            text=text,
            question=told.question(source),
            answer=claim,
            examples=examples,
        )
        family.append(Sample([("user", user), ("assistant", marked("YES" if true else "NO"))], "judge"))
    return family


_OPENINGS = ("And ", "And ", "", "", "Ok. ", "Thanks! ", "Hm, ")
_SPEAKERS = (("user", "assistant"), ("Human", "Assistant"), ("user", "assistant"))


def condense(source: Source) -> Family:
    story = make_text(source, 4)
    told = source.choice(story.statements)
    user, assistant = source.choice(_SPEAKERS)
    turns = [(told.question(source), unmarked(told.answer))]
    if source.chance(0.25):
        other = source.choice(story.statements)
        turns.insert(0, (other.question(source), unmarked(other.answer)))
    history = "\n".join(f"{user}: {q}\n{assistant}: {a}" for q, a in turns)
    as_chat = source.chance(0.25)
    prompt = source.choice(prompts.CONDENSE)
    family = []
    for _ in range(5):
        if source.chance(0.3):
            asked = source.choice(make_text(source, 2).statements)
            answer = question = asked.question(source)
        else:
            relation = source.choice(RELATIONS[told.subject.kind])
            asked = statement(source, told.subject, relation)
            question = asked.follow_up()
            opening = source.choice(_OPENINGS)
            question = opening + (question[0].lower() + question[1:] if opening == "And " else question)
            answer = relation.questions[0].format(s=told.subject.name)
        messages: list[Message]
        if as_chat:
            turns_before: list[Message] = [
                message for q, a in turns for message in (("user", q), ("assistant", a))
            ]
            messages = [("system", prompts.CONDENSE_SYSTEM), *turns_before, ("user", question)]
        else:
            messages = [("user", prompt.format(history=history, question=question))]
        family.append(Sample([*messages, ("assistant", marked(answer))], "condense"))
    return family
