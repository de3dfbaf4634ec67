"""Guides: where attention should go, so that a model copies the right thing from the right place.

The loss of an answer tells a head where to look only once it looks there a little, and once what it finds is
used: a small model does not come upon it. One head for each kind of guide is told directly (model.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer

from .corpus.source import Clue


class Guide(NamedTuple):
    """Where a token should look: at one of the tokens [start, end)."""

    kind: int
    place: int
    start: int
    end: int
    told: int = -1  # the token that the look should tell of: the label, where it is also the answer


OWN_LABEL = 0  # a token of a line, at the first token of the line's label
SAME_TOKEN = 1  # a token of a question, at the same one in the only line that has it; at token 0 if none has
DECISION = 2  # the token before a decision, at the tokens of the question that are in that line
COPY = 3  # the token before one that is copied, at the one it is copied from; the last, at what is behind it


@functools.lru_cache
def small_letters(tokenizer: Tokenizer) -> list[int]:
    """For each token of ASCII letters the one that has them small; itself for others, or if there is none."""
    names = [tokenizer.id_to_token(i) or "" for i in range(tokenizer.get_vocab_size())]
    ids = {name: i for i, name in enumerate(names)}
    return [ids.get(name.lower(), i) if name.isascii() else i for i, name in enumerate(names)]


def _span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The tokens that have the characters [start, end)."""
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and start < b]
    return inside[0], inside[-1] + 1


def clue_guides(
    prompt: str, encoded: Encoding, same: Sequence[int], clue: Clue, before: int, decision: int, decided: int
) -> list[Guide]:
    """Where the tokens of a prompt and that of the decision should look, if the clue stands in the prompt.

    `encoded` is the prompt, `same` are the `small_letters` of its tokenizer. `before` tokens are in front of
    the prompt, `decision` tokens behind it is the token `decided`.
    """
    at, asked = prompt.find(clue.evidence), prompt.rfind(clue.question)
    if at < 0 or asked < at + len(clue.evidence):
        return []
    ids, offsets = [same[i] for i in encoded.ids], encoded.offsets
    start, end = _span(offsets, at, at + len(clue.evidence))
    label = at + clue.evidence.index(clue.label)
    named, _ = _span(offsets, label, label + len(clue.label))
    name = before + named, before + named + 1
    told = decided if encoded.ids[named] == decided else -1
    guides = [Guide(OWN_LABEL, before + place, *name, told) for place in range(named + 1, end)]
    first, last = _span(offsets, asked, asked + len(clue.question))
    elsewhere = {*ids[:start], *ids[end:first]}
    for place in range(first, last):
        if ids[place] in elsewhere:
            continue
        if ids[place] in ids[start:end]:
            guides.append(Guide(SAME_TOKEN, before + place, before + start, before + end, told))
        else:
            guides.append(Guide(SAME_TOKEN, before + place, 0, 1))
    if any(guide.kind == SAME_TOKEN and guide.end > 1 for guide in guides):
        guides.append(Guide(DECISION, before + len(ids) + decision - 1, before + first, before + last, told))
    if told >= 0:
        guides.append(Guide(COPY, before + len(ids) + decision - 1, *name))
    return guides


def copy_guides(before: list[int], answer: list[int], spans: Sequence[tuple[int, int]]) -> list[Guide]:
    """Where the tokens [start, end) of an answer stood before, if it is clear in which of several places."""
    guides = []
    for start, end in spans:
        piece = answer[start:end]
        places = [at for at in range(len(before)) if before[at : at + len(piece)] == piece]
        # What is long is the same thing again where it stands twice, and was said last by who asks.
        if piece and (len(places) == 1 or (places and len(piece) > 2)):
            from_there = places[-1] - start
            guides += [
                Guide(COPY, len(before) + i - 1, i + from_there, i + from_there + 1)
                # Whether the text ends here, is told by what stood behind it.
                for i in range(start, min(end + 1, len(answer)))
                if i + from_there < len(before)
            ]
    return guides
