"""Skill "options": the number, letter or text of a choice, in the prompts that libraries send for it;
"kind" is a drill of a part of it."""

from __future__ import annotations

import json

from . import prompts, words, world
from .facts import with_article
from .finding import numbered
from .relations import make_subject, make_text
from .source import Clue, Family, Sample, Source, marked
from .tool_specs import Arguments, definition
from .tools import call_text, tool_prompt
from .words import listed

CATEGORIES: dict[str, list[str]] = {
    "fruit": listed("apple banana grape lemon melon pear cherry plum peach mango"),
    "animal": words.ANIMALS,
    "color": words.COLORS,
    "job": words.JOBS,
    "instrument": listed("guitar piano drum violin flute harp trumpet"),
    "vehicle": listed("car train boat bike bus plane truck ship"),
    "country": [country for country, _ in world.CAPITALS if not country.startswith("the ")],
    "number": listed("one two three four five six seven eight nine ten"),
    "day": list(world.DAYS),
    "month": list(world.MONTHS),
}
_NUMBER_ONLY = ("Answer with the number.", "Reply with the number only.", "Number:", "Which number is right?")
_DESCRIPTIONS = (
    "Useful for questions about {}.", "This tool answers questions about {}", "Information about {}",
    "Summary of {}", "Documents on {}", "Useful for answering questions about {}.", "All about {}",
    "Facts about {}", "The handbook of {}", "Contains the history of {}",
    "Useful for retrieving context on {}",
)  # fmt: skip
_TOPIC_QUESTIONS = (
    "What do you know about {}?", "Tell me about {}.", "How much is the {}?", "Where can I find {}?",
    "Explain {}", "What is {}?", "Who made {}?", "How does {} work?", "When was {} founded?",
    "What are the rules of {}?", "What happened to {}?", "I have a question about {}.",
)  # fmt: skip
_FEELINGS = {
    "positive": listed("good great wonderful lovely excellent nice perfect beautiful"),
    "negative": listed("bad terrible awful ugly broken horrible poor disappointing"),
}
_SENTENCES = (
    "The {n} is {f}.", "What a {f} {n}!", "I find this {n} {f}.", "My {n} was {f}.", "A really {f} {n}.",
    "They sold me a {f} {n}.", "This was the most {f} {n} of all.",
)  # fmt: skip
_FEELING_QUESTIONS = (
    "Is this positive or negative? {}", "{}\nPositive or negative?", "Classify the review: {}",
    "What is the sentiment of this text? {}", "Sentiment of: {}",
)  # fmt: skip


def _labelled_choice(asked: str, label: int | str, line: str, question: str) -> Sample:
    """The answer is the number or the letter of the line."""
    clue = Clue(line, str(label), question)
    return Sample([("user", asked), ("assistant", marked(label))], "options", False, clue)


def _topic(source: Source) -> str:
    kind = source.integer(0, 3)
    if kind == 0:
        return make_subject(source).name
    if kind == 1:
        return source.phrase(1, 2)
    return source.pick_noun() if kind == 2 else source.word(1, 3)


def _selection(source: Source) -> Family:
    """One choice for a question, as routers ask for it: number, JSON, or a call."""
    topics = list(dict.fromkeys(_topic(source) for _ in range(source.integer(2, 5))))
    if len(topics) < 2:
        topics.append(source.word(3, 4))
    if source.chance(0.6):
        description = source.choice(_DESCRIPTIONS)
        items = [description.format(topic) for topic in topics]
    else:
        items = [source.choice(_DESCRIPTIONS).format(topic) for topic in topics]
    kind = source.weighted((0, 1, 2, 3), (5, 3, 0.7, 1.5))
    family = []
    for right in source.sample(range(len(topics)), len(topics)):
        question = source.wording(_TOPIC_QUESTIONS, "topic").format(topics[right])
        if kind == 0:
            asked = f"{numbered(items)}\n{question}\n{source.choice(_NUMBER_ONLY)}"
            family.append(_labelled_choice(asked, right + 1, f"{right + 1}. {items[right]}", question))
            continue
        several = kind == 3 and source.chance(0.4)
        prompt = prompts.SELECT_SOME if several else prompts.SELECT_ONE
        choices = numbered(items, "({}) {}", "\n\n")
        asked = prompt.format(count=len(items), choices=choices, question=question, most=len(items))
        line = f"({right + 1}) {items[right]}"
        reason = f"It is about {marked(topics[right])}."
        if kind == 1:
            family.append(_labelled_choice(asked, right + 1, line, question))
        elif kind == 2:
            answer = (
                f'[{{"choice": {marked(right + 1)}, "reason": {json.dumps(reason, ensure_ascii=False)}}}]'
            )
            answer = answer.replace("\\u0002", "\x02").replace("\\u0003", "\x03")
            clue = Clue(line, str(right + 1), question)
            family.append(Sample([("user", asked), ("assistant", answer)], "selection", True, clue))
        else:
            tool = definition(
                source,
                "SingleSelection",
                "A single selection of a choice.",
                {"index": "integer", "reason": "string"},
            )
            values: Arguments = {"index": right + 1, "reason": f"It is about {topics[right]}."}
            call = call_text("SingleSelection", values, chosen=False)
            messages = [("system", tool_prompt([tool])), ("user", asked), ("assistant", call)]
            family.append(Sample(messages, "selection", True, Clue(line, str(right + 1), question)))
    return family


