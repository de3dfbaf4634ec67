"""Skills "chat" (set phrases), "chat_copy" (what the user said before) and "dialogue" (several turns)."""

from __future__ import annotations

from pathlib import Path

from .facts import question
from .source import Message, Sample, Source

_INTRODUCTIONS = (
    "My name is {}.", "I am {}.", "Hi, I am {}.", "Hello, my name is {}.", "Call me {}.", "Hello! I'm {}.",
    "my name is {}", "Hi, my name is {}.",
)  # fmt: skip
_NAME_QUESTIONS = (
    "What is my name?", "What's my name?", "Do you remember my name?", "Who am I?", "Tell me my name.",
    "Do you know my name?", "what is my name",
)  # fmt: skip
_ROLES = (
    "You are {}, a helpful assistant.", "Your name is {}.", "You are {}.",
    "You are an assistant called {}. Answer briefly.", "You are a helpful assistant named {}.",
)  # fmt: skip
_ROLE_QUESTIONS = ("Who are you?", "What is your name?", "What's your name?", "Tell me your name.")
_LIKES = ("I like {}.", "I love {}.", "My favorite thing is {}.", "I really like {}.")
_LIKE_QUESTIONS = ("What do I like?", "What do I love?", "What did I say?", "Do you remember what I like?")


def _load_phrases() -> tuple[tuple[tuple[str, ...], str], ...]:
    """phrases.txt: lines `what the user says / the same in other words => the answer`."""
    lines = Path(__file__).with_name("phrases.txt").read_text(encoding="utf-8").splitlines()
    phrases = [line.split(" => ") for line in lines if line and not line.startswith("#")]
    return tuple((tuple(wordings.split(" / ")), answer) for wordings, answer in phrases)


PHRASES = _load_phrases()


def phrase(source: Source) -> tuple[str, str]:
    wordings, answer = source.choice(PHRASES)
    said = source.choice(wordings)
    if source.chance(0.1):
        said = said.lower()
    if source.chance(0.1):
        said = said.rstrip("?.!")
    return said, answer


def chat(source: Source) -> Sample:
    """A closed set of phrases: nothing here is held out."""
    said, answer = phrase(source)
    return Sample([*source.system(), ("user", said), ("assistant", answer)], "chat")


def introduction(source: Source, name: str) -> list[Message]:
    return [
        ("user", source.choice(_INTRODUCTIONS).format(name)),
        ("assistant", f"Nice to meet you, {name}!"),
    ]


def _recall(source: Source, name: str) -> list[Message]:
    return [("user", source.choice(_NAME_QUESTIONS)), ("assistant", f"Your name is {name}.")]


def _filler(source: Source) -> list[Message]:
    """One turn about something else."""
    asked, answer = question(source) if source.chance(0.6) else phrase(source)
    return [("user", asked), ("assistant", answer)]


def chat_copy(source: Source) -> Sample:
    kind = source.integer(0, 9)
    if kind <= 1:
        name = source.first_name()
        messages: list[Message] = [
            ("system", source.choice(_ROLES).format(name)),
            ("user", source.choice(_ROLE_QUESTIONS)),
            ("assistant", f"I am {name}."),
        ]
    elif kind <= 6:
        name = source.first_name()
        messages = source.system() + introduction(source, name)
        if source.chance(0.3):
            messages += _filler(source)
        if source.chance(0.8):
            messages += _recall(source, name)
    elif kind <= 8:
        thing = source.pick_noun() if source.chance(0.6) else source.word()
        messages = [
            *source.system(),
            ("user", source.choice(_LIKES).format(thing)),
            ("assistant", f"That is nice! I like {thing} too."),
        ]
        if source.chance(0.6):
            messages += [("user", source.choice(_LIKE_QUESTIONS)), ("assistant", f"You like {thing}.")]
    else:
        messages = [
            *source.system(),
            ("user", source.choice(_NAME_QUESTIONS)),
            ("assistant", "I do not know your name. What is your name?"),
        ]
    return Sample(messages, "chat_copy")


def dialogue(source: Source) -> Sample:
    """Several unrelated turns, with a name that is asked for at the end."""
    name = source.first_name() if source.chance(0.5) else None
    messages = source.system()
    if name:
        messages += introduction(source, name)
    # A few are long, so that every position of the context is trained.
    turns = source.integer(6, 24) if source.chance(0.06) else source.integer(1 if name else 2, 3)
    for _ in range(turns):
        messages += _filler(source)
    if name:
        messages += _recall(source, name)
    return Sample(messages, "dialogue")
