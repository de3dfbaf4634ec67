"""The corpus: a seeded generator of conversations. `MIX` says which skills it teaches, and how much."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from . import prompts
from .chat import chat, chat_copy, dialogue
from .choosing import kinds, options
from .copying import copying
from .facts import facts, unknown
from .finding import line_choice
from .judging import condense, judge
from .pairs import passage_pair
from .reading import conversation, reading, refine
from .source import Family, Message, Sample, Source, held_out, unmarked
from .story import story
from .structured import invention, schema
from .sums import arithmetic
from .tools import call_values, forced, function_choice, tools

Skill = Callable[[Source], Family | Sample]
Mix = dict[Skill, float]

# Shares of families. One of tools has fifteen times the tokens of a fact, and eight conversations.
MIX: Mix = {
    facts: 230, unknown: 18, chat: 24, chat_copy: 14, dialogue: 14, copying: 28, arithmetic: 1, story: 15,
    reading: 80, refine: 4, conversation: 10, judge: 6, condense: 10,
    tools: 52, function_choice: 15, call_values: 14, forced: 2.5, schema: 6, invention: 0.2,
    options: 36, kinds: 24, line_choice: 5,
}  # fmt: skip
# The constructed start is kept by much copying in the first minutes.
EARLY: Mix = {facts: 22, chat: 10, chat_copy: 10, copying: 42, reading: 6, arithmetic: 5, story: 2, tools: 3}


def draw_family(source: Source, mix: Mix = MIX) -> Family:
    drawn = source.weighted(list(mix), list(mix.values()))(source)
    return [drawn] if isinstance(drawn, Sample) else drawn


def draw(source: Source, mix: Mix = MIX) -> Sample:
    return source.choice(draw_family(source, mix))


def held_out_samples(per_skill: int, seed: int) -> list[Sample]:
    """Samples of the test split, the same number of every skill."""
    found: dict[str, list[Sample]] = {}
    for generator in MIX:
        source = Source("test", f"{generator.__name__}-{seed}")
        own: dict[str, list[Sample]] = defaultdict(list)
        # Some skills of a generator are rare; the bound only protects against one that never fills.
        for attempt in range(60 * per_skill):
            drawn = generator(source)
            sample = drawn if isinstance(drawn, Sample) else source.choice(drawn)
            if len(own[sample.skill]) < per_skill:
                own[sample.skill].append(sample)
            if attempt > 3 * per_skill and all(len(samples) == per_skill for samples in own.values()):
                break
        found |= own
    return [sample for skill in sorted(found) for sample in found[skill]]


# The tokenizer sees more of the long formats than training does: their words must not fall apart.
_FOR_TOKENIZER: Mix = {**MIX, facts: 20, reading: 12, tools: 10, schema: 6, options: 4, copying: 5}


_SCHEMA_WORDS = (
    '{"anyOf": [{"type": "string"}, {"type": "null"}], "default": null, "title": "Value", '
    '"description": "The"}',
    '{"additionalProperties": false, "enum": ["a", "b"], "items": {"type": "number"}, "minimum": 0, '
    '"maximum": 9}',
    '{"properties": {"setup": {"title": "Setup", "type": "string"}}, "required": ["setup"], "title": "Joke"}',
)


def tokenizer_texts(seed: int, count: int = 20_000) -> Iterator[str]:
    """What the tokenizer is learned from: conversations, and the fixed prompts of the libraries."""
    source = Source("train", f"tokenizer-{seed}")
    for _ in range(count):
        for role, text in draw(source, _FOR_TOKENIZER).messages:
            yield f"{role.capitalize()}: {unmarked(text)}"
    fixed = [value for name, value in vars(prompts).items() if name.isupper()]
    texts = [text for value in fixed for text in ([value] if isinstance(value, str) else value)]
    for _ in range(count // 100):
        yield from (*texts, *_SCHEMA_WORDS)


def samples(source: Source, mix: Mix = MIX) -> Iterator[Sample]:
    while True:
        yield draw(source, mix)


__all__ = [
    "EARLY", "MIX", "Family", "Message", "Mix", "Sample", "Source", "draw", "draw_family", "held_out",
    "held_out_samples",
    "passage_pair", "samples", "tokenizer_texts", "unmarked",
]  # fmt: skip
