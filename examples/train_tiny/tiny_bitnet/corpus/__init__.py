"""The corpus: a seeded generator of conversations. `MIX` says which skills it teaches, and how much."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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


def samples(source: Source, mix: Mix = MIX) -> Iterator[Sample]:
    while True:
        yield draw(source, mix)


__all__ = ["EARLY", "MIX", "Message", "Mix", "Sample", "Source", "draw", "held_out", "samples"]
