"""A tokenizer's vocabulary as llguidance needs it: the bytes of every id, built once per tokenizer.

Knows nothing of grammars; constraints.py and closing.py run them on it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from bitnet.errors import ConstraintError

from .tokenizer import Tokenizer

_PRINTABLE = range(0x20, 0x7F)


class GrammarVocabulary:
    """Immutable; shared by all constraints of one tokenizer. Holds no reference to the tokenizer itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises ConstraintError for a vocabulary that cannot spell printable ASCII: JSON could get stuck."""
        self.vocab_size = tokenizer.vocab_size
        self.n_words = (self.vocab_size + 31) // 32
        self.end_ids = tokenizer.end_ids
        self._model_tokenizer = weakref.ref(tokenizer)
        pieces = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        special = {i for i, piece in enumerate(pieces) if not piece} | tokenizer.special_ids
        self.byte_ids = np.full(256, -1, np.int64)  # the token of each single byte
        for token_id, piece in enumerate(pieces):
            if len(piece) == 1 and token_id not in special:
                self.byte_ids[piece[0]] = token_id
        missing = [byte for byte in _PRINTABLE if self.byte_ids[byte] < 0]
        if missing:
            raise ConstraintError(
                f"this model has no token for the character {chr(missing[0])!r}, so that its output cannot "
                "be constrained; use another model"
            )
        source = _Source(pieces, sorted(special), tokenizer.eos_id)
        ends = sorted(self.end_ids) or None
        self.tokenizer = LLTokenizer(TokenizerWrapper(source), eos_token=ends)
        source.greedy = self.tokenizer
        self.end_mask = self.mask_of(self.end_ids)
        self.special_mask = self.mask_of(special - self.end_ids)

    def tokenize(self, data: bytes) -> list[int]:
        """`data` in few tokens: the longest match at each place. May begin in the middle of a character."""
        start = 0
        while start < len(data) and data[start] & 0xC0 == 0x80:
            start += 1
        ids = [int(self.byte_ids[byte]) for byte in data[:start]]
        try:
            return ids + self.tokenizer.greedy_tokenize(data[start:].decode())
        except UnicodeDecodeError:
            return [int(self.byte_ids[byte]) for byte in data]

    def first_token(self, text: str) -> int | None:
        """The token with which the model reads the beginning of `text`; None where that cannot be told."""
        tokenizer = self._model_tokenizer()
        if tokenizer is None or tokenizer.space_prefix:  # its texts begin with a space that is not there
            return None
        return tokenizer.encode(text, add_special=False)[0]

    def mask_of(self, token_ids: Iterable[int]) -> NDArray[np.int32]:
        """A mask [n_words] of these tokens."""
        bits = np.zeros(self.n_words * 32, np.uint8)
        bits[list(token_ids)] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)


class _Source:
    """What TokenizerWrapper reads; called only where a grammar asks for forced tokens."""

    def __init__(self, tokens: list[bytes], special_token_ids: list[int], eos_token_id: int | None) -> None:
        self.tokens = tokens
        self.special_token_ids = special_token_ids
        self.eos_token_id = eos_token_id
        self.bos_token_id = None
        self.greedy: LLTokenizer | None = None

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode()
        return [] if self.greedy is None else self.greedy.greedy_tokenize(text)


def forbid(mask: NDArray[np.int32], token_id: int) -> None:
    """Clears the token's bit."""
    mask.view(np.uint32)[token_id >> 5] &= np.uint32(~(1 << (token_id & 31)) & 0xFFFFFFFF)


_vocabularies: weakref.WeakKeyDictionary[Tokenizer, GrammarVocabulary] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def grammar_vocabulary(tokenizer: Tokenizer) -> GrammarVocabulary:
    """The tokenizer's, built at the first call (0.2 s for 128,256 tokens)."""
    with _lock:
        known = _vocabularies.get(tokenizer)
        if known is None:
            known = _vocabularies[tokenizer] = GrammarVocabulary(tokenizer)
        return known
