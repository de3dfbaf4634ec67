"""Forced completion: whatever a model picks, an output that fits into its tokens is whole at their end."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from constrained import allowed, generate
from vocabularies import Trained

from bitnet.errors import ConstraintError
from bitnet.text.constraints import Constraint, compile_constraint
from bitnet.text.tokenizer import Tokenizer

DEFINITIONS = {
    "node": {
        "type": "object",
        "properties": {
            "value": {"type": "integer"},
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
        },
        "required": ["value", "next"],
    },
    "leaf": {"enum": ["l", "m"]},
}
VALUES = [1, 2.5, "a", 'é"\n', None, True, {"x": 1, "y": [2]}, [1, "b"], "long long value", -3, ""]
PATTERNS = ["^[a-z]{2,4}$", r"^\d{3}-\d{4}$", "ab+c", "^(foo|bar)*$", "^[^a]*z", r"\w+@\w+", "^.{3,5}$"]
FORMATS = ["date", "date-time", "time", "uuid", "ipv4", "ipv6", "email", "hostname", "duration", "uri"]
NAMES = ["a", "bb", "name", "é", "x y", 'q"']


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """Every keyword that is supported, three levels deep."""

    def inner() -> dict[str, Any]:
        return random_schema(rng, depth + 1)

    def maybe(**keywords: Any) -> dict[str, Any]:
        return {key: value for key, value in keywords.items() if rng.random() < 0.5}

    def string() -> dict[str, Any]:
        low = rng.randint(0, 6)
        return {"type": "string", **maybe(minLength=low, maxLength=low + rng.randint(0, 9))}

    def number() -> dict[str, Any]:
        kind = rng.choice(["integer", "number"])
        low, high = rng.randint(-100, 10), rng.randint(20, 1000)
        if kind == "number":
            low, high = low + 0.25, high + 0.07  # type: ignore[assignment]
        low_key, high_key = (
            rng.choice(["minimum", "exclusiveMinimum"]),
            rng.choice(["maximum", "exclusiveMaximum"]),
        )
        return {"type": kind, **maybe(**{low_key: low, high_key: high})}

    def array() -> dict[str, Any]:
        low = rng.randint(0, 3)
        return {"type": "array", "items": inner(), **maybe(minItems=low, maxItems=low + rng.randint(0, 3))}

    def object_() -> dict[str, Any]:
        properties = {name: inner() for name in rng.sample(NAMES, rng.randint(0, 4))}
        required = rng.sample(list(properties), rng.randint(0, len(properties)))
        return {"type": "object", "properties": properties, **maybe(required=required)}

    def joined() -> dict[str, Any]:
        return {"allOf": [object_(), {"properties": {"z": inner()}, "required": ["z"]}]}

    def map_() -> dict[str, Any]:
        return {"type": "object", "additionalProperties": inner(), **maybe(minProperties=1, maxProperties=2)}

    flat = [
        string,
        number,
        lambda: {"enum": rng.sample(VALUES, rng.randint(1, 4))},
        lambda: {"const": rng.choice(VALUES)},
        lambda: {"type": rng.sample(["string", "integer", "null", "boolean", "array"], rng.randint(1, 3))},
        lambda: {"type": "integer", "multipleOf": rng.choice([2, 5, 7, 25])},
        lambda: {"type": "string", "pattern": rng.choice(PATTERNS)},
        lambda: {"type": "string", "format": rng.choice(FORMATS)},
        lambda: {"$ref": rng.choice(["#/$defs/node", "#/$defs/leaf"])},
    ]
    deep = [
        array,
        object_,
        object_,
        joined,
        map_,
        lambda: {"anyOf": [inner() for _ in range(rng.randint(1, 3))]},
        lambda: {"type": "array", "prefixItems": [inner(), inner()], "items": False, "minItems": 1},
    ]
    return rng.choice(flat if depth >= 2 else [*flat, *deep, *deep])()


@pytest.fixture(scope="module", params=["llama3", "spm"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.from_metadata(request.getfixturevalue(request.param).metadata)


@pytest.fixture(scope="module")
def plain(llama3: Trained) -> Tokenizer:
    return Tokenizer.from_metadata(llama3.metadata)


def compiled(tokenizer: Tokenizer, schema: Any) -> Constraint:
    constraint = compile_constraint({"type": "json_schema", "schema": schema}, tokenizer)
    assert constraint is not None
    return constraint


@pytest.mark.parametrize("seed", range(40))
def test_random_schemas_budgets_and_choices(tokenizer: Tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    checker = jsonschema.FormatChecker(["date", "ipv4", "ipv6", "email", "uuid"])
    schema = {**random_schema(rng), "$defs": DEFINITIONS}
    constraint = compiled(tokenizer, schema)
    minimum = constraint.minimum_tokens()
    validator = jsonschema.Draft202012Validator(schema, format_checker=checker)
    for budget in (minimum, minimum + 1, minimum + 3, minimum + 10, minimum + 40):
        output = generate(constraint, tokenizer, budget, rng)
        assert output.state.is_accepting
        assert len(output.token_ids) <= budget
        validator.validate(json.loads(output.text))


def test_a_budget_that_is_too_small_cuts_and_does_not_force(plain: Tokenizer) -> None:
    constraint = compiled(
        plain, {"type": "object", "properties": {"abc": {"type": "string"}}, "required": ["abc"]}
    )
    output = generate(constraint, plain, constraint.minimum_tokens() - 1, random.Random(1))
    assert not output.state.is_accepting
    assert len(output.token_ids) == constraint.minimum_tokens() - 1
    assert output.n_refused == 0


def test_without_a_budget_nothing_is_closed(plain: Tokenizer) -> None:
    """The mask stays the grammar's own."""
    constraint = compiled(plain, {"type": "string"})
    state = constraint.start()
    free = set(allowed(state.mask(50)))
    assert set(allowed(state.mask())) == free
    quote = plain.encode('"', add_special=False)[0]
    assert state.accept(quote)
    assert len(allowed(state.mask())) > 100
    # With two tokens left there is room for one before the quote, with one there is not.
    assert len(allowed(state.mask(2))) > 100
    assert allowed(state.mask(1)) == [quote]


