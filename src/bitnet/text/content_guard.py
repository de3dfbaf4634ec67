"""Keeps the names of control tokens that stand in messages from becoming control tokens.

A template writes control tokens as text, so that its output has to be parsed for them. What comes from a
message must not count: before rendering, a mark is put inside every such name in the message; after parsing,
the mark is removed. Ordinary messages are not changed at all, so that templates may trim, compare, split and
search them as they like.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from bitnet.errors import ChatTemplateError

# Private-use characters and noncharacters, which nobody types and no tokenizer splits at.
_MARKS = (*range(0x10FFFD, 0x0FFFFF, -1), *range(0xFFFFD, 0xEFFFF, -1), *range(0xF8FF, 0xDFFF, -1))
_LOWEST_MARK = chr(min(_MARKS))
# A name is cut at each place that looks like its beginning, so that no filter can put a whole one together.
_PREFIX_LENGTH = 3


class ContentGuard:
    """Marks texts for one tokenizer. Names are compared without case, for templates that change it."""

    def __init__(self, control_texts: Collection[str]) -> None:
        names = [text.lower() for text in control_texts]
        beginnings = sorted({re.escape(name[:_PREFIX_LENGTH]) for name in names})
        self._inside = re.compile(f"(?=(?:{'|'.join(beginnings)}))(.)", re.I | re.S) if beginnings else None
        # What the end of a message could begin, and what its beginning could complete.
        self._open_ends = {name[:n] for name in names for n in range(1, min(_PREFIX_LENGTH, len(name)))}
        self._endings = {name[i:] for name in names for i in range(1, len(name))}
        self._ending_lengths = sorted({len(ending) for ending in self._endings})

    def protect(self, text: str, mark: str) -> str:
        """`text` with `mark` where a control token could begin, or be completed across its edges.

        White space at the edges stays outside of the marks, where templates trim it.
        """
        if self._inside is None:
            return text
        body = text.strip()
        if not body:
            return text
        start = text.index(body)
        lowered = body.lower()
        protected = self._inside.sub(rf"\1{mark}", body)
        if any(lowered[:length] in self._endings for length in self._ending_lengths):
            protected = mark + protected
        if any(lowered[-n:] in self._open_ends for n in range(1, _PREFIX_LENGTH)):
            protected += mark
        return text[:start] + protected + text[start + len(body) :]


def choose_mark(texts: Iterable[str]) -> str:
    """A character that is in none of `texts`. Raises ChatTemplateError if they have all candidates."""
    used: set[str] = set()
    for text in texts:
        # Almost all text is below the private-use characters; only other text costs a set of its characters.
        if not text.isascii() and max(text) >= _LOWEST_MARK:
            used.update(text)
    for candidate in _MARKS:
        if chr(candidate) not in used:
            return chr(candidate)
    raise ChatTemplateError("the messages use every private-use character of Unicode; remove some")
