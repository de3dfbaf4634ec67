"""Guessing the next tokens of an answer from what stands in the prompt and the answer already.

Guesses are computed along with the token before them, and kept as far as they are what sampling gives: the
answer is the same, several tokens to a step. Answers that repeat their prompt (edits, quotations, code) gain;
others pay little but the look-up, because guesses are only computed while they prove right.
The idea: prompt lookup decoding, https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from itertools import pairwise

# Tokens in a row that must have occurred before: the longest that have decide.
LONG, SHORT = 3, 2
# After this many tokens like the earlier text, the next is likely to be like it, too.
FIRM = 4
# How likely guesses are thought to be right before there is experience: where as few tokens are alike as can
# be, mostly not worth a row; behind FIRM of them worth a few.
FIRST_ODDS_LOOSE, FIRST_ODDS_FIRM = 0.2, 0.7
# Weight of the last guess in the odds: about eight guesses count.
NEWEST = 1 / 8

# What one more token adds to a step, as a share of a step of one token, and the most tokens of a step. With
# the 2B model on two AVX2 cores, steps of 2, 4, 8 and 11 tokens take 1.2, 1.9, 2.7 and 2.7 times as long as
# one of one token; from 12 tokens on (3.7) table lookup takes over, which is made for whole tiles of 32. That
# is 0.2 a token; more is asked for, because a neighbour without guesses waits for those of others.
TOKEN_COST = 0.3
MAX_STEP_TOKENS = 11


class PromptLookup:
    """Finds where the last tokens of a sequence stood before, and guesses that what followed follows again.

    Every guess is compared with the token that came, whether it was computed or not: that is where the odds
    come from.
    """

    def __init__(self, token_ids: list[int]) -> None:
        """token_ids: of the sequence, and kept: its owner appends to it, and then calls `appended`."""
        self._token_ids = token_ids
        n = len(token_ids)
        # Where the token is that followed their last occurrence.
        triples = zip(token_ids, token_ids[1:], token_ids[2:], strict=False)
        pairs = pairwise(token_ids)
        self._long: dict[tuple[int, ...], int] = dict(zip(triples, range(LONG, n), strict=False))
        self._short: dict[tuple[int, ...], int] = dict(zip(pairs, range(SHORT, n), strict=False))
        self._source: int | None = None  # index of the token that is guessed to come next
        self._n_alike = 0  # tokens before it that are like the last ones
        self._odds_loose, self._odds_firm = FIRST_ODDS_LOOSE, FIRST_ODDS_FIRM
        self._find()
        self._remember()

    def appended(self) -> None:
        """A token was appended."""
        token_ids, source = self._token_ids, self._source
        if source is not None:
            right = token_ids[source] == token_ids[-1]
            if self._n_alike < FIRM:
                self._odds_loose += (right - self._odds_loose) * NEWEST
            else:
                self._odds_firm += (right - self._odds_firm) * NEWEST
            if right:
                self._source = source + 1
                self._n_alike += 1
        if source is None or self._source == source:
            self._find()
        self._remember()

    def _remember(self) -> None:
        """The last tokens, too, after they were looked for: what follows them comes next."""
        n = len(self._token_ids)
        self._long[tuple(self._token_ids[-LONG:])] = n
        self._short[tuple(self._token_ids[-SHORT:])] = n

    def _find(self) -> None:
        for n_alike, known in ((LONG, self._long), (SHORT, self._short)):
            self._source = known.get(tuple(self._token_ids[-n_alike:]))
            self._n_alike = n_alike
            if self._source is not None:
                return

    def odds(self, most: int) -> list[float]:
        """How likely the first, the first two, .. guesses are all right, `most` at most; [] = no guess."""
        if self._source is None:
            return []
        odds, result = 1.0, []
        for index in range(most):
            odds *= self._odds_loose if self._n_alike + index < FIRM else self._odds_firm
            result.append(odds)
        return result

    def guesses(self, count: int) -> list[int]:
        """The next `count` tokens, if there is a guess. What repeats itself is thought to go on so."""
        assert self._source is not None
        known = self._token_ids[self._source : self._source + count]
        return (known * -(-count // len(known)))[:count]


def worthwhile(odds: Sequence[Sequence[float]], limit: int) -> list[int]:
    """How many guesses of each sequence of a step to compute, so that the most tokens come in the least time.

    odds: for each sequence, how likely its first, its first two, .. guesses are all right. limit: tokens of
    the step. Takes the likeliest as long as one adds more to the tokens than to the time.
    """
    counts = [0] * len(odds)
    expected, time = float(len(odds)), 1 + TOKEN_COST * (len(odds) - 1)
    ahead = [(-own[0], index) for index, own in enumerate(odds) if own]
    heapify(ahead)
    for _ in range(limit - len(odds)):
        if not ahead or -ahead[0][0] * time <= expected * TOKEN_COST:
            break
        likelihood, index = ahead[0]
        expected -= likelihood
        time += TOKEN_COST
        counts[index] += 1
        own = odds[index]
        following = -own[counts[index]] if counts[index] < len(own) else 0.0
        heapreplace(ahead, (following, index))
    return counts
