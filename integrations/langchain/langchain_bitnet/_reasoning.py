"""What a model writes between <think> and </think> before its answer, told apart from it while it comes."""

from __future__ import annotations

from typing import NamedTuple

OPENER, CLOSER = "<think>", "</think>"


class Piece(NamedTuple):
    reasoning: str
    text: str


class ReasoningSplitter:
    """Takes pieces of an answer's text. Only what the answer begins with is reasoning."""

    def __init__(self) -> None:
        self._state = "start"  # then "reasoning" and "text"; "start" may be followed by "text" at once
        self._held = ""

    def feed(self, text: str) -> Piece:
        """What is known now. White space around the reasoning belongs to nobody."""
        self._held += text
        reasoning = ""
        if self._state == "start":
            begun = self._held.lstrip()
            if OPENER.startswith(begun) and begun != OPENER:  # also the empty text: it may become <think>
                return Piece("", "")
            if begun.startswith(OPENER):
                self._state, self._held = "reasoning", begun[len(OPENER) :].lstrip()
            else:
                self._state = "text"
        if self._state == "reasoning":
            before, closer, after = self._held.partition(CLOSER)
            if closer:
                self._state, self._held = "between", after
                reasoning = before.rstrip()
            else:
                safe = len(self._held) - _overlap(self._held)
                safe = len(self._held[:safe].rstrip())  # the last white space may stand before </think>
                reasoning, self._held = self._held[:safe], self._held[safe:]
                return Piece(reasoning, "")
        if self._state == "between":
            self._held = self._held.lstrip()
            if not self._held:
                return Piece(reasoning, "")
            self._state = "text"
        result, self._held = self._held, ""
        return Piece(reasoning, result)

    def flush(self) -> Piece:
        """What was held back when the answer ended."""
        held, self._held = self._held, ""
        if self._state == "reasoning":
            return Piece(held, "")
        return Piece("", held if self._state == "start" else "")


def _overlap(text: str) -> int:
    """How many characters at the end of `text` may be the beginning of </think>."""
    return next((n for n in range(min(len(text), len(CLOSER) - 1), 0, -1) if CLOSER.startswith(text[-n:])), 0)


def split(text: str) -> Piece:
    """`text` as a whole."""
    splitter = ReasoningSplitter()
    first, last = splitter.feed(text), splitter.flush()
    return Piece(first.reasoning + last.reasoning, first.text + last.text)
