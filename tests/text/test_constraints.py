"""Response formats as masks: what each kind allows, for every kind of vocabulary, and what is refused."""

from __future__ import annotations

import gc
import json
import random
import re
import time
import weakref
from typing import Any

import pytest
from constrained import accepts, allowed, generate, in_bytes
from vocabularies import Trained

from bitnet.errors import ConstraintError
from bitnet.text.constraints import Constraint, compile_constraint
from bitnet.text.grammar_vocabulary import GrammarVocabulary
from bitnet.text.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
}


@pytest.fixture(scope="module", params=["llama3", "qwen2", "gpt2", "spm"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.from_metadata(request.getfixturevalue(request.param).metadata)


@pytest.fixture(scope="module")
def plain(llama3: Trained) -> Tokenizer:
    return Tokenizer.from_metadata(llama3.metadata)


def compiled(tokenizer: Tokenizer, **response_format: Any) -> Constraint:
    constraint = compile_constraint(response_format, tokenizer)
    assert constraint is not None
    return constraint


@pytest.mark.parametrize(
    ("response_format", "good", "bad"),
    [
        (
            {"type": "json_object"},
            ["{}", '{"a": [1, null]}', '{"é😀":"\\n"}'],
            ["[]", "1", '{"a":  1}', "{\n}"],
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON, "strict": True}},
            ['{"name": "Ada", "age": 36}', '{"name":"","age":0}'],
            ['{"name": "Ada"}', '{"name": "Ada", "age": 151}', '{"name": "Ada", "age": 3, "x": 1}'],
        ),
        ({"type": "json_schema", "schema": {"type": "boolean"}}, ["true"], ["True", "1"]),
        ({"type": "regex", "pattern": r"^\d{3}/[a-z]+$"}, ["123/abc"], ["123/", "12/a", "123/A"]),
        ({"type": "regex", "pattern": r"a\$"}, ["a$"], ["a", "a\\$"]),
        ({"type": "choice", "choices": ["yes", "no", 'é"\n\\']}, ["yes", "no", 'é"\n\\'], ["y", "maybe"]),
        (
            {"type": "grammar", "grammar": '%llguidance {}\nstart: "(" start ")" | N\nN: /[0-9]+/'},
            ["7", "((12))"],
            ["((1)", "()"],
        ),
    ],
    ids=["object", "schema", "bare-schema", "regex", "dollar", "choice", "grammar"],
)  # fmt: skip
def test_formats(tokenizer: Tokenizer, response_format: Any, good: list[str], bad: list[str]) -> None:
    constraint = compiled(tokenizer, **response_format)
    assert [text for text in good if not accepts(constraint, tokenizer, in_bytes(tokenizer, text))] == []
    assert [text for text in bad if accepts(constraint, tokenizer, in_bytes(tokenizer, text))] == []


def test_random_tokens_make_what_was_asked_for(tokenizer: Tokenizer) -> None:
    person = compiled(tokenizer, type="json_schema", schema=PERSON)
    word = compiled(tokenizer, type="regex", pattern="(foo|bar)+[0-9]{2}")
    rng = random.Random(1)
    for _ in range(10):
        value = json.loads(generate(person, tokenizer, 90, rng).text)
        assert isinstance(value["name"], str)
        assert 0 <= value["age"] <= 150
        assert re.fullmatch("(foo|bar)+[0-9]{2}", generate(word, tokenizer, 40, rng).text)


def test_masks_are_exact(tokenizer: Tokenizer) -> None:
    """Every token whose bytes fit is allowed, also where several have the same, and no other."""
    constraint = compiled(tokenizer, type="regex", pattern="(?s:[a-f]|é|\\x00| +)*")
    expected = {
        token_id
        for token_id in range(tokenizer.vocab_size)
        if token_id not in tokenizer.special_ids
        # Tokens may begin or end within the character é (C3 A9).
        and re.fullmatch(rb"(?:[a-f]|\xc3\xa9|\x00| +)*(?:\xc3)?", tokenizer.token_bytes(token_id))
    }
    assert set(allowed(constraint.start().mask())) == expected | tokenizer.end_ids


def test_control_tokens_end_or_do_not_occur(plain: Tokenizer) -> None:
    state = compiled(plain, type="regex", pattern="(?s:.)*").start()
    assert set(allowed(state.mask())) & plain.special_ids == plain.end_ids
    assert len(plain.end_ids) == 2