def test_a_costly_turn_is_refused(plain: Tokenizer) -> None:
    """Both branches are allowed by the grammar; only one can be finished."""
    schema = {"enum": ["a", "b" * 60]}
    state = compiled(plain, schema).start()
    first = plain.encode('"', add_special=False)[0]
    b = plain.encode("b", add_special=False)[0]
    state.mask(10)
    assert state.accept(first)
    mask = state.mask(9)
    assert b in allowed(mask)
    assert not state.accept(b)
    assert b not in allowed(state.mask(9))
    wide = compiled(plain, schema).start()
    wide.mask(100)
    assert wide.accept(first)
    wide.mask(99)
    assert wide.accept(b)


def test_refusals_come_to_an_end(plain: Tokenizer) -> None:
    """A model that insists on what does not fit is given the way out and nothing else."""
    texts = [f"{i:02}" + "x" * 80 for i in range(50)]
    state = compiled(plain, {"enum": ["a", *texts]}).start()
    state.mask(10)
    assert state.accept(plain.encode('"', add_special=False)[0])
    for _ in range(8):
        choices = [i for i in allowed(state.mask(9)) if plain.token_bytes(i)[:1].isdigit()]
        if not choices:
            break
        assert not state.accept(choices[0])
    a = plain.encode("a", add_special=False)[0]
    assert a in allowed(state.mask(9))
    assert all(not plain.token_bytes(i)[:1].isdigit() for i in allowed(state.mask(9)))


@pytest.mark.parametrize(
    ("kind", "grammar"),
    [
        ("regex", "(a{5}|b{200})c*d"),
        ("regex", "[a-z]+@[a-z]+"),
        ("regex", "(?s:.)*stop(?s:.)*"),
        ("grammar", 'start: "(" start* ")"'),
        ("grammar", 'start: item ("," item)* ";"\nitem: /[a-z]+/ "=" /[0-9]{3,}/'),
    ],
)
def test_other_grammars_are_closed_too(plain: Tokenizer, kind: str, grammar: str) -> None:
    key = "pattern" if kind == "regex" else "grammar"
    constraint = compile_constraint({"type": kind, key: grammar}, plain)
    assert constraint is not None
    rng = random.Random(5)
    for extra in (0, 1, 5, 20):
        for _ in range(5):
            assert generate(constraint, plain, constraint.minimum_tokens() + extra, rng).state.is_accepting


@pytest.mark.parametrize(
    "grammar",
    [
        'start: REASON "[[" VERDICT "]]"\nVERDICT: /[AB]/\nREASON: /[^\\[\\]\\n]{1,900}/',
        'start: "T: " THOUGHT "\\n" ("Do: " /[a-z]{3}/ | "Say: " /[^ ](?s:.){0,9}/)\n'
        "THOUGHT: /[^\\n:]{1,900}/",
    ],
)
def test_what_follows_a_text_is_found_before_the_text_is_full(plain: Tokenizer, grammar: str) -> None:
    constraint = compile_constraint({"type": "grammar", "grammar": grammar}, plain)
    assert constraint is not None
    assert constraint.minimum_tokens() < 20
    assert generate(constraint, plain, 20, random.Random(1)).state.is_accepting


def test_special_tokens_of_a_grammar(plain: Tokenizer) -> None:
    """A grammar may ask for control tokens by name, also to close it."""
    special = plain.token_id("<|start_header_id|>")
    constraint = compile_constraint(
        {"type": "grammar", "grammar": 'start: /[a-z]+/ <|start_header_id|> "x"'}, plain
    )
    assert constraint is not None
    assert constraint.minimum_tokens() == 3
    output = generate(constraint, plain, 6, random.Random(6))
    assert special in output.token_ids
    assert output.state.is_finished


def test_same_choices_same_masks(plain: Tokenizer) -> None:
    constraint = compiled(
        plain, {"type": "object", "properties": {"a": {"type": "array"}}, "required": ["a"]}
    )
    outputs = [generate(constraint, plain, 40, random.Random(7)).token_ids for _ in range(3)]
    assert outputs[0] == outputs[1] == outputs[2]


def test_tokens_that_do_not_belong_change_nothing(plain: Tokenizer) -> None:
    state = compiled(plain, {"type": "null"}).start()
    state.mask(10)
    with pytest.raises(ConstraintError, match="not allowed"):
        state.accept(plain.encode("x", add_special=False)[0])
    for token_id in plain.encode("null", add_special=False):
        state.mask(10)
        assert state.accept(token_id)
    assert state.is_finished
