"""Answers that may or must call tools: what the grammar allows, and that calls are always whole and valid."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from constrained import accepts, generate
from vocabularies import Trained

from bitnet.errors import ConstraintError
from bitnet.text.constraints import Constraint
from bitnet.text.tokenizer import Tokenizer
from bitnet.text.tool_call_parser import TextDelta, ToolCallArgumentsDelta, ToolCallParser, ToolCallStart
from bitnet.text.tool_grammar import MAX_PARALLEL_CALLS, tool_constraint
from bitnet.values import as_tool_choice, as_tools

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city"],
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 7}},
}
OTHER = {"type": "object", "properties": {"x": {"$ref": "#/$defs/days"}}, "$defs": {"days": {"type": "null"}}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "other", "parameters": OTHER}},
    {"type": "function", "function": {"name": "no_arguments"}},
]
SCHEMAS = {"weather": SCHEMA, "other": OTHER, "no_arguments": {"maxProperties": 0}}
NAMED = {"type": "function", "function": {"name": "weather"}}
MARKERS = ("<tool_call>", "</tool_call>")


@pytest.fixture(scope="module", params=["text", "user-defined", "control"])
def tokenizer(request: pytest.FixtureRequest, llama3: Trained) -> Tokenizer:
    """The markers of calls as ordinary text, and as tokens of either type."""
    if request.param == "text":
        return Tokenizer.from_metadata(llama3.metadata)
    kind = 4 if request.param == "user-defined" else 3
    return Tokenizer.from_metadata(
        llama3.with_changes(
            tokens=[*llama3.metadata["tokenizer.ggml.tokens"], *MARKERS],
            token_type=[*llama3.metadata["tokenizer.ggml.token_type"], kind, kind],
        )
    )


def constraint_of(
    tokenizer: Tokenizer, choice: Any = None, parallel: bool = True, answer: Any = None
) -> Constraint:
    tools = as_tools(TOOLS)
    return tool_constraint(tools, as_tool_choice(choice, tools), parallel, answer, tokenizer)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special=False, parse_special=True)


def calls_of(text: str) -> tuple[str, list[tuple[str, Any]]]:
    """The text beside the calls, and the calls."""
    parser = ToolCallParser()
    plain, names, arguments = "", [], []
    for event in parser.feed(text) + parser.flush():
        if isinstance(event, TextDelta):
            plain += event.text
        elif isinstance(event, ToolCallStart):
            names.append(event.name)
            arguments.append("")
        elif isinstance(event, ToolCallArgumentsDelta):
            arguments[-1] += event.text
    return plain, [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]


CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>'
LOOSE = '<tool_call>\n{"name":"no_arguments","arguments":{}}\n</tool_call>'
WRONG = [
    '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "weather", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "weather", "arguments": {"city": "Ulm", "days": 8}}</tool_call>',
    '<tool_call>{"name": "no_arguments", "arguments": {"a": 1}}</tool_call>',
    '<tool_call>{"arguments": {}, "name": "no_arguments"}</tool_call>',
    "<tool_call>what?",
    CALL[:-1],
]


@pytest.mark.parametrize(
    ("choice", "parallel", "answer", "good", "bad"),
    [
        ("required", True, None, [CALL, LOOSE, CALL + LOOSE, f"{CALL}\n{CALL}"], ["", f"Hi{CALL}", *WRONG]),
        ("required", False, None, [CALL, LOOSE], [CALL + CALL, f"{CALL}\n", ""]),
        (NAMED, True, None, [CALL, CALL + CALL], [LOOSE, CALL + LOOSE, ""]),
        (None, True, None, ["", "Hi <b> <tool", f"Hi {CALL}", CALL + LOOSE], [f"{CALL} more", *WRONG]),
        ("auto", False, None, ["Hi", f"Hi {CALL}"], [CALL + CALL, *WRONG]),
        ("auto", True, {"type": "json_object"}, ['{"a": 1}', CALL, CALL + CALL], ["Hi", f"Hi {CALL}"]),
        ("required", True, {"type": "json_object"}, [CALL], ['{"a": 1}']),
        ("auto", True, {"type": "choice", "choices": ["yes", "<tool>"]}, ["yes", "<tool>", CALL], ["no"]),
        ("auto", True, {"type": "grammar", "grammar": 'start: "a"+'}, ["aa", CALL], ["b"]),
    ],
    ids=["required", "1", "named", "auto", "auto-1", "or-json", "no-json", "or-choice", "or-grammar"],
)
def test_what_is_allowed(
    tokenizer: Tokenizer, choice: Any, parallel: bool, answer: Any, good: list[str], bad: list[str]
) -> None:
    constraint = constraint_of(tokenizer, choice, parallel, answer)
    assert [text for text in good if not accepts(constraint, tokenizer, ids_of(tokenizer, text))] == []
    assert [text for text in bad if accepts(constraint, tokenizer, ids_of(tokenizer, text))] == []


def test_markers_spelled_out(tokenizer: Tokenizer) -> None:
    """Also where they are tokens, their letters do."""
    spelled = [i for character in CALL for i in ids_of(tokenizer, character)]
    assert accepts(constraint_of(tokenizer, "required"), tokenizer, spelled)
    assert accepts(constraint_of(tokenizer, "auto"), tokenizer, spelled)


def test_visible_control_tokens(tokenizer: Tokenizer) -> None:
    ids = {tokenizer.token_id(marker) for marker in MARKERS}
    expected = ids if ids <= tokenizer.special_ids else set()
    assert constraint_of(tokenizer, "required").visible_ids == expected


def test_parallel_calls_are_bounded(tokenizer: Tokenizer) -> None:
    constraint = constraint_of(tokenizer, "required")
    assert accepts(constraint, tokenizer, ids_of(tokenizer, LOOSE * MAX_PARALLEL_CALLS))
    assert not accepts(constraint, tokenizer, ids_of(tokenizer, LOOSE * (MAX_PARALLEL_CALLS + 1)))


def test_a_tool_that_llguidance_refuses_is_named(tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": "a(?!b)"}}}
    tool = {"type": "function", "function": {"name": "odd", "parameters": schema}}
    with pytest.raises(
        ConstraintError, match=r"tool 'odd': the schema at tool odd: #/properties/x cannot be"
    ):
        tool_constraint(as_tools([*TOOLS, tool]), "auto", True, None, tokenizer)


def test_an_unsupported_keyword_is_named(tokenizer: Tokenizer) -> None:
    parameters = {"type": "object", "properties": {"x": {"not": {}}}}
    tools = as_tools([{"type": "function", "function": {"name": "f", "parameters": parameters}}])
    with pytest.raises(ConstraintError, match="unsupported keyword 'not' at tool f: #/properties/x/not"):
        tool_constraint(tools, "auto", True, None, tokenizer)


@pytest.mark.parametrize("choice", ["required", NAMED, "auto"], ids=["required", "named", "auto"])
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("answer", [None, {"type": "json_schema", "schema": {"enum": ["done", 7]}}])
def test_calls_are_whole_and_valid(tokenizer: Tokenizer, choice: Any, parallel: bool, answer: Any) -> None:
    """Whatever a model picks, and however few tokens it has."""
    constraint = constraint_of(tokenizer, choice, parallel, answer)
    rng = random.Random(1)
    opener = ids_of(tokenizer, MARKERS[0])
    n_calls = 0
    for extra in (0, 1, 5, 20, 60, 150, 150, 150):
        budget = constraint.minimum_tokens() + extra
        if budget == 0:
            continue
        output = generate(constraint, tokenizer, budget, rng, favourites=opener)
        assert output.state.is_accepting
        text, calls = calls_of(output.text)
        n_calls += len(calls)
        for name, arguments in calls:
            jsonschema.validate(arguments, SCHEMAS[name])
        assert parallel or len(calls) <= 1
        if choice != "auto":
            assert calls
            assert not text
            assert choice == "required" or {name for name, _ in calls} == {"weather"}
        elif answer is not None:
            assert calls or json.loads(text) in ("done", 7)
    assert n_calls or choice == "auto"


def test_no_call_begins_that_cannot_end(tokenizer: Tokenizer) -> None:
    constraint = constraint_of(tokenizer, "auto")
    opener = ids_of(tokenizer, MARKERS[0])
    for remaining, fits in ((len(opener) + 20, False), (len(opener) + 100, True)):
        state = constraint.start()
        accepted = []
        for used, token_id in enumerate(opener):
            state.mask(remaining - used)
            accepted.append(state.accept(token_id))
        assert accepted == [True] * (len(opener) - 1) + [fits]
