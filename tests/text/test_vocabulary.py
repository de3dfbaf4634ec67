"""Broken tokenizer metadata is refused with a sentence that names the key."""

from __future__ import annotations

import re
from typing import Any

import pytest
from vocabularies import Trained

from bitnet.errors import ModelFileError
from bitnet.text.tokenizer import Tokenizer
from bitnet.text.vocabulary import byte_value, raw_bytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "tokenizer.ggml.model is missing"),
        ({"model": "bert"}, "kind 'bert'"),
        ({"model": 7}, "model must be a string"),
        ({"pre": 7}, "pre must be a string"),
        ({"tokens": None}, "tokens is missing or empty"),
        ({"tokens": []}, "tokens is missing or empty"),
        ({"tokens": "abc"}, "tokens must be an array"),
        ({"tokens": {"a": 1}}, "tokens must be an array"),
        ({"tokens": ["a", 1]}, "tokens holds something that is not a string"),
        ({"merges": [1]}, "merges holds something that is not a string"),
        ({"token_type": [1, 2]}, "token_type has 2 entries for"),
        ({"scores": [0.0]}, "scores has 1 entries for"),
        ({"bos_token_id": -1}, "bos_token_id is -1"),
        ({"eos_token_id": 10**6}, "eos_token_id is 1000000"),
        ({"eos_token_id": 2**32 - 1}, "eos_token_id is 4294967295"),
        ({"eot_token_id": "5"}, "eot_token_id must be a whole number"),
        ({"padding_token_id": True}, "padding_token_id is True"),
        ({"add_bos_token": 1}, "add_bos_token must be true or false"),
        ({"add_bos_token": True, "bos_token_id": None}, "bos_token_id is missing"),
        ({"add_eos_token": True, "eos_token_id": None}, "eos_token_id is missing"),
    ],
)
def test_broken_metadata(llama3: Trained, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=re.escape(message)):
        Tokenizer.from_metadata(llama3.with_changes(**changes))


def test_broken_arrays(llama3: Trained, spm: Trained) -> None:
    tokens = llama3.metadata["tokenizer.ggml.tokens"]
    types = llama3.metadata["tokenizer.ggml.token_type"]
    with pytest.raises(ModelFileError, match="stands twice"):
        Tokenizer.from_metadata(llama3.with_changes(tokens=[tokens[0], *tokens[:-1]]))
    with pytest.raises(ModelFileError, match="token_type holds 9"):
        Tokenizer.from_metadata(llama3.with_changes(token_type=[9, *types[1:]]))
    with pytest.raises(ModelFileError, match="not a whole number"):
        Tokenizer.from_metadata(llama3.with_changes(token_type=["1", *types[1:]]))
    scores = spm.metadata["tokenizer.ggml.scores"]
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ModelFileError, match="not finite"):
            Tokenizer.from_metadata(spm.with_changes(scores=[bad, *scores[1:]]))
    with pytest.raises(ModelFileError, match="not a number"):
        Tokenizer.from_metadata(spm.with_changes(scores=["x", *scores[1:]]))
    with pytest.raises(ModelFileError, match="written <0xHH>"):
        Tokenizer.from_metadata(
            spm.with_changes(token_type=[6, *spm.metadata["tokenizer.ggml.token_type"][1:]])
        )


def test_empty_tokens_are_allowed_and_mean_nothing(llama3: Trained) -> None:
    tokens = llama3.metadata["tokenizer.ggml.tokens"]
    types = llama3.metadata["tokenizer.ggml.token_type"]
    tokenizer = Tokenizer.from_metadata(
        llama3.with_changes(tokens=[*tokens, "", ""], token_type=[*types, 1, 1])
    )
    assert tokenizer.vocab_size == len(tokens) + 2
    assert tokenizer.decode([len(tokens)]) == ""


def test_tokens_with_bytes_that_are_not_utf8(llama3: Trained) -> None:
    """Readers give them as surrogate escapes."""
    tokens = llama3.metadata["tokenizer.ggml.tokens"]
    types = llama3.metadata["tokenizer.ggml.token_type"]
    odd = b"\xff\xfe".decode("utf-8", "surrogateescape")
    tokenizer = Tokenizer.from_metadata(
        llama3.with_changes(tokens=[*tokens, odd, odd + "x"], token_type=[*types, 1, 3])
    )
    assert tokenizer.token_bytes(len(tokens)) == b"\xff\xfe"
    assert tokenizer.decode([len(tokens)]) == "\ufffd\ufffd"
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    with pytest.raises(ModelFileError):
        raw_bytes("\ud800")


def test_byte_tokens() -> None:
    assert byte_value("<0x0A>") == 10
    for bad in ("<0xGG>", "<0x0A", "0x0A", "<0x100>", ""):
        with pytest.raises(ModelFileError):
            byte_value(bad)
