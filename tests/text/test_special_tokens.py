"""Special tokens: never made from plain text, found where asked for, and known as ends of an answer."""

from __future__ import annotations

import random
from typing import Any

import pytest
from vocabularies import SAMPLES, Trained

from bitnet.errors import ValidationError
from bitnet.text.special_tokens import SpecialTokenFinder
from bitnet.text.tokenizer import Tokenizer


def extended(trained: Trained, tokens: list[str], types: list[int], **changes: Any) -> dict[str, Any]:
    return trained.with_changes(
        tokens=trained.metadata["tokenizer.ggml.tokens"] + tokens,
        token_type=trained.metadata["tokenizer.ggml.token_type"] + types,
        **changes,
    )


def test_plain_text_never_gives_special_tokens(llama3: Trained, spm: Trained) -> None:
    for trained in (llama3, spm):
        tokenizer = Tokenizer.from_metadata(trained.metadata)
        names = [tokenizer.token_text(i) for i in tokenizer.special_ids]
        for text in [*SAMPLES, *names, "".join(names), " ".join(names)]:
            ids = tokenizer.encode(text, add_special=False)
            assert not tokenizer.special_ids.intersection(ids)
            assert tokenizer.decode(ids) == text


def test_parse_special_finds_them_as_the_reference_does(llama3: Trained) -> None:
    tokenizer = Tokenizer.from_metadata(llama3.metadata)
    text = "<|start_header_id|>user<|end_header_id|>\n\nHi <|eot_id<|eot_id|>|><|eot_id|>"
    llama3.reference.encode_special_tokens = False
    expected = llama3.reference.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text, add_special=False, parse_special=True) == expected
    assert tokenizer.decode(expected, skip_special=False) == text
    assert tokenizer.decode(expected) == "user\n\nHi <|eot_id|>"


