"""Byte-level BPE gives the ids of the reference tokenizers, on text they were not trained on."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
import regex
from vocabularies import CORPUS, GPT2, LLAMA3, QWEN2, SAMPLES, Trained

from bitnet.errors import ModelFileError, ValidationError
from bitnet.text.tokenizer import Tokenizer

FAMILIES = ["llama3", "falcon3", "qwen2", "gpt2"]


@pytest.fixture(params=FAMILIES)
def trained(request: pytest.FixtureRequest) -> Trained:
    result: Trained = request.getfixturevalue(request.param)
    return result


def reference_ids(trained: Trained, text: str) -> list[int]:
    # encode_special_tokens: the names of special tokens are text, as in ours.
    trained.reference.encode_special_tokens = True
    ids: list[int] = trained.reference.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("text", [*SAMPLES, "\n".join(CORPUS)])
def test_ids_equal_the_reference(trained: Trained, text: str) -> None:
    tokenizer = Tokenizer.from_metadata(trained.metadata)
    assert tokenizer.encode(text, add_special=False) == reference_ids(trained, text)


def test_ids_equal_the_reference_on_random_text(trained: Trained) -> None:
    tokenizer = Tokenizer.from_metadata(trained.metadata)
    random_source = random.Random(1)
    alphabet = "".join(CORPUS) + "  \n\n\t'’0123456789٣\u0301\u200d\U0001f468"
    for _ in range(300):
        text = "".join(random_source.choices(alphabet, k=random_source.randrange(40)))
        assert tokenizer.encode(text, add_special=False) == reference_ids(trained, text), text


def slow_bpe(trained: Trained, pattern: str, text: str) -> list[int]:
    """BPE as in the paper: of all adjacent pairs, merge the one learned first, until none is known."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokens = trained.metadata["tokenizer.ggml.tokens"]
    ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(trained.metadata["tokenizer.ggml.merges"])}
    ids = []
    for word in regex.findall(pattern, text):
        pieces = [alphabet[byte] for byte in word.encode()]
        while len(pieces) > 1:
            pairs = list(pairwise(pieces))
            best = min(pairs, key=lambda pair: ranks.get(pair, 10**9))
            if best not in ranks:
                break
            at = pairs.index(best)
            pieces[at : at + 2] = ["".join(best)]
        ids += [tokens.index(piece) for piece in pieces]
    return ids


@pytest.mark.parametrize(("family", "pattern"), [("llama3", LLAMA3), ("qwen2", QWEN2), ("gpt2", GPT2)])
def test_ids_equal_a_bpe_written_independently(
    family: str, pattern: str, request: pytest.FixtureRequest
) -> None:
    trained: Trained = request.getfixturevalue(family)
    tokenizer = Tokenizer.from_metadata(trained.metadata)
    for text in ["It's 12345 bananas, Größe 狐 👩‍👧!\r\n\r\n  def f(x):\n\treturn x  ", "  a\n b ' S"]:
        assert tokenizer.encode(text, add_special=False) == slow_bpe(trained, pattern, text)


def test_a_whole_token_is_taken_unmerged_only_where_the_splitter_says_so(llama3: Trained) -> None:
    whole = llama3.metadata["tokenizer.ggml.tokens"].index("Ġbananananas")
    assert Tokenizer.from_metadata(llama3.metadata).encode(" bananananas", add_special=False) == [whole]
    merged = Tokenizer.from_metadata(llama3.with_changes(pre="gpt-2")).encode(
        " bananananas", add_special=False
    )
    assert whole not in merged
    assert len(merged) > 1


def test_decoding_gives_back_every_text(trained: Trained) -> None:
    tokenizer = Tokenizer.from_metadata(trained.metadata)
    for text in SAMPLES:
        expected = text
        if trained.metadata["tokenizer.ggml.pre"] == "qwen2":
            import unicodedata

            expected = unicodedata.normalize("NFC", text)  # part of that tokenizer
        assert tokenizer.decode(tokenizer.encode(text)) == expected


def test_token_bytes_are_the_bytes_and_join_to_the_text(llama3: Trained) -> None:
    tokenizer = Tokenizer.from_metadata(llama3.metadata)
    text = "Größe 狐 👩‍👧\x00\xff"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text, add_special=False))) == text.encode()
    tokens = llama3.metadata["tokenizer.ggml.tokens"]
    assert tokenizer.token_bytes(tokens.index("Ġ")) == b" "
    assert tokenizer.token_bytes(tokens.index("Ċ")) == b"\n"
    assert tokenizer.token_bytes(tokens.index("ÿ")) == b"\xff"
    assert tokenizer.token_bytes(tokens.index("<|eot_id|>")) == b"<|eot_id|>"


