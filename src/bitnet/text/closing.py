"""Finds a short way to the end of a grammar: the tokens that close what a matcher has begun.

A best-first search over single bytes. What it finds is an upper bound that the matcher itself has accepted;
when to ask, and what to do with the answer, is left to constraints.py.
"""

from __future__ import annotations

import heapq
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher

from .grammar_vocabulary import GrammarVocabulary

_MAX_BYTES = 32768  # of an ending: more than any budget that somebody waits for
_MAX_ALIKE = 3  # bytes of one rank tried at one place
_RECENT = 64  # bytes that count as used lately
_MAX_SPECIAL = 4  # special tokens tried at one place

_LETTERS = b"qxz"  # JSON has them in texts only
_QUOTE, _SEPARATOR = re.compile(rb'"'), re.compile(rb'[",:{}\[\]]')  # behind them, nothing was used yet
_ESCAPE = ord("\\")  # a quote behind it ends nothing


def _ranks(*groups: bytes, others: int) -> dict[int, int]:
    ranks = dict.fromkeys(range(256), others)
    for rank, group in enumerate(groups):
        ranks.update(dict.fromkeys(group, rank))
    return ranks


# How far from an end a byte leads, by guess. Between values, brackets and quotes close; within a text, only
# the quote does, and punctuation is more likely to be what a pattern waits for than one more letter.
_STRUCTURE = _ranks(b'"}]', b",:>)", b"0123456789", b"ntf-. ", b"{[<(", others=6)
_TEXT = _ranks(b'"', b"@:", b".-/, ", b"0123456789ax", b"}]{[<>()\\", others=4)


@dataclass(frozen=True, slots=True)
class _Path:
    """A way from the start, and its last step: the bytes `data`, or a special token, which has none."""

    parent: _Path | None
    token_ids: tuple[int, ...]  # of the last step
    data: bytes
    recent: bytes  # the last bytes of the whole way
    rank: int
    n_bytes: int
    n_tokens: int


def first_ending(
    matcher: LLMatcher,
    vocabulary: GrammarVocabulary,
    *,
    fuel: int,
    hints: Sequence[list[int]] = (),
    joints: Sequence[list[int]] = (),
    seconds: float = math.inf,
) -> list[int] | None:
    """Tokens after which `matcher` accepts, [] if it does already; None if none were found in about `fuel`
    steps or in that processor time: a busy machine refuses nothing that an idle one takes.

    Goes straight on where the ranks lead, then where chance leads, which also finds the way out of loops.
    hints: tokens of texts that may finish one which cannot end yet. joints: tokens of what may follow a text
    where it is not the end. The matcher itself does not move.
    """
    deadline = time.thread_time() + seconds
    straight, first, second = (
        _Search(matcher.deep_copy(), vocabulary, hints, joints, None if seed is None else random.Random(seed))
        for seed in (None, 1, 2)
    )
    for search, most in ((straight, min(fuel, 600)), (first, 300), (second, 300), (straight, fuel)):
        ending = search.run(most, deadline)
        if ending is not None:
            return ending
    return None


def short_ending(
    matcher: LLMatcher,
    vocabulary: GrammarVocabulary,
    *,
    fuel: int,
    hints: Sequence[list[int]] = (),
    joints: Sequence[list[int]] = (),
    seconds: float = math.inf,
) -> list[int] | None:
    """As first_ending, but the shortest: costs far more, and finds none where the way is long."""
    search = _Search(matcher.deep_copy(), vocabulary, hints, joints, None, thorough=True)
    return search.run(fuel, time.thread_time() + seconds)


def _tokens(path: _Path, vocabulary: GrammarVocabulary) -> list[int]:
    """The whole way, with its bytes in as few tokens as they take."""
    steps = []
    step: _Path | None = path
    while step is not None:
        steps.append(step)
        step = step.parent
    token_ids: list[int] = []
    data = b""
    for step in reversed(steps):
        if step.data:
            data += step.data
        else:
            token_ids += [*vocabulary.tokenize(data), *step.token_ids]
            data = b""
    return token_ids + vocabulary.tokenize(data)


