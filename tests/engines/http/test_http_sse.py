"""Server-sent events, cut into pieces anywhere."""

from __future__ import annotations

import pytest

from bitnet.engines.http.sse import MAX_EVENT_BYTES, Event, EventParser
from bitnet.errors import ServerError

STREAM = (
    "\ufeff: a comment\n\n"
    'data: {"text":"wörld 🙂"}\r\n\r\n'
    "event: ping\ndata\n\n"
    "data:first\ndata: second\rid: 7\rretry: 10\r\r"
    "unknown: x\ndata:  two spaces\n\n"
    "\n\n"
    'error: {"message":"no"}\n\n'
    "data: [DONE]"
).encode()
EVENTS = [
    Event("", '{"text":"wörld 🙂"}'),
    Event("ping", ""),
    Event("", "first\nsecond"),
    Event("", " two spaces"),
    Event("error", '{"message":"no"}'),
    Event("", "[DONE]"),
]


def parse(*pieces: bytes) -> list[Event]:
    parser = EventParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.close()


def test_whole() -> None:
    assert parse(STREAM) == EVENTS


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_in_pieces(size: int) -> None:
    assert parse(*(STREAM[at : at + size] for at in range(0, len(STREAM), size))) == EVENTS


def test_cut_anywhere() -> None:
    for at in range(len(STREAM)):
        assert parse(STREAM[:at], b"", STREAM[at:]) == EVENTS


def test_what_is_no_text_does_not_end_it() -> None:
    assert parse(b"data: a\xff\xc3\n\n") == [Event("", "a\ufffd\ufffd")]


@pytest.mark.parametrize("piece", [b"x" * 2**20, b"data: " + b"x" * 2**20 + b"\n"])
def test_an_event_that_never_ends(piece: bytes) -> None:
    with pytest.raises(ServerError, match="more than 16 MiB"):
        parse(*[piece] * (MAX_EVENT_BYTES // 2**20 + 2))


def test_a_long_stream_is_no_long_event() -> None:
    parser = EventParser()
    event = b"data: " + b"x" * 2**20 + b"\n\n"
    assert sum(len(parser.feed(event)) for _ in range(40)) == 40
