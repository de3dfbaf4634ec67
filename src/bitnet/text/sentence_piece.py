"""SentencePiece BPE (`tokenizer.ggml.model` = llama): adjacent pieces merge in the order of their scores.

Written out here because the `tokenizers` library cannot express it: there a *pair* has a rank, here the
merged *token* has a score, and of two overlapping ways to make one token the leftmost wins. Special tokens
are left to special_tokens.py.
"""

from __future__ import annotations

from collections.abc import Set
from functools import lru_cache
from heapq import heapify, heappop, heappush

from bitnet.errors import ModelFileError

from .vocabulary import TokenType, Vocabulary, byte_value, is_valid_unicode, raw_bytes

_SPACE = "\u2581"
# Words repeat: a cache of their tokens made English text 6 times as fast. Longer stretches do not repeat.
_CACHED_WORDS = 16384
_LONGEST_CACHED = 48


def token_bytes(vocabulary: Vocabulary) -> list[bytes]:
    """The bytes each token stands for, by id. Raises ModelFileError for malformed tokens."""
    pieces = []
    for token_id, token in enumerate(vocabulary.tokens):
        kind = vocabulary.type_of(token_id)
        if kind == TokenType.BYTE:
            pieces.append(bytes([byte_value(token)]))
        elif kind in (TokenType.NORMAL, TokenType.USER_DEFINED):
            pieces.append(raw_bytes(token.replace(_SPACE, " ")))
        else:
            pieces.append(raw_bytes(token))
    return pieces


class SentencePieceModel:
    """Text without special tokens to ids: the same as SentencePiece's BPE with byte fallback and no
    normalisation.
    """

    def __init__(self, vocabulary: Vocabulary, control: Set[int]) -> None:
        """Raises ModelFileError without scores, or without anything to write unknown characters with."""
        if vocabulary.scores is None:
            raise ModelFileError(
                "the model file has a SentencePiece tokenizer without scores (tokenizer.ggml.scores)"
            )
        self.space_prefix = vocabulary.add_space_prefix is not False
        self._ids: dict[str, int] = {}
        self._bytes: dict[int, int] = {}
        for token, token_id in vocabulary.ids.items():
            kind = vocabulary.type_of(token_id)
            if kind == TokenType.BYTE:
                self._bytes[byte_value(token)] = token_id
            elif kind == TokenType.NORMAL and token_id not in control and is_valid_unicode(token):
                self._ids[token] = token_id
        self._unknown = vocabulary.named_ids.get("unk")
        if len(self._bytes) < 256 and self._unknown is None:
            raise ModelFileError(
                "the SentencePiece tokenizer has neither all byte tokens nor an unknown token"
            )
        # Lower is sooner.
        self._ranks = {piece: -vocabulary.scores[i] for piece, i in self._ids.items() if len(piece) > 1}
        if len(self._ranks) > 1 and len(set(self._ranks.values())) == 1:
            raise ModelFileError(
                "all tokens have the same score (tokenizer.ggml.scores), so that the order of merges is "
                "lost; convert the model again from its tokenizer.model"
            )
        # Characters that are neighbours in no piece cannot end up in one token: text is cut there, into about
        # words.
        self._neighbours = {piece[i : i + 2] for piece in self._ranks for i in range(len(piece) - 1)}
        self._merge_cached = lru_cache(maxsize=_CACHED_WORDS)(self._merge)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, or of a part of it that follows a special token: both begin with the prefix."""
        text = text.replace(" ", _SPACE)
        if self.space_prefix:
            text = _SPACE + text
        ids: list[int] = []
        start = 0
        for i in range(1, len(text) + 1):
            if text[i - 1 : i + 1] in self._neighbours:
                continue
            word = text[start:i]
            ids += self._merge_cached(word) if i - start <= _LONGEST_CACHED else self._merge(word)
            start = i
        return ids

    def _merge(self, text: str) -> tuple[int, ...]:
        """Merges the pair whose token scores best, the leftmost of equals, until none is left.

        The algorithm of sentencepiece/src/bpe_model.cc; a stale entry of the heap is one whose pieces have
        changed.
        """
        pieces = list(text)
        following = [*range(1, len(pieces)), -1]
        preceding = [*range(-1, len(pieces) - 1)]
        heap = []
        for left in range(len(pieces) - 1):
            merged = pieces[left] + pieces[left + 1]
            if merged in self._ranks:
                heap.append((self._ranks[merged], left, merged))
        heapify(heap)
        while heap:
            _, left, merged = heappop(heap)
            right = following[left]
            if right < 0 or not pieces[left] or pieces[left] + pieces[right] != merged:
                continue
            pieces[left], pieces[right] = merged, ""
            following[left] = after = following[right]
            if after >= 0:
                preceding[after] = left
                longer = merged + pieces[after]
                if longer in self._ranks:
                    heappush(heap, (self._ranks[longer], left, longer))
            before = preceding[left]
            if before >= 0:
                longer = pieces[before] + merged
                if longer in self._ranks:
                    heappush(heap, (self._ranks[longer], before, longer))
        return tuple(self._pieces_to_ids(pieces))

    def _pieces_to_ids(self, pieces: list[str]) -> list[int]:
        ids: list[int] = []
        for piece in filter(None, pieces):
            token_id = self._ids.get(piece)
            if token_id is not None:
                ids.append(token_id)
            elif len(self._bytes) == 256:
                ids += [self._bytes[byte] for byte in piece.encode()]
            elif self._unknown is not None:
                ids.append(self._unknown)
        return ids