class _Search:
    """One matcher walks all paths, forwards and back: it learns the grammar's states once for all of them."""

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: GrammarVocabulary,
        hints: Sequence[list[int]],
        joints: Sequence[list[int]],
        chance: random.Random | None,
        thorough: bool = False,
    ) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._thorough = thorough
        self._hints = hints
        self._joints = joints
        self._chance = chance
        # One word more than the model has, where llguidance made up an end token.
        self._mask = np.zeros((vocabulary.tokenizer.vocab_size + 31) // 32, np.int32)
        self._bytes = np.flatnonzero(vocabulary.byte_ids >= 0)
        ids = vocabulary.byte_ids[self._bytes]
        self._words, self._bits = ids >> 5, (ids & 31).astype(np.uint32)
        self._heap: list[tuple[int, int, int, _Path]] = []
        self._n_added = 0
        self._seen: set[tuple[int, bytes, bytes]] = set()
        self._at = _Path(None, (), b"", b"", 0, 0, 0)
        self.add(self._at)

    def add(self, path: _Path) -> None:
        if self._thorough:
            priority = (path.n_bytes + 4 * path.rank, 0)
        else:
            priority = (-path.n_tokens, path.rank)
        self._n_added += 1
        heapq.heappush(self._heap, (*priority, self._n_added, path))

    def run(self, fuel: int, deadline: float) -> list[int] | None:
        for _ in range(fuel):
            if not self._heap or time.thread_time() > deadline:
                return None
            path = heapq.heappop(self._heap)[-1]
            if self.follow(path):
                return _tokens(path, self._vocabulary)
        return None

    def follow(self, path: _Path) -> bool:
        """Whether the path ends at an end; if not, what can follow is added."""
        if not self._move(path):
            return False
        if self._matcher.is_accepting():
            return True
        choices = self._choices()
        # Places that allow the same bytes after the same number of them are nearly always the same place; in
        # a text that has to contain something, the last bytes tell how far it is.
        signature = (path.n_bytes, choices, path.recent[-2:])
        if signature in self._seen:
            return False
        self._seen.add(signature)
        self._try_special(path)
        is_text = any(letter in choices for letter in _LETTERS)
        # What can end a text: its closing quote, unless that is content, or the end of the output.
        ends = [self._vocabulary.tokenizer.eos_token]
        if ord('"') not in choices:
            ends.append(int(self._vocabulary.byte_ids[ord('"')]))
        is_open = is_text and (len(ends) == 2 or bool(self._hints))
        if is_open:
            for hint in self._hints:
                if self._can_end_after(hint, ends):
                    self._extend(path, hint, self._vocabulary.tokenizer.decode_bytes(hint), 0)
        if is_text:
            for joint in self._joints:
                if self._matcher.validate_tokens(joint) == len(joint):
                    self._extend(path, joint, self._vocabulary.tokenizer.decode_bytes(joint), 0)
        ranks = self._ranks(path, choices, is_text, ends if is_open else [])
        ranked = sorted(zip(ranks, choices, strict=True))
        for i, (rank, byte) in enumerate(ranked):
            if i < _MAX_ALIKE or ranked[i - _MAX_ALIKE][0] != rank:
                self._extend(path, [int(self._vocabulary.byte_ids[byte])], bytes([byte]), rank)
        return False

    def _ranks(self, path: _Path, choices: bytes, is_text: bool, ends: list[int]) -> Iterator[int]:
        table, patience = (_TEXT, 2) if is_text else (_STRUCTURE, 8)
        recent = (_QUOTE if is_text else _SEPARATOR).split(path.recent)[-1]
        n_alike = Counter(table[byte] for byte in recent)
        for byte in choices:
            rank = table[byte]
            if byte != _ESCAPE and self._can_end_after([int(self._vocabulary.byte_ids[byte])], ends):
                rank = 0
            elif rank and self._chance is not None:
                rank = self._chance.randrange(1, 8)
            elif rank == 1 and not is_text:
                rank += path.recent.count(byte)  # separators
            elif rank:
                # What was used lately comes later: where going round leads nowhere, others get their turn.
                rank += recent.count(byte) // patience + n_alike[rank] // 8
            yield rank

    def _can_end_after(self, token_ids: list[int], ends: list[int]) -> bool:
        return any(self._matcher.validate_tokens([*token_ids, end]) > len(token_ids) for end in ends)

    def _move(self, path: _Path) -> bool:
        fork, forward = self._at, []
        step = path
        while step is not fork:
            if step.parent is not None and step.n_tokens >= fork.n_tokens:
                forward.append(step)
                step = step.parent
            elif fork.parent is not None:
                fork = fork.parent
        if fork is not self._at:
            self._matcher.rollback(self._at.n_tokens - fork.n_tokens)
        self._at = path
        token_ids = [token_id for step in reversed(forward) for token_id in step.token_ids]
        return not token_ids or self._matcher.consume_tokens(token_ids)

    def _choices(self) -> bytes:
        """The bytes that can come next: those of ASCII, or if there are none the others."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            return b""
        allowed = self._mask.view(np.uint32)[self._words] >> self._bits & 1
        choices = bytes(self._bytes[allowed == 1].tolist())
        return bytes(byte for byte in choices if byte < 0x80) or choices

    def _try_special(self, path: _Path) -> None:
        special = self._mask[: self._vocabulary.n_words] & self._vocabulary.special_mask
        if special.any():
            bits = np.unpackbits(special.view(np.uint8), bitorder="little")
            for token_id in np.flatnonzero(bits)[:_MAX_SPECIAL].tolist():
                self._extend(path, [token_id], b"", 1)

    def _extend(self, path: _Path, token_ids: list[int], data: bytes, rank: int) -> None:
        if path.n_bytes < _MAX_BYTES:
            recent = (path.recent + data)[-_RECENT:]
            n_bytes, n_tokens = path.n_bytes + (len(data) or 1), path.n_tokens + len(token_ids)
            self.add(_Path(path, tuple(token_ids), data, recent, path.rank + rank, n_bytes, n_tokens))
