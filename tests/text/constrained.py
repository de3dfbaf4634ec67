"""A model of no brain at all for tests of constraints: it draws its tokens at random from the mask."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitnet.text.constraints import Constraint, ConstraintState
from bitnet.text.grammar_vocabulary import grammar_vocabulary
from bitnet.text.tokenizer import Tokenizer

_STRUCTURE = b'{}[]",:'


@dataclass
class Output:
    token_ids: list[int]
    text: str
    state: ConstraintState
    n_refused: int


def allowed(mask: NDArray[np.int32]) -> list[int]:
    ids: list[int] = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
    return ids


def in_bytes(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text, a token for each of its bytes."""
    byte_ids = grammar_vocabulary(tokenizer).byte_ids
    return [int(byte_ids[byte]) for byte in text.encode()]


def accepts(constraint: Constraint, tokenizer: Tokenizer, token_ids: Sequence[int]) -> bool:
    """Whether these tokens are a whole output, or its usual tokens where those are asked for instead."""
    byte_ids = grammar_vocabulary(tokenizer).byte_ids
    state = constraint.start()
    rest = list(token_ids)
    while rest:
        if rest[0] not in allowed(state.mask()):
            return False
        if state.accept(rest[0]):
            del rest[0]
            continue
        (usual,) = allowed(state.mask())
        wanted = tokenizer.token_bytes(usual)
        covered = b""
        while rest and len(covered) < len(wanted):
            covered += tokenizer.token_bytes(rest.pop(0))
        if not covered.startswith(wanted):
            return False
        assert state.accept(usual)
        rest[:0] = [int(byte_ids[byte]) for byte in covered[len(wanted) :]]
    return state.is_accepting


def generate(
    constraint: Constraint,
    tokenizer: Tokenizer,
    budget: int | None,
    rng: random.Random,
    *,
    favourites: Sequence[int] = (),
    limit: int = 2000,
) -> Output:
    """What comes out with `budget` tokens. A third of the time it prefers structure, or its favourites."""
    state = constraint.start()
    ids: list[int] = []
    n_refused = 0
    for used in range(limit if budget is None else budget):
        if state.is_finished:
            break
        while True:
            choices = allowed(state.mask(None if budget is None else budget - used))
            assert choices
            liked = [i for i in choices if i in favourites] or [
                i for i in choices if set(tokenizer.token_bytes(i)) <= set(_STRUCTURE)
            ]
            token_id = rng.choice(liked if liked and rng.random() < 0.3 else choices)
            if state.accept(token_id):
                break
            n_refused += 1
        if token_id in tokenizer.end_ids:
            break
        ids.append(token_id)
    text = b"".join(map(tokenizer.token_bytes, ids)).decode()
    return Output(ids, text, state, n_refused)
