"""Streaming: token ids to text that never shows half a character, and text up to a stop string.

Both hold back as little as correctness allows, and neither knows where its input comes from.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable

from .tokenizer import Tokenizer


class IncrementalDecoder:
    """Token ids in, text out; the pieces of text together are what Tokenizer.decode() gives for all the ids.

    With `continuation` the ids go on from a prompt, so that a leading space is the text's own and is kept.
    visible_ids: special tokens that are part of the text all the same.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special: bool = True,
        continuation: bool = False,
        visible_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._visible_ids = visible_ids
        self._skip_special = skip_special
        self._at_start = tokenizer.space_prefix and not continuation
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """The text that `token_id` completes, "" if it ends in the middle of a character.

        Bytes that cannot become a character any more turn into U+FFFD at once. Raises ValidationError for an
        unknown id.
        """
        piece, self._at_start = self._tokenizer.visible_bytes(
            token_id,
            skip_special=self._skip_special and token_id not in self._visible_ids,
            at_start=self._at_start,
        )
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """Ends the text: U+FFFD for a character that was left unfinished, otherwise ""."""
        return self._utf8.decode(b"", final=True)


class StopMatcher:
    """Passes text through up to the first stop string; holds back what could be the beginning of one.

    The stop string that is complete first wins, the longest if several end at the same character. This does
    not depend on how the text is cut into pieces. Time is linear in the text (Aho and Corasick 1975).
    """

    def __init__(self, stop_strings: Iterable[str]) -> None:
        """Raises ValueError for an empty stop string."""
        # Per state, the string read so far: the next states, the state of its longest proper suffix, the
        # longest stop string it ends with, and its length.
        self._next: list[dict[str, int]] = [{}]
        self._suffix: list[int] = [0]
        self._stop: list[str | None] = [None]
        self._depth: list[int] = [0]
        for stop in stop_strings:
            if not stop:
                raise ValueError("a stop string must not be empty")
            self._add(stop)
        self._link_suffixes()
        self._state = 0
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """The text that is now known to come before any stop string; after a match always ""."""
        if self.matched is not None:
            return ""
        n_before = len(self._held)
        self._held += text
        for end, character in enumerate(text, n_before + 1):
            self._state = self._step(self._state, character)
            stop = self._stop[self._state]
            if stop is not None:
                self.matched = stop
                released, self._held = self._held[: end - len(stop)], ""
                return released
        n_released = len(self._held) - self._depth[self._state]
        released, self._held = self._held[:n_released], self._held[n_released:]
        return released

    def flush(self) -> str:
        """Ends the text: what was held back and did not become a stop string."""
        released, self._held, self._state = self._held, "", 0
        return released

    def _add(self, stop: str) -> None:
        state = 0
        for depth, character in enumerate(stop, 1):
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._suffix.append(0)
                self._stop.append(None)
                self._depth.append(depth)
            state = self._next[state][character]
        self._stop[state] = stop

    def _link_suffixes(self) -> None:
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for character, child in self._next[state].items():
                self._suffix[child] = self._step(self._suffix[state], character)
                if self._stop[child] is None:
                    self._stop[child] = self._stop[self._suffix[child]]
                queue.append(child)

    def _step(self, state: int, character: str) -> int:
        while state and character not in self._next[state]:
            state = self._suffix[state]
        return self._next[state].get(character, 0)
