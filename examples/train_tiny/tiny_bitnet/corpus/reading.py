"""Skills "ctx" (the answer is in a given text), "ctx_no" (it is not), "more" and "more_no" (the same of texts
that tell more kinds of things), "refine" (an earlier answer and a new
text), in the prompts of RAG libraries."""

from __future__ import annotations

from . import prompts, words
from .relations import MORE_RELATIONS, RELATIONS, Relations, Statement, Story, make_text, statement
from .source import Clue, Family, Message, Sample, Source, marked, unmarked


def _layout(source: Source) -> tuple[str | None, str]:
    """A system prompt and a user prompt with {text} and {question} in one of them."""
    kind = source.integer(0, 11)
    if kind <= 3:
        return None, source.choice(prompts.PLAIN_QA)
    if kind <= 7:
        rules = prompts.QA_RULES if source.chance(0.45) else None
        return rules, source.choice((prompts.INDEX_QA[0], *prompts.INDEX_QA))
    if kind <= 9:
        return None, source.choice(prompts.CHAIN_QA)
    return source.choice(prompts.SYSTEM_QA), "{question}"


def dressed(source: Source, text: str) -> str:
    """As libraries hand texts over: sometimes with the path of the file, sometimes in pieces."""
    kind = source.integer(0, 19)
    if kind <= 2:
        return f"file_path: {source.word(1, 2)}.txt\n\n{text}"
    if kind == 3:
        return f"page_label: {source.integer(1, 40)}\nfile_path: {source.word(1, 2)}.pdf\n\n{text}"
    if kind == 4:
        return f"# {source.word(1, 2).capitalize()}\n{text}"
    return text


def not_told(source: Source, story: Story, known: Relations = RELATIONS) -> Statement:
    """What the text does not tell: something else about its subjects, or about a stranger."""
    if source.chance(0.65):
        return source.choice(story.untold)
    other = make_text(source, 1, known).statements[0]
    return (
        statement(source, other.subject, source.choice(story.statements).relation)
        if (other.subject.kind == source.choice(story.statements).relation.subject)
        else other
    )


def reading(source: Source) -> Family:
    known, skill = (MORE_RELATIONS, "more") if source.chance(0.5) else (RELATIONS, "ctx")
    story = make_text(source, 3 if source.chance(0.6) else 6, known)
    text = dressed(source, story.text)
    system, user = _layout(source)
    if system is None and source.chance(0.15):
        system = source.choice(words.SYSTEM_PROMPTS)
    family = []
    told = list(story.statements)
    source.random.shuffle(told)
    # Only a text that comes before its question is shared.
    shared = "{text}" not in user or user.index("{text}") < user.index("{question}")
    for _ in range(7 if shared else 2):
        untold = source.chance(0.2)
        if untold:
            asked, answer = not_told(source, story, known), marked(prompts.NOT_TOLD)
        else:
            asked = told.pop() if told else source.choice(story.statements)
            answer = asked.answer
        question = asked.question(source)
        messages: list[Message] = [("system", system.format(text=text))] if system else []
        messages += [("user", user.format(text=text, question=question)), ("assistant", answer)]
        if untold:
            family.append(Sample(messages, f"{skill}_no"))
        else:
            clue = Clue(asked.sentence, asked.sentence.split()[0], question)
            family.append(Sample(messages, skill, False, clue))
    return family


def refine(source: Source) -> Family:
    """The new text has the answer, or the earlier answer stays."""
    story, other = make_text(source, 4), make_text(source, 3)
    prompt = source.choice(prompts.REFINE)
    useful = source.choice(story.statements)
    strange = source.choice(other.statements)
    samples = (
        (useful, prompts.NOT_TOLD, useful.answer),
        (strange, strange.answer, strange.answer),
        (strange, prompts.NOT_TOLD, marked(prompts.NOT_TOLD)),
    )
    family = []
    for asked, before, after in samples:
        user = prompt.format(
            text=dressed(source, story.text),
            question=asked.question(source),
            answer=unmarked(before),
        )
        family.append(Sample([("user", user), ("assistant", after)], "refine"))
    return family


def conversation(source: Source) -> Family:
    """One text, several questions about it, one after the other."""
    story = make_text(source)
    messages: list[Message] = []
    if source.chance(0.5):
        messages.append(("system", source.choice(prompts.SYSTEM_QA).format(text=dressed(source, story.text))))
        first = "{}"
    else:
        first = story.text + "\n\n{}"
    told = list(story.statements)
    source.random.shuffle(told)
    before = None
    for _ in range(source.integer(2, 4)):
        if told and source.chance(0.8):
            asked = told.pop()
            answer = asked.answer
        else:
            asked = not_told(source, story)
            answer = marked(prompts.NOT_TOLD)
        question = asked.question(source)
        if before == asked.subject and source.chance(0.6):
            question = asked.follow_up()
        messages += [("user", first.format(question)), ("assistant", answer)]
        first, before = "{}", asked.subject
    return [Sample(messages, "ctx_turns")]
