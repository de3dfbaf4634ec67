"""Server-sent events: bytes in, events out (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Knows nothing of what the events say.
"""

from __future__ import annotations

from typing import NamedTuple

from bitnet.errors import ServerError

# A token with twenty alternatives takes a few kilobytes; a whole answer in one event, some megabytes.
MAX_EVENT_BYTES = 16 * 2**20


class Event(NamedTuple):
    """name: "" unless the server gave one. Older llama-servers write `error: {...}` instead of `data:`; that
    becomes an event of the name "error"."""

    name: str
    data: str


class EventParser:
    """Takes a stream apart, wherever it was cut into pieces. Raises ServerError for what never ends."""

    def __init__(self) -> None:
        self._line: list[bytes] = []  # pieces of the line that has begun
        self._n_bytes = 0  # of that line, and of the event that has begun
        self._after_cr = False  # a line feed that comes now belongs to the line that has ended
        self._at_start = True
        self._name = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        """The events that are complete now."""
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._n_bytes += len(data)
        events: list[Event] = []
        *whole, rest = data.split(b"\n")
        for end in whole:
            self._line.append(end)
            line = b"".join(self._line)
            self._line.clear()
            self._take(line, events)
        if rest:
            self._line.append(rest)
        if whole:
            self._n_bytes = len(rest) + sum(map(len, self._data))
        if self._n_bytes > MAX_EVENT_BYTES:
            raise ServerError(f"the server sent an event of more than {MAX_EVENT_BYTES >> 20} MiB")
        return events

    def close(self) -> list[Event]:
        """The event that the end of the stream completes: not all servers write the empty line behind it."""
        events: list[Event] = []
        if self._line:
            self._take(b"".join(self._line), events)
            self._line.clear()
        self._take(b"", events)
        return events

    def _take(self, line: bytes, events: list[Event]) -> None:
        if self._at_start:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._at_start = False
        if not line:
            if self._data:
                events.append(Event(self._name, "\n".join(self._data)))
            self._name, self._data = "", []
            return
        field, _, value = line.partition(b":")  # a comment has nothing before the colon
        text = value.removeprefix(b" ").decode(errors="replace")
        if field == b"data":
            self._data.append(text)
        elif field == b"event":
            self._name = text
        elif field == b"error":
            self._name = "error"
            self._data.append(text)
