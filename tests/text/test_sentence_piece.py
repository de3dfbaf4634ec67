"""SentencePiece BPE gives the ids of the sentencepiece library, and merges as its algorithm says."""

from __future__ import annotations

import random
import time
from itertools import pairwise
from typing import Any

import pytest
from vocabularies import CORPUS, SAMPLES, Trained

from bitnet.errors import ModelFileError
from bitnet.text.tokenizer import Tokenizer

SPACE = "\u2581"


@pytest.mark.parametrize("text", [*SAMPLES, "\n".join(CORPUS)])
def test_ids_equal_sentencepiece(spm: Trained, text: str) -> None:
    tokenizer = Tokenizer.from_metadata(spm.metadata)
    assert tokenizer.encode(text, add_special=False) == spm.reference.encode(text)


def test_ids_equal_sentencepiece_on_random_text(spm: Trained) -> None:
    tokenizer = Tokenizer.from_metadata(spm.metadata)
    random_source = random.Random(2)
    for _ in range(500):
        alphabet = "".join(CORPUS) + "     \n" if random_source.random() < 0.5 else "ahn b "
        text = "".join(random_source.choices(alphabet, k=random_source.randrange(60)))
        assert tokenizer.encode(text, add_special=False) == spm.reference.encode(text), text


def greedy(scores: dict[str, float], text: str) -> list[str]:
    """The definition: merge the adjacent pair whose concatenation scores best, the leftmost of equals."""
    pieces = list(text)
    while True:
        candidates = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in scores]
        if not candidates:
            return pieces
        _, at = min(candidates)
        pieces[at : at + 2] = ["".join(pieces[at : at + 2])]


def metadata_of(scores: dict[str, float], **changes: Any) -> dict[str, Any]:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    ordinary = list(scores)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *bytes_, *ordinary],
        "tokenizer.ggml.scores": [0.0] * 259 + [scores[token] for token in ordinary],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(ordinary),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def test_merging_follows_the_definition_for_arbitrary_vocabularies() -> None:
    """Vocabularies no trainer would make: pieces that no merge builds, equal scores, words that overlap
    themselves.
    """
    random_source = random.Random(3)
    for _ in range(150):
        letters = "ab" + SPACE
        words = {"".join(random_source.choices(letters, k=random_source.randrange(2, 6))) for _ in range(12)}
        scores = {word: float(-random_source.randrange(6)) for word in sorted(words)}
        scores |= dict.fromkeys(letters, -100.0)
        tokenizer = Tokenizer.from_metadata(metadata_of(scores, add_space_prefix=False))
        for _ in range(10):
            text = "".join(random_source.choices("ab ", k=random_source.randrange(30)))
            ids = tokenizer.encode(text, add_special=False)
            assert [tokenizer.token_text(i) for i in ids] == greedy(scores, text.replace(" ", SPACE)), (
                scores,
                text,
            )


def test_the_leftmost_of_equal_scores_wins() -> None:
    """Ranked pairs, as in the tokenizers library, cannot give both: there one of the two pairs comes first
    always.
    """
    scores = {"ab": -1.0, "ba": -1.0, "aab": -2.0, "a": -9.0, "b": -9.0}
    tokenizer = Tokenizer.from_metadata(metadata_of(scores, add_space_prefix=False))

    def pieces(text: str) -> list[str]:
        return [tokenizer.token_text(i) for i in tokenizer.encode(text, add_special=False)]

    assert pieces("aba") == ["ab", "a"]
    assert pieces("bab") == ["ba", "b"]


def test_the_space_before_a_text_is_added_and_taken_off_again(spm: Trained) -> None:
    tokenizer = Tokenizer.from_metadata(spm.metadata)
    without = Tokenizer.from_metadata(spm.with_changes(add_space_prefix=False))
    for text in SAMPLES:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text
        assert without.decode(without.encode(text)) == text
    assert without.encode(" fox", add_special=False) == tokenizer.encode("fox", add_special=False)


