"""Streaming shows whole characters only, and exactly what decoding everything at once shows."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
from vocabularies import SAMPLES, Trained

from bitnet.errors import ValidationError
from bitnet.text.incremental import IncrementalDecoder, StopMatcher
from bitnet.text.tokenizer import Tokenizer

HARD = ["👩‍👩‍👧‍👦", "狐は", "e\u0301\u0302", "🇫🇷", "𝒳", "नमस्ते", "❤️", "\U0010ffff", "aé狐😀"]


def stream(tokenizer: Tokenizer, ids: list[int], skip_special: bool = True) -> list[str]:
    decoder = IncrementalDecoder(tokenizer, skip_special=skip_special)
    return [*(decoder.feed(token_id) for token_id in ids), decoder.flush()]


@pytest.fixture(params=["llama3", "spm"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.from_metadata(request.getfixturevalue(request.param).metadata)


def byte_ids(tokenizer: Tokenizer) -> dict[int, int]:
    """The token of each single byte."""
    ids = {}
    for token_id in range(tokenizer.vocab_size):
        piece = tokenizer.token_bytes(token_id)
        if len(piece) == 1 and token_id not in tokenizer.special_ids:
            ids[piece[0]] = token_id
    assert len(ids) == 256
    return ids


@pytest.mark.parametrize("text", [*HARD, *SAMPLES])
def test_deltas_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", HARD)
def test_a_character_cut_anywhere_comes_whole(tokenizer: Tokenizer, text: str) -> None:
    of_byte = byte_ids(tokenizer)
    deltas = stream(tokenizer, [of_byte[byte] for byte in text.encode()])
    assert [delta for delta in deltas if delta] == list(text)
    assert "\ufffd" not in "".join(deltas)


def test_every_sequence_of_bytes_streams_to_what_it_decodes_to(tokenizer: Tokenizer) -> None:
    of_byte = byte_ids(tokenizer)
    random_source = random.Random(5)
    pools = [
        range(256),
        [0x20, 0x41, 0x80, 0xBF, 0xC3, 0xE2, 0x82, 0xAC, 0xED, 0xA0, 0xF0, 0x9F, 0x98, 0xF4, 0x90],
    ]
    for round_ in range(2000):
        raw = bytes(random_source.choices(pools[round_ % 2], k=random_source.randrange(12)))
        ids = [of_byte[byte] for byte in raw]
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)
        shown = raw[1:] if tokenizer.space_prefix and raw[:1] == b" " else raw
        assert tokenizer.decode(ids) == shown.decode("utf-8", "replace")


def test_random_ids(tokenizer: Tokenizer) -> None:
    random_source = random.Random(6)
    for round_ in range(500):
        ids = random_source.choices(range(tokenizer.vocab_size), k=random_source.randrange(20))
        skip = round_ % 2 == 0
        assert "".join(stream(tokenizer, ids, skip)) == tokenizer.decode(ids, skip_special=skip)


def test_invalid_bytes_show_as_soon_as_they_cannot_become_a_character(tokenizer: Tokenizer) -> None:
    of_byte = byte_ids(tokenizer)
    decoder = IncrementalDecoder(tokenizer)
    assert decoder.feed(of_byte[0xE2]) == ""
    assert decoder.feed(of_byte[0x41]) == "\ufffdA"
    assert decoder.feed(of_byte[0xFF]) == "\ufffd"
    assert decoder.feed(of_byte[0xF0]) == ""
    assert decoder.feed(of_byte[0x9F]) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


def test_special_tokens_do_not_break_a_character(tokenizer: Tokenizer) -> None:
    of_byte = byte_ids(tokenizer)
    assert tokenizer.eos_id is not None
    ids = [of_byte[0xC3], tokenizer.eos_id, of_byte[0xA9]]
    assert stream(tokenizer, ids) == ["", "", "é", ""]


def test_a_continuation_keeps_its_leading_space(spm: Trained) -> None:
    tokenizer = Tokenizer.from_metadata(spm.metadata)
    ids = tokenizer.encode("fox jumps", add_special=False)
    assert "".join(stream(tokenizer, ids)) == "fox jumps"
    decoder = IncrementalDecoder(tokenizer, continuation=True)
    assert "".join(decoder.feed(token_id) for token_id in ids) == " fox jumps"


def test_an_unknown_id_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValidationError):
        IncrementalDecoder(tokenizer).feed(tokenizer.vocab_size)


# Stop strings.


def first_to_complete(stops: list[str], text: str) -> tuple[str, str | None]:
    """The definition: the stop string that ends first, the longest of those."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_stop_matcher_against_the_definition() -> None:
    random_source = random.Random(7)
    for _ in range(3000):
        letters = "ab" if random_source.random() < 0.5 else "abc"
        stops = [
            "".join(random_source.choices(letters, k=random_source.randrange(1, 6)))
            for _ in range(random_source.randrange(4))
        ]
        text = "".join(random_source.choices(letters, k=random_source.randrange(25)))
        cuts = sorted(random_source.choices(range(len(text) + 1), k=random_source.randrange(6)))
        matcher = StopMatcher(stops)
        released = ""
        for start, end in pairwise([0, *cuts, len(text)]):
            released += matcher.feed(text[start:end])
            seen = text[:end]
            before, matched = first_to_complete(stops, seen)
            assert matcher.matched == matched
            if matched is None:
                # Held back is exactly what could still become a stop string.
                open_ = max(
                    (n for stop in stops for n in range(1, len(stop)) if seen.endswith(stop[:n])), default=0
                )
                assert released == seen[: len(seen) - open_]
            else:
                assert released == before
        assert released + matcher.flush() == first_to_complete(stops, text)[0]


def test_stop_matcher_examples() -> None:
    matcher = StopMatcher(["</s>", "\n\nUser:"])
    assert matcher.feed("Hello <") == "Hello "
    assert matcher.feed("b>\n") == "<b>"
    assert matcher.feed("\nUse") == ""
    assert matcher.feed(" it\n\nUser: more") == "\n\nUse it"
    assert matcher.matched == "\n\nUser:"
    assert matcher.feed("anything") == ""
    assert matcher.flush() == ""


def test_without_stop_strings_everything_passes() -> None:
    matcher = StopMatcher([])
    assert matcher.feed("abc") == "abc"
    assert matcher.flush() == ""
    assert matcher.matched is None


def test_an_unfinished_stop_string_comes_out_at_the_end() -> None:
    matcher = StopMatcher(["STOP"])
    assert matcher.feed("a ST") == "a "
    assert matcher.flush() == "ST"
    assert matcher.matched is None


def test_empty_stop_strings_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])


def test_time_is_linear() -> None:
    matcher = StopMatcher(["a" * 1000 + "b", "a" * 999 + "c"])
    start = time.thread_time()
    for _ in range(2000):
        matcher.feed("a" * 50)
    assert time.thread_time() - start < 2
    assert matcher.matched is None