@pytest.mark.parametrize("seed", range(5))
def test_text_that_must_follow_has_its_usual_tokens(tokenizer: Tokenizer, seed: int) -> None:
    """However a model begins it. Texts of SentencePiece begin with a space, and are left as they are."""
    const = {"a key of some length": ["two words", 12345, True], "other": None}
    constraint = compiled(tokenizer, type="json_schema", schema={"const": const})
    output = generate(constraint, tokenizer, None, random.Random(seed))
    assert json.loads(output.text) == const
    if not tokenizer.space_prefix:
        assert tokenizer.encode(output.text, add_special=False) == output.token_ids


def test_a_token_that_can_go_on_in_one_way_only_stands_for_the_usual_one(plain: Tokenizer) -> None:
    state = compiled(plain, type="regex", pattern="(self|a) [a-z]*").start()
    s, word, a = (plain.encode(text, add_special=False)[0] for text in ("s", "self", "a"))
    assert plain.token_bytes(word) == b"self"
    assert {s, word, a} <= set(allowed(state.mask()))
    assert not state.accept(s)
    assert allowed(state.mask()) == [word]
    assert state.accept(word)
    assert plain.encode(" ", add_special=False)[0] in allowed(state.mask())


def test_the_end_of_a_word_is_left_open(plain: Tokenizer) -> None:
    """What is usual for the common beginning of two names need not be for either."""
    constraint = compiled(plain, type="choice", choices=["get_there", "get_theory"])
    for text in ("get_there", "get_theory"):
        assert accepts(constraint, plain, in_bytes(plain, text))
        assert accepts(constraint, plain, plain.encode(text, add_special=False))


def test_end_of_output(plain: Tokenizer) -> None:
    constraint = compiled(plain, type="choice", choices=["a", "ab"])
    state = constraint.start()
    assert not state.is_accepting
    assert plain.end_ids.isdisjoint(allowed(state.mask()))
    a, b = (plain.encode(text, add_special=False)[0] for text in "ab")
    assert state.accept(a)
    assert (state.is_accepting, state.is_finished) == (True, False)
    assert set(allowed(state.mask())) == {b, *plain.end_ids}
    other = constraint.start()
    assert state.accept(b)
    assert (state.is_accepting, state.is_finished) == (True, True)
    assert set(allowed(state.mask())) == plain.end_ids
    assert other.accept(a)
    assert other.accept(min(plain.end_ids))
    assert (other.is_accepting, other.is_finished) == (True, True)
    with pytest.raises(ConstraintError, match="not allowed"):
        constraint.start().accept(b)