def test_bos_is_added_by_default_and_decode_shows_it_on_request(spm: Trained) -> None:
    tokenizer = Tokenizer.from_metadata(spm.with_changes(add_bos_token=None))
    ids = tokenizer.encode("fox")
    assert ids[0] == 1
    assert tokenizer.decode(ids) == "fox"
    assert tokenizer.decode(ids, skip_special=False) == "<s>fox"


def test_token_bytes(spm: Trained) -> None:
    tokenizer = Tokenizer.from_metadata(spm.metadata)
    assert tokenizer.token_bytes(spm.reference.piece_to_id("<0x0A>")) == b"\n"
    assert tokenizer.token_bytes(spm.reference.piece_to_id(SPACE)) == b" "
    assert tokenizer.token_bytes(2) == b"</s>"


def test_names_of_control_and_byte_tokens_in_text_are_text(spm: Trained) -> None:
    tokenizer = Tokenizer.from_metadata(spm.metadata)
    text = "a</s>b<s><unk><0x41>"
    ids = tokenizer.encode(text, add_special=False)
    assert not {0, 1, 2, spm.reference.piece_to_id("<0x41>")}.intersection(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text, add_special=False, parse_special=True).count(2) == 1


def test_control_names_are_not_made_by_merging_either() -> None:
    """llama.cpp merges to any token in the vocabulary, so that "</" + "s" + ">" can become the end of text
    there.
    """
    scores = {"<": -5.0, "/": -5.0, "s": -5.0, ">": -5.0, "</": -1.0, "</s": -2.0}
    tokenizer = Tokenizer.from_metadata(metadata_of(scores, add_space_prefix=False))
    assert [tokenizer.token_text(i) for i in tokenizer.encode("</s>", add_special=False)] == ["</s", ">"]


def test_user_defined_tokens_of_the_1bitllm_models() -> None:
    """`<pad>` and `</line>` of bitnet_b1_58-large, typed user-defined with a score of -1000."""
    metadata = metadata_of({"a": -2.0, "b": -3.0, SPACE: -1.0, "ab": -4.0, SPACE + "a": -5.0})
    metadata["tokenizer.ggml.tokens"] += ["<pad>", "</line>"]
    metadata["tokenizer.ggml.scores"] += [-1000.0, -1000.0]
    metadata["tokenizer.ggml.token_type"] += [4, 4]
    n_tokens = len(metadata["tokenizer.ggml.tokens"])
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.encode("ab</line>", add_special=False)[-1] == n_tokens - 1
    assert tokenizer.decode(tokenizer.encode("ab</line>")) == "ab</line>"
    padded = Tokenizer.from_metadata({**metadata, "tokenizer.ggml.padding_token_id": n_tokens - 2})
    assert n_tokens - 2 not in padded.encode("<pad>")
    assert padded.end_ids == {2}


def test_files_that_lost_their_scores_are_refused(spm: Trained) -> None:
    n_tokens = len(spm.metadata["tokenizer.ggml.tokens"])
    with pytest.raises(ModelFileError, match="same score"):
        Tokenizer.from_metadata(spm.with_changes(scores=[-1000.0] * n_tokens))
    with pytest.raises(ModelFileError, match="without scores"):
        Tokenizer.from_metadata(spm.with_changes(scores=None))


def test_without_byte_tokens_the_unknown_token_stands_in() -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "a", "b", "ab", "ba"],
        "tokenizer.ggml.scores": [0.0, -3.0, -4.0, -1.0, -2.0],
        "tokenizer.ggml.token_type": [2, 1, 1, 1, 1],
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    assert Tokenizer.from_metadata(metadata).encode("abxa") == [3, 0, 1]
    del metadata["tokenizer.ggml.unknown_token_id"]
    with pytest.raises(ModelFileError, match="unknown token"):
        Tokenizer.from_metadata(metadata)


@pytest.mark.parametrize("unit", ["a", " ", "狐", "ab cd "])
def test_long_text_is_no_problem(spm: Trained, unit: str) -> None:
    tokenizer = Tokenizer.from_metadata(spm.metadata)
    text = unit * (60_000 // len(unit))
    start = time.thread_time()
    ids = tokenizer.encode(text)
    assert time.thread_time() - start < 5
    assert tokenizer.decode(ids) == text
