"""The corpus: a seeded generator of conversations. `MIX` says which skills it teaches, and how much."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from . import prompts
from .chat import chat, chat_copy, dialogue
from .copying import copying
from .facts import facts, unknown
from .reading import reading
from .source import Message, Sample, Source, held_out
from .story import story
from .structured import options, schema
from .sums import arithmetic
from .tools import tools

Mix = dict[Callable[[Source], Sample], float]

# Shares of samples; a tool sample has eight times the tokens of a fact.
MIX: Mix = {
    facts: 42, unknown: 2, chat: 11, chat_copy: 8, dialogue: 6, copying: 9, arithmetic: 7, reading: 6,
    story: 3, options: 2, tools: 3, schema: 1,
}  # fmt: skip
# The constructed start is kept by much copying in the first minutes.
EARLY: Mix = {facts: 22, chat: 10, chat_copy: 10, copying: 42, reading: 6, arithmetic: 5, story: 2, tools: 3}


def draw(source: Source, mix: Mix = MIX) -> Sample:
    return source.weighted(list(mix), list(mix.values()))(source)


# The tokenizer sees more of the long formats than training does: their words must not fall apart.
_FOR_TOKENIZER: Mix = {**MIX, facts: 20, reading: 12, tools: 10, schema: 6, options: 4, copying: 5}


_SCHEMA_WORDS = (
    '{"anyOf": [{"type": "string"}, {"type": "null"}], "default": null, "title": "Value", "description": "The"}',
    '{"additionalProperties": false, "enum": ["a", "b"], "items": {"type": "number"}, "minimum": 0, "maximum": 9}',
    '{"properties": {"setup": {"title": "Setup", "type": "string"}}, "required": ["setup"], "title": "Joke"}',
)


def tokenizer_texts(seed: int, count: int = 20_000) -> Iterator[str]:
    """What the tokenizer is learned from: conversations, and the fixed prompts of the libraries."""
    source = Source("train", f"tokenizer-{seed}")
    for _ in range(count):
        for role, text in draw(source, _FOR_TOKENIZER).messages:
            yield f"{role.capitalize()}: {text}"
    fixed = [value for name, value in vars(prompts).items() if name.isupper()]
    texts = [text for value in fixed for text in ([value] if isinstance(value, str) else value)]
    for _ in range(count // 100):
        yield from (*texts, *_SCHEMA_WORDS)


def samples(source: Source, mix: Mix = MIX) -> Iterator[Sample]:
    while True:
        yield draw(source, mix)


__all__ = [
    "EARLY",
    "MIX",
    "Message",
    "Mix",
    "Sample",
    "Source",
    "draw",
    "held_out",
    "samples",
    "tokenizer_texts",
]
