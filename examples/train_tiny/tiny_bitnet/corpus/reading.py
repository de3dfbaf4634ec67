"""Skills "ctx" (the answer is in a given text) and "ctx_no" (it is not), in the prompts of RAG libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import words
from .source import Message, Sample, Source

_UNKNOWN = "I don't know."
_RULES = (
    "You are an expert Q&A system that is trusted around the world.\n"
    "Always answer the query using the provided context information, and not prior knowledge.\n"
    "Some rules to follow:\n"
    "1. Never directly reference the given context in your answer.\n"
    "2. Avoid statements like 'Based on the context, ...' or 'The context information ...' or anything "
    "along those lines."
)
_PLAIN = (
    "{text}\n\n{question}",
    "{question}\n\n{text}",
    "Context: {text}\n\nQuestion: {question}",
    "Context:\n{text}\nQuestion: {question}\nAnswer:",
    "Read this text: {text}\n{question}",
)
_INDEX = (
    "Context information is below.\n---------------------\n{text}\n---------------------\n"
    "Given the context information and not prior knowledge, answer the query.\nQuery: {question}\nAnswer: "
)
_RAG = (
    "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to "
    "answer the question. If you don't know the answer, just say that you don't know. Use three sentences "
    "maximum and keep the answer concise.\nQuestion: {question} \nContext: {text} \nAnswer:"
)
_HELPFUL = (
    "Use the following pieces of context to answer the question at the end. If you don't know the answer, "
    "just say that you don't know, don't try to make up an answer.\n\n{text}\n\n"
    "Question: {question}\nHelpful Answer:"
)
_SYSTEM_CONTEXT = (
    "Use the given context to answer the question. If you don't know the answer, say you don't know. "
    "Context: {}",
    "Answer the question based only on the following context:\n{}",
    "You are a helpful assistant. Context:\n{}",
)


class _Statement(NamedTuple):
    sentence: str
    question: str
    answer: str


class _Relation(NamedTuple):
    sentence: str
    questions: tuple[str, ...]
    subject: Callable[[Source], str]
    value: Callable[[Source], str]


def _invented(source: Source) -> str:
    return source.invented_name()


def _code(source: Source) -> str:
    kind = source.integer(0, 2)
    if kind == 0:
        return str(source.number())
    return source.word(1, 2) if kind == 1 else source.word(1, 1).upper() + str(source.number())


_RELATIONS = (
    _Relation("{} lives in {}.", ("Where does {} live?", "In which city does {} live?"),
              Source.full_name, Source.city),
    _Relation("{} works as a {}.", ("What is the job of {}?", "What does {} do?"),
              Source.full_name, lambda s: s.choice(words.JOBS)),
    _Relation("The favorite color of {} is {}.",
              ("What is the favorite color of {}?", "Which color does {} like?"),
              Source.full_name, lambda s: s.choice(words.COLORS)),
    _Relation("{} was born in {}.", ("When was {} born?", "In which year was {} born?"),
              Source.full_name, lambda s: str(s.integer(1900, 2020))),
    _Relation("{} is {} years old.", ("How old is {}?", "What is the age of {}?"),
              Source.full_name, lambda s: str(s.integer(5, 99))),
    _Relation("The {} costs {} dollars.", ("How much is the {}?", "What does the {} cost?"),
              Source.pick_noun, lambda s: str(s.number())),
    _Relation("The capital of {} is {}.", ("What is the capital of {}?", "Which city is the capital of {}?"),
              _invented, Source.city),
    _Relation("The code of {} is {}.", ("What is the code of {}?", "Tell me the code of {}."),
              _invented, _code),
    _Relation("{} bought a {}.", ("What did {} buy?", "Which thing did {} buy?"),
              Source.full_name, lambda s: f"{s.choice(words.ADJECTIVES)} {s.pick_noun()}"),
    _Relation("{} was founded by {}.", ("Who founded {}?", "Who is the founder of {}?"),
              _invented, Source.full_name),
)  # fmt: skip


def _pet(source: Source) -> _Statement:
    owner, animal, pet = source.full_name(), source.choice(words.ANIMALS), source.first_name()
    sentence = f"{owner} has a {animal} named {pet}."
    if source.chance(0.5):
        return _Statement(sentence, f"Which animal does {owner} have?", sentence)
    return _Statement(
        sentence, f"What is the name of the {animal} of {owner}?", f"The {animal} of {owner} is named {pet}."
    )


def _boss(source: Source) -> _Statement:
    sentence = f"{source.full_name()} is the boss of {(other := source.full_name())}."
    return _Statement(sentence, f"Who is the boss of {other}?", sentence)


def statement(source: Source) -> _Statement:
    """One sentence about somebody invented, with a question it answers."""
    kind = source.integer(0, len(_RELATIONS) + 1)
    if kind == 0:
        return _pet(source)
    if kind == 1:
        return _boss(source)
    relation = _RELATIONS[kind - 2]
    subject = relation.subject(source)
    sentence = relation.sentence.format(subject, relation.value(source))
    return _Statement(sentence, source.choice(relation.questions).format(subject), sentence)


def _prompt(source: Source, text: str, question: str) -> list[Message]:
    kind = source.integer(0, 11)
    if kind <= 3:
        return [("user", source.choice(_PLAIN).format(text=text, question=question))]
    if kind <= 6:
        rules: list[Message] = [("system", _RULES)] if source.chance(0.2) else []
        return [*rules, ("user", _INDEX.format(text=text, question=question))]
    if kind == 7:
        return [("user", _RAG.format(text=text, question=question))]
    if kind == 8:
        return [("user", _HELPFUL.format(text=text, question=question))]
    return [("system", source.choice(_SYSTEM_CONTEXT).format(text)), ("user", question)]


def reading(source: Source) -> Sample:
    statements = [statement(source) for _ in range(source.integer(1, 4))]
    asked = source.choice(statements)
    answer, skill = asked.answer, "ctx"
    if len(statements) > 1 and source.chance(0.15):
        statements.remove(asked)
        answer, skill = _UNKNOWN, "ctx_no"
    text = source.choice((" ", " ", "\n", "\n\n")).join(s.sentence for s in statements)
    if source.chance(0.15):
        text = f"file_path: {source.word(1, 2)}.txt\n\n{text}"
    return Sample([*_prompt(source, text, asked.question), ("assistant", answer)], skill)