def test_vocabulary_without_end_token(llama3: Trained) -> None:
    renamed = {"<|eot_id|>": "<|other|>", "<|end_of_text|>": "<|another|>"}
    tokens = [renamed.get(token, token) for token in llama3.metadata["tokenizer.ggml.tokens"]]
    tokenizer = Tokenizer.from_metadata(llama3.with_changes(eos_token_id=None, tokens=tokens))
    assert not tokenizer.end_ids
    constraint = compiled(tokenizer, type="json_schema", schema=PERSON)
    mask = constraint.start().mask()
    assert mask.shape == ((tokenizer.vocab_size + 31) // 32,)
    assert max(allowed(mask)) < tokenizer.vocab_size
    output = generate(constraint, tokenizer, 60, random.Random(2))
    assert output.state.is_finished
    assert set(json.loads(output.text)) == {"name", "age"}


def test_vocabulary_that_cannot_spell_json(llama3: Trained) -> None:
    tokens = [token.replace("}", "\u0120\u0120\u0120") for token in llama3.metadata["tokenizer.ggml.tokens"]]
    types = [1] * len(tokens)
    metadata = llama3.with_changes(merges=[], tokens=list(dict.fromkeys(tokens)))
    metadata["tokenizer.ggml.token_type"] = types[: len(metadata["tokenizer.ggml.tokens"])]
    with pytest.raises(ConstraintError, match="no token for the character '}'"):
        compile_constraint({"type": "json_object"}, Tokenizer.from_metadata(metadata))


def test_large_vocabulary_is_fast(official_2b: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_metadata(official_2b)
    started = time.process_time()
    GrammarVocabulary(tokenizer)
    assert time.process_time() - started < 2
    constraint = compiled(tokenizer, type="json_schema", schema=PERSON)
    rng = random.Random(3)
    generate(constraint, tokenizer, 100, rng)
    state, seconds = constraint.start(), []
    for remaining in range(100, 0, -1):
        started = time.process_time()
        mask = state.mask(remaining)
        elapsed = time.process_time() - started
        choice = rng.choice(allowed(mask))
        started = time.process_time()
        state.accept(choice)
        seconds.append(elapsed + time.process_time() - started)
        if state.is_finished:
            break
    assert sorted(seconds)[len(seconds) // 2] < 1e-3


def test_compiled_once_per_tokenizer(llama3: Trained) -> None:
    tokenizer = Tokenizer.from_metadata(llama3.metadata)
    schema = {"type": "object", "properties": {"b": {"type": "null"}, "a": {"type": "null"}}}
    first = compiled(tokenizer, type="json_schema", schema=schema)
    assert compiled(tokenizer, type="json_schema", schema=json.loads(json.dumps(schema))) is first
    swapped = {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}}
    assert compiled(tokenizer, type="json_schema", schema=swapped) is not first
    assert compiled(Tokenizer.from_metadata(llama3.metadata), type="json_schema", schema=schema) is not first
    # The caches hold no tokenizer that nobody else does.
    alive = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert alive() is None


def test_cache_is_bounded(plain: Tokenizer) -> None:
    first = compiled(plain, type="choice", choices=["x0"])
    for i in range(1, 70):
        compiled(plain, type="choice", choices=[f"x{i}"])
    assert compiled(plain, type="choice", choices=["x0"]) is not first


def test_text_is_no_constraint(plain: Tokenizer) -> None:
    assert compile_constraint({"type": "text"}, plain) is None


@pytest.mark.parametrize(
    ("response_format", "message"),
    [
        ({}, "response_format.type must be one of text, json_object"),
        ({"type": ["text"]}, "response_format.type"),
        ({"type": "json"}, "not 'json'"),
        ("json_object", "must be a mapping"),
        ({"type": "json_object", "schema": {}}, "unknown key 'schema'"),
        ({"type": "json_schema"}, "key 'schema'"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "key 'schema'"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "stric": True}}, "unknown key 'stric'"),
        ({"type": "regex", "pattern": ""}, "non-empty string"),
        ({"type": "regex", "pattern": "a(?!b)"}, "look-around"),
        ({"type": "regex", "pattern": "("}, "unclosed group"),
        ({"type": "regex", "pattern": "a" * 70000}, "70000 characters"),
        ({"type": "choice", "choices": []}, "1 to 5000 strings"),
        ({"type": "choice", "choices": ["a", ""]}, "non-empty strings"),
        ({"type": "choice", "choices": "ab"}, "list"),
        ({"type": "grammar", "grammar": "start: nope"}, 'unknown name: "nope"'),
        ({"type": "grammar", "grammar": "start: %json {}"}, "cannot contain %json"),
        ({"type": "grammar", "grammar": 'start: start "a"'}, "matches nothing"),
        ({"type": "grammar", "grammar": "start: " + "(" * 9000}, "nested"),
        ({"type": "json_schema", "schema": {"const": float("nan")}}, "not plain JSON"),
        ({"type": "json_schema", "schema": {"const": "\ud800"}}, "not plain JSON"),
        ({"type": "json_schema", "schema": {"const": {1, 2}}}, "type set"),
    ],
)
def test_refused(plain: Tokenizer, response_format: Any, message: str) -> None:
    with pytest.raises(ConstraintError, match=re.escape(message)) as caught:
        compile_constraint(response_format, plain)
    assert caught.value.status == 400


def test_long_chain_of_rules_does_not_overflow_the_stack(plain: Tokenizer) -> None:
    def chain(length: int) -> str:
        rules = "\n".join(f'a{i}: a{i + 1} "x"' for i in range(length))
        return f'start: a0\n{rules}\na{length}: "y"'

    assert compiled(plain, type="grammar", grammar=chain(400)).minimum_tokens() <= 401
    with pytest.raises(ConstraintError, match="more than 500 rules"):
        compile_constraint({"type": "grammar", "grammar": chain(3000)}, plain)


def test_grammar_too_complex_to_go_on_with(plain: Tokenizer) -> None:
    """A regular expression whose automaton has 2**30 states fails its own request, and soon."""
    constraint = compiled(plain, type="regex", pattern="[ab]*a[ab]{30}")
    a, b = (plain.encode(text, add_special=False)[0] for text in "ab")
    rng = random.Random(4)
    state = constraint.start()

    def run() -> None:
        for _ in range(20000):
            state.mask()
            state.accept(rng.choice((a, b)))

    with pytest.raises(ConstraintError, match="too complex"):
        run()