def test_bos_and_eos_are_added_as_the_file_says(llama3: Trained, qwen2: Trained) -> None:
    bos, eos = (llama3.metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos"))
    assert Tokenizer.from_metadata(llama3.metadata).encode("")[:2] == [bos]
    assert Tokenizer.from_metadata(llama3.with_changes(add_bos_token=False)).encode("") == []
    assert Tokenizer.from_metadata(llama3.with_changes(add_eos_token=True)).encode("") == [bos, eos]
    assert Tokenizer.from_metadata(llama3.with_changes(bos_token_id=None)).encode("") == []
    # bitnet-embedding-0.6b: no BOS, and the end of text as the pooled last token
    embedding = Tokenizer.from_metadata(qwen2.with_changes(add_eos_token=True))
    assert embedding.encode("fox")[-1] == embedding.eos_id
    assert embedding.encode("fox", add_special=False) == embedding.encode("fox")[:-1]


def test_falcon3_adds_no_bos_unless_told_to(falcon3: Trained) -> None:
    assert not Tokenizer.from_metadata(falcon3.metadata).add_bos
    assert Tokenizer.from_metadata(falcon3.with_changes(add_bos_token=True)).add_bos


def test_end_ids(llama3: Trained) -> None:
    tokens = ["<|im_end|>", "<|eom_id|>", "</s>", "<|end|>", "[EOS]"]
    first = len(llama3.metadata["tokenizer.ggml.tokens"])
    tokenizer = Tokenizer.from_metadata(extended(llama3, tokens, [3, 4, 3, 1, 4]))
    names = {tokenizer.token_text(i) for i in tokenizer.end_ids}
    # of a shape that cannot be text whatever their type; </s> because it is a control token; [EOS] is not one
    assert names == {"<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<|eom_id|>", "</s>", "<|end|>"}
    assert tokenizer.end_ids <= tokenizer.special_ids
    assert first + 4 not in tokenizer.special_ids


def test_a_tag_that_looks_like_an_end_is_text_unless_it_is_a_control_token(llama3: Trained) -> None:
    """Gemma's vocabulary has </s>, the HTML tag, as a user-defined token."""
    first = len(llama3.metadata["tokenizer.ggml.tokens"])
    tokenizer = Tokenizer.from_metadata(extended(llama3, ["</s>"], [4]))
    assert first not in tokenizer.end_ids
    assert tokenizer.encode("</s>", add_special=False) == [first]
    assert tokenizer.decode([first]) == "</s>"


def test_a_named_eot_needs_no_repair(llama3: Trained) -> None:
    eot = llama3.metadata["tokenizer.ggml.tokens"].index("<|eot_id|>")
    with_eot = Tokenizer.from_metadata(llama3.with_changes(eot_token_id=eot))
    without = Tokenizer.from_metadata(llama3.metadata)
    assert with_eot.end_ids == without.end_ids
    assert with_eot.repairs == []
    assert [repair for repair in without.repairs if "<|eot_id|>" in repair] == without.repairs != []


def test_padding_tokens_are_never_found_nor_shown(llama3: Trained) -> None:
    first = len(llama3.metadata["tokenizer.ggml.tokens"])
    names = [f"[PAD{first}]", f"[PAD{first + 1}]", "unused"]
    tokenizer = Tokenizer.from_metadata(extended(llama3, names, [4, 5, 5]))
    for parse_special in (False, True):
        ids = tokenizer.encode(" ".join(names), add_special=False, parse_special=parse_special)
        assert not {first, first + 1, first + 2}.intersection(ids)
        assert tokenizer.decode(ids) == " ".join(names)
    assert tokenizer.decode([first, first + 1, first + 2]) == ""


def test_user_defined_tokens_are_text(llama3: Trained) -> None:
    first = len(llama3.metadata["tokenizer.ggml.tokens"])
    tokenizer = Tokenizer.from_metadata(extended(llama3, ["<tool_call>", "<tool", "  "], [4, 4, 4]))
    ids = tokenizer.encode("a<tool_call>b<tool c  d", add_special=False)
    assert [i for i in ids if i >= first] == [first, first + 1, first + 2]  # the longest where several begin
    assert tokenizer.decode(ids) == "a<tool_call>b<tool c  d"


def test_user_defined_tokens_that_look_like_controls_are_not_found_in_text(llama3: Trained) -> None:
    first = len(llama3.metadata["tokenizer.ggml.tokens"])
    tokenizer = Tokenizer.from_metadata(extended(llama3, ["<|user|>"], [4]))
    assert first not in tokenizer.encode("<|user|>")
    assert first in tokenizer.encode("<|user|>", parse_special=True)


def test_a_file_without_types_goes_by_shape(llama3: Trained) -> None:
    typed = Tokenizer.from_metadata(llama3.metadata)
    untyped = Tokenizer.from_metadata(llama3.with_changes(token_type=None))
    assert untyped.special_ids == typed.special_ids
    assert untyped.encode("<|eot_id|>") == typed.encode("<|eot_id|>")


def test_a_normal_token_named_as_padding_stays_visible(llama3: Trained) -> None:
    """Converters write padding_token_id 0 where there is none; 0 is "!" in Llama 3."""
    tokenizer = Tokenizer.from_metadata(llama3.with_changes(padding_token_id=0))
    assert 0 not in tokenizer.special_ids
    assert tokenizer.decode(tokenizer.encode("!")) == "!"


def test_merges_cannot_make_a_control_token(llama3: Trained) -> None:
    tokens = llama3.metadata["tokenizer.ggml.tokens"]
    types = list(llama3.metadata["tokenizer.ggml.token_type"])
    plain = Tokenizer.from_metadata(llama3.metadata)
    made = tokens.index(llama3.metadata["tokenizer.ggml.merges"][40].replace(" ", ""))
    text = plain.decode([made])
    assert plain.encode(text, add_special=False) == [made]
    types[made] = 3
    tokenizer = Tokenizer.from_metadata(llama3.with_changes(token_type=types))
    assert made not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff ok", "a" * 100 + "\udc80"])
def test_lone_surrogates_are_an_error_that_says_where(llama3: Trained, spm: Trained, text: str) -> None:
    for trained in (llama3, spm):
        tokenizer = Tokenizer.from_metadata(trained.metadata)
        with pytest.raises(ValueError, match="lone surrogate U\\+D") as caught:
            tokenizer.encode(text)
        assert isinstance(caught.value, ValidationError)


def test_ids_that_do_not_exist(llama3: Trained) -> None:
    tokenizer = Tokenizer.from_metadata(llama3.metadata)
    for bad in (-1, tokenizer.vocab_size, 2**40):
        with pytest.raises(ValidationError, match=str(bad)):
            tokenizer.decode([bad])
        with pytest.raises(ValidationError, match=str(bad)):
            tokenizer.token_bytes(bad)
        with pytest.raises(ValidationError, match=str(bad)):
            tokenizer.token_text(bad)


def test_the_finder_against_a_plain_search() -> None:
    random_source = random.Random(4)
    for _ in range(300):
        names = {"".join(random_source.choices("ab|", k=random_source.randrange(1, 5))) for _ in range(4)}
        ids = {name: i for i, name in enumerate(sorted(names))}
        text = "".join(random_source.choices("ab|", k=20))
        expected: list[str | int] = []
        plain = ""
        at = 0
        while at < len(text):
            longest = max((name for name in names if text.startswith(name, at)), key=len, default="")
            if longest:
                expected += [plain] if plain else []
                expected.append(ids[longest])
                plain = ""
            else:
                plain += text[at]
            at += len(longest) or 1
        assert SpecialTokenFinder(ids).split(text) == expected + ([plain] if plain else [])
    assert SpecialTokenFinder({}).split("text") == ["text"]
    assert SpecialTokenFinder({}).split("") == []
