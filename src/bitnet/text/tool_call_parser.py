"""Takes tool calls out of an answer while it streams: the name first, then the arguments as they grow.

The format is the one of tool_calls.py. Whether the model keeps to it is left to tool_grammar.py: what does
not become a call passes through as text.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Literal

from .tool_calls import CLOSER, OPENER


@dataclass(frozen=True)
class TextDelta:
    """More text of the answer itself."""

    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """A call began. index: 0 for the first call of an answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallArgumentsDelta:
    """More text of the call's arguments, which together are one JSON object."""

    index: int
    text: str


@dataclass(frozen=True)
class ToolCallEnd:
    """The call is complete. A call without this was cut off."""

    index: int


ToolCallEvent = TextDelta | ToolCallStart | ToolCallArgumentsDelta | ToolCallEnd

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"arguments"\s*:\s*(?=\{)')
_TAIL = re.compile(rf"\s*\}}\s*{CLOSER}")
_MAX_HEAD = 512


class ToolCallParser:
    """Takes the calls out of an answer as its text arrives. Everything else passes through as it is.

    Held back is only what may be the beginning of a call, and white space between calls.
    """

    def __init__(self) -> None:
        self._held = ""
        self._index = 0
        self._after_call = False  # nothing but white space since
        self._state: Literal["text", "head", "arguments", "tail"] = "text"
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> list[ToolCallEvent]:
        """What is known now that this text has come."""
        self._held += text
        events: list[ToolCallEvent] = []
        while True:
            n_events, before = len(events), (self._state, len(self._held))
            getattr(self, f"_in_{self._state}")(events)
            if len(events) == n_events and (self._state, len(self._held)) == before:
                return _joined(events)

    def flush(self) -> list[ToolCallEvent]:
        """Ends the answer: text that was held back and did not become a call."""
        held, self._held = self._held, ""
        if self._state == "head":
            held = OPENER + held
        elif self._state != "text" or (self._after_call and held.isspace()):
            held = ""
        self._state = "text"
        return [TextDelta(held)] if held else []

    def _in_text(self, events: list[ToolCallEvent]) -> None:
        start = self._held.find(OPENER)
        end = start if start >= 0 else len(self._held) - _overlap(self._held)
        text = self._held[:end]
        # White space behind a call belongs to the text only if there is some.
        if self._after_call and not text.strip():
            if start < 0:
                return
            text = ""
        if text:
            events.append(TextDelta(text))
            self._after_call = False
        self._held = self._held[end:]
        if start >= 0:
            self._held = self._held[len(OPENER) :]
            self._state = "head"

    def _in_head(self, events: list[ToolCallEvent]) -> None:
        head = _HEAD.match(self._held)
        if head is not None:
            events.append(ToolCallStart(self._index, f"call_{secrets.token_hex(12)}", head[1]))
            self._held = self._held[head.end() :]
            self._state, self._depth = "arguments", 0
        elif len(self._held) > _MAX_HEAD or not _may_become_head(self._held):
            # Nothing that can be called: it was only text.
            events.append(TextDelta(OPENER))
            self._after_call = False
            self._state = "text"

    def _in_arguments(self, events: list[ToolCallEvent]) -> None:
        for position, character in enumerate(self._held):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    events.append(ToolCallArgumentsDelta(self._index, self._held[: position + 1]))
                    self._held = self._held[position + 1 :]
                    self._state = "tail"
                    return
        if self._held:
            events.append(ToolCallArgumentsDelta(self._index, self._held))
            self._held = ""

    def _in_tail(self, events: list[ToolCallEvent]) -> None:
        tail = _TAIL.match(self._held)
        if tail is not None:
            events.append(ToolCallEnd(self._index))
            self._index += 1
            self._after_call = True
            self._held = self._held[tail.end() :]
            self._state = "text"


def _overlap(text: str) -> int:
    """The length of the end of `text` that may be the beginning of OPENER."""
    for length in range(min(len(text), len(OPENER) - 1), 0, -1):
        if OPENER.startswith(text[-length:]):
            return length
    return 0


_HEAD_PARTS = re.compile(r'"[^"\\]*"?|[{:,]|\s+|.', re.DOTALL)


def _may_become_head(text: str) -> bool:
    """Whether more text can make a call's head of this."""
    expected = ["{", '"name"', ":", None, ",", '"arguments"', ":", "{"]
    parts = [part for part in _HEAD_PARTS.findall(text) if not part.isspace()]
    for i, (part, wanted) in enumerate(zip(parts, expected, strict=False)):
        is_last = i == len(parts) - 1
        if wanted is None:
            if not part.startswith('"') or ((len(part) < 2 or not part.endswith('"')) and not is_last):
                return False
        elif part != wanted and not (is_last and wanted.startswith(part)):
            return False
    return len(parts) <= len(expected)


def _joined(events: list[ToolCallEvent]) -> list[ToolCallEvent]:
    """The events with neighbouring texts put together."""
    result: list[ToolCallEvent] = []
    for event in events:
        if isinstance(event, TextDelta) and result and isinstance(result[-1], TextDelta):
            result[-1] = TextDelta(result[-1].text + event.text)
        else:
            result.append(event)
    return result