@pytest.mark.parametrize(
    ("pre", "name"),
    [("llama3", "llama-bpe"), ("falcon_e", "falcon3"), ("gpt2", "gpt-2"), ("default", "gpt-2")],
)
def test_names_of_one_splitter(llama3: Trained, pre: str, name: str) -> None:
    text = "'S 1234567  \n\n x\n"
    one, other = (Tokenizer.from_metadata(llama3.with_changes(pre=p)) for p in (pre, name))
    assert one.encode(text) == other.encode(text)


def test_an_unknown_splitter_is_refused_by_name(llama3: Trained) -> None:
    with pytest.raises(ModelFileError, match="'poro-chat'"):
        Tokenizer.from_metadata(llama3.with_changes(pre="poro-chat"))


def test_a_missing_splitter_is_found_by_the_vocabulary(trained: Trained) -> None:
    repaired = Tokenizer.from_metadata(trained.with_changes(pre=None))
    given = Tokenizer.from_metadata(trained.metadata)
    for text in SAMPLES:
        assert repaired.encode(text, add_special=False) == given.encode(text, add_special=False)
    (repair,) = [one for one in repaired.repairs if "pre-tokenizer" in one]
    assert "metadata override: tokenizer.ggml.pre" in repair


@pytest.mark.parametrize(
    ("size", "tokens", "expected"),
    [
        (128256, [], "llama-bpe is used, because the vocabulary has 128256 tokens"),
        (131072, ["<|endoftext|>"], "falcon3 is used, because the vocabulary has 131072 tokens"),
        (300, ["<|begin_of_text|>", "<|end_of_text|>"], "llama-bpe is used, because the vocabulary has the"),
        (300, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "qwen2 is used"),
        (300, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "12"], "llama-bpe is used, because its tokens"),
        (300, ["123"], "llama-bpe is used, because its tokens hold 3 digits at most"),
        (300, ["1234"], "gpt-2 is used, because its tokens hold whole numbers"),
        (300, ["\u01201"], "gpt-2 is used, because its tokens hold whole numbers"),
        (300, [], "gpt-2 is used, because nothing in the vocabulary tells it"),
    ],
)
def test_what_tells_a_splitter(size: int, tokens: list[str], expected: str, gpt2: Trained) -> None:
    alphabet = [token for token in gpt2.metadata["tokenizer.ggml.tokens"] if len(token) == 1]
    filled = [*alphabet, *tokens]
    filled += [f"<|filler_{i}|>" for i in range(size - len(filled))]
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": filled, "tokenizer.ggml.merges": []}
    assert expected in Tokenizer.from_metadata(metadata).repairs[0]


def test_the_official_2b_file_is_repaired(official_2b: dict[str, Any], llama3: Trained) -> None:
    tokenizer = Tokenizer.from_metadata(official_2b)
    text = "It's 1234567 tokens  \n\n"
    expected = [llama3.metadata["tokenizer.ggml.tokens"][i] for i in reference_ids(llama3, text)]
    ids = tokenizer.encode(text)
    assert ids[0] == 128000
    assert [tokenizer.token_text(i) for i in ids[1:]] == expected
    assert tokenizer.end_ids == {128001, 128009}
    assert len(tokenizer.repairs) == 2
    assert "llama-bpe" in tokenizer.repairs[0]
    assert "<|eot_id|> (128009)" in tokenizer.repairs[1]


def test_merges_must_be_of_tokens(llama3: Trained) -> None:
    merges = llama3.metadata["tokenizer.ggml.merges"]
    for bad in ("Ġt zzz", "nospace", "a ", " a"):
        with pytest.raises(ModelFileError, match="merge 0"):
            Tokenizer.from_metadata(llama3.with_changes(merges=[bad, *merges]))
    with pytest.raises(ModelFileError, match="without merges"):
        Tokenizer.from_metadata(llama3.with_changes(merges=None))


def test_a_byte_without_a_token_is_an_error_and_not_dropped(llama3: Trained) -> None:
    tokens = ["lost" if token == "z" else token for token in llama3.metadata["tokenizer.ggml.tokens"]]
    merges = [merge for merge in llama3.metadata["tokenizer.ggml.merges"] if "z" not in merge]
    tokenizer = Tokenizer.from_metadata(llama3.with_changes(tokens=tokens, merges=merges))
    assert tokenizer.decode(tokenizer.encode("fox")) == "fox"
    with pytest.raises(ValidationError, match="0x7A"):
        tokenizer.encode("lazy")


@pytest.mark.parametrize("unit", ["a", " ", "\n", "中", "!", "'s", "\u0301"])
def test_long_text_is_no_problem(llama3: Trained, unit: str) -> None:
    tokenizer = Tokenizer.from_metadata(llama3.metadata)
    text = unit * 100_000
    assert tokenizer.decode(tokenizer.encode(text)) == text
