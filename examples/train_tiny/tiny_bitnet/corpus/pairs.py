"""Pairs of a question and the passage that answers it, for text embeddings."""

from __future__ import annotations

from .relations import MORE_RELATIONS, RELATIONS, make_text
from .source import Source, unmarked


def passage_pair(source: Source) -> tuple[str, str]:
    """A question (sometimes a sentence) and a passage of one to four sentences."""
    story = make_text(source, 4, MORE_RELATIONS if source.chance(0.5) else RELATIONS)
    told = source.choice(story.statements)
    question = told.question(source) if source.chance(0.85) else unmarked(told.answer)
    return question, story.text