def _category(source: Source) -> Family:
    categories = source.sample(list(CATEGORIES), source.integer(2, 5))
    items = [source.choice(CATEGORIES[category]) for category in categories]
    kind = source.integer(0, 4)
    labels = "ABCDE" if kind == 2 else "12345"
    form = "{}) {}" if kind == 2 else "{}. {}"
    lines = [form.format(label, item) for label, item in zip(labels, items, strict=False)]
    listing = "\n".join(lines)
    family = []
    for right, (category, item) in enumerate(zip(categories, items, strict=True)):
        which = f"Which of these is {with_article(category)}"
        if kind <= 2:
            behind = "Answer with the letter." if kind == 2 else source.choice(_NUMBER_ONLY)
            asked = f"{which}?\n{listing}\n{behind}" if kind == 1 else f"{listing}\n{which}? {behind}"
            family.append(_labelled_choice(asked, labels[right], lines[right], which))
            continue
        if kind == 3:
            asked, answer = f"{which}: {', '.join(items)}?", item
        else:
            names = [with_article(name) for name in sorted(categories)]
            asked, answer = f"Is {item} {', '.join(names[:-1])} or {names[-1]}?", category
        family.append(Sample([("user", asked), ("assistant", marked(answer))], "options"))
    return family


def kinds(source: Source) -> Family:
    """A drill: which of several words is a fruit, an animal, a color."""
    return [sample._replace(skill="kind") for sample in _category(source)]


def _found(source: Source) -> Family:
    items = list(dict.fromkeys(source.any_text() for _ in range(source.integer(2, 5))))
    family = []
    for right, item in enumerate(items):
        question = source.choice(("Which option is {}?", "Find the number of {}.", "Choose {}.")).format(item)
        asked = f"{numbered(items)}\n{question} {source.choice(_NUMBER_ONLY)}"
        family.append(_labelled_choice(asked, right + 1, f"{right + 1}. {item}", question))
    return family


def _feeling(source: Source) -> Family:
    """Words of an opinion, and which kind it is."""
    family = []
    for _ in range(4):
        feeling = source.choice(list(_FEELINGS))
        sentence = source.choice(_SENTENCES).format(f=source.choice(_FEELINGS[feeling]), n=source.pick_noun())
        asked = source.wording(_FEELING_QUESTIONS, "feeling").format(sentence)
        family.append(Sample([("user", asked), ("assistant", marked(feeling))], "options"))
    return family


def _lines(source: Source) -> Family:
    """Which of several sentences answers a question."""
    statements = [make_text(source, 1).statements[0] for _ in range(source.integer(2, 5))]
    form = source.choice(("{}. {}", "{}: {}", "({}) {}"))
    lines = numbered([told.sentence for told in statements], form)
    family = []
    for right, told in enumerate(statements):
        question = told.question(source)
        asked = f"{lines}\nQuestion: {question}\nWhich line has the answer? Answer with the number."
        family.append(_labelled_choice(asked, right + 1, form.format(right + 1, told.sentence), question))
    return family


def _rank(source: Source) -> Family:
    """Which of several documents answers a question."""
    longest = source.integer(1, 2)
    stories = [make_text(source, longest) for _ in range(source.integer(2, 4))]
    form = "Document {}:\n{}"
    texts = [story.text.replace("\n", " ") for story in stories]
    documents = numbered(texts, form, "\n\n")
    family = []
    for right, story in enumerate(stories):
        question = source.choice(story.statements).question(source)
        asked = f"{documents}\n\nQuestion: {question}\nWhich document has the answer? Answer with the number."
        family.append(_labelled_choice(asked, right + 1, form.format(right + 1, texts[right]), question))
    return family


def options(source: Source) -> Family:
    kinds = (_selection, _category, _found, _feeling, _lines, _rank)
    return source.weighted(kinds, (6, 7, 1, 1, 2, 2))(source)
