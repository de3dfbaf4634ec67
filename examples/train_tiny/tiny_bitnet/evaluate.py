"""Evaluation of the exported file through the engine: greedy, on held-out samples, counted per skill.

Tools are given as tools, choices and schemas as response formats, so that what is measured is what a user
gets. "Right" means equal to the letter unless a row says otherwise.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bitnet import BitNet, Message, Reply, ToolCall

from .corpus import Message as Turn
from .corpus import Sample, Source, held_out_samples, passage_pair
from .corpus.facts import canonical_questions
from .corpus.story import is_story_like
from .corpus.tools import everyday_call, listed_tools

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>")
_TOOLS = re.compile(r"\n*# Tools\n<tools>.*", re.DOTALL)


class Prompt(NamedTuple):
    messages: list[Message]
    tools: list[dict[str, Any]]


class Counts:
    """What was right, of how many, by name and in the order in which the names came up."""

    def __init__(self) -> None:
        self.rows: dict[str, list[int]] = {}

    def add(self, name: str, right: bool) -> None:
        row = self.rows.setdefault(name, [0, 0])
        row[0] += right
        row[1] += 1

    def table(self) -> list[str]:
        lines = ["| | right | of | |", "|---|---|---|---|"]
        for name, (right, total) in self.rows.items():
            lines.append(f"| {name} | {right} | {total} | {100 * right / total:.0f}% |")
        return [*lines, ""]


def calls_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(call) for call in _CALL.findall(text)]


def as_prompt(turns: Iterable[Turn]) -> Prompt:
    """Messages as a client sends them: tools apart from the system prompt, calls apart from the text."""
    messages: list[Message] = []
    tools: list[dict[str, Any]] = []
    for role, text in turns:
        listed = _TOOLS.search(text) if role == "system" else None
        if listed:
            tools = listed_tools(text)
            text = text[: listed.start()]
            if not text:
                continue
        calls = calls_of(text) if role == "assistant" else []
        made = tuple(ToolCall(f"call_{i}", c["name"], c["arguments"]) for i, c in enumerate(calls))
        answered = {"tool_call_id": "call_0"} if role == "tool" else {}
        messages.append(Message(role, _CALL.sub("", text), tool_calls=made, **answered))
    return Prompt(messages, tools)


def ask(model: BitNet, turns: Iterable[Turn], **options: Any) -> Reply:
    prompt = as_prompt(turns)
    if prompt.tools:
        options["tools"] = prompt.tools
    return model.chat(prompt.messages, temperature=0, max_tokens=200, **options)


def called(reply: Reply) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, json.loads(call.arguments)) for call in reply.tool_calls]


def _last(sample: Sample) -> tuple[list[Turn], str]:
    *turns, (_, answer) = sample.plain()
    return turns, answer


def _plain(model: BitNet, sample: Sample, counts: Counts, name: str) -> None:
    """Every answer of a conversation, each behind the right ones before it."""
    messages = sample.plain()
    for i, (role, text) in enumerate(messages):
        if role == "assistant" and not text.startswith("<tool_call>"):
            reply = ask(model, messages[:i])
            counts.add(name, reply.text == text and not reply.tool_calls)
            counts.add("never an empty answer", bool(reply.text.strip() or reply.tool_calls))


def _is_foreign(value: object) -> bool:
    return isinstance(value, str) and any(ord(c) > 0x24F for c in value)


def _arguments(counts: Counts, expected: dict[str, Any], found: dict[str, Any]) -> None:
    for key, value in expected.items():
        right = found.get(key) == value and type(found[key]) is type(value)
        kind = (
            "numbers" if not isinstance(value, str) else "non-Latin texts" if _is_foreign(value) else "texts"
        )
        counts.add(f"arguments of a call: {kind}", right)


def _tool_call(model: BitNet, sample: Sample, counts: Counts) -> None:
    turns, answer = _last(sample)
    (expected,) = calls_of(answer)
    found = called(ask(model, turns))
    names = [name for name, _ in found]
    chosen = names == [expected["name"]]
    counts.add("tool choice: a call is needed, and which", chosen)
    # How well values are copied is counted apart from the choice.
    if not chosen:
        wanted = {"type": "function", "function": {"name": expected["name"]}}
        found = called(ask(model, turns, tool_choice=wanted, parallel_tool_calls=False))
    _arguments(counts, expected["arguments"], found[0][1] if found else {})
    counts.add("whole call", chosen and found == [(expected["name"], expected["arguments"])])


def _tool_none(model: BitNet, sample: Sample, counts: Counts) -> None:
    turns, answer = _last(sample)
    reply = ask(model, turns)
    counts.add("tool choice: none is needed", not reply.tool_calls)
    counts.add("the answer where no tool is needed", reply.text == answer)


def _tool_answer(model: BitNet, sample: Sample, counts: Counts) -> None:
    turns, answer = _last(sample)
    if turns[-1][0] != "tool":
        return
    reply = ask(model, turns)
    counts.add("answer from a tool's result", reply.text == answer)
    counts.add("a text and no other call after a result", bool(reply.text.strip()) and not reply.tool_calls)


def _tool_pair(model: BitNet, sample: Sample, counts: Counts) -> None:
    messages = sample.plain()
    at = max(i for i, (role, text) in enumerate(messages) if text.startswith("<tool_call>"))
    expected = [(c["name"], c["arguments"]) for c in calls_of(messages[at][1])]
    counts.add("two calls for two requests", called(ask(model, messages[:at])) == expected)


def _forced_call(model: BitNet, sample: Sample, counts: Counts) -> None:
    turns, answer = _last(sample)
    (expected,) = calls_of(answer)
    found = called(ask(model, turns, tool_choice="required", parallel_tool_calls=False))
    for key, value in expected["arguments"].items():
        counts.add("fields of a record as a demanded call", bool(found) and found[0][1].get(key) == value)


def _schema(model: BitNet, sample: Sample, counts: Counts) -> None:
    turns, answer = _last(sample)
    expected = json.loads(answer)
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number"}
    properties = {key: {"type": kinds[type(value)]} for key, value in expected.items()}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(expected),
        "additionalProperties": False,
    }
    response_format = {"type": "json_schema", "json_schema": {"name": "record", "schema": schema}}
    found = json.loads(ask(model, turns, response_format=response_format).text)
    asked = "with no word about it" if sample.forced else "in the prompt"
    for key, value in expected.items():
        counts.add(f"fields of a JSON schema, schema or keys {asked}", found.get(key) == value)
    if not sample.forced:
        counts.add("whole JSON without a grammar", ask(model, turns).text == answer)


def _choice(model: BitNet, sample: Sample, counts: Counts, name: str, choices: list[str]) -> None:
    turns, answer = _last(sample)
    counts.add(f"{name}, without a grammar", ask(model, turns).text == answer)
    if answer in choices:
        response_format = {"type": "choice", "choices": choices}
        counts.add(name, ask(model, turns, response_format=response_format).text == answer)


def _options(model: BitNet, sample: Sample, counts: Counts) -> None:
    _, answer = _last(sample)
    for choices in (list("12345"), list("ABCDE"), ["positive", "negative"]):
        if answer in choices:
            return _choice(model, sample, counts, "choices", choices)
    counts.add("choices named", ask(model, sample.plain()[:-1]).text == answer)


def _selection(model: BitNet, sample: Sample, counts: Counts) -> None:
    turns, answer = _last(sample)
    if calls := calls_of(answer):
        found = called(ask(model, turns, tool_choice="required", parallel_tool_calls=False))
        counts.add(
            "choices of a router's call",
            bool(found) and found[0][1]["index"] == calls[0]["arguments"]["index"],
        )


def _story(model: BitNet, sample: Sample, counts: Counts) -> None:
    turns, answer = _last(sample)
    counts.add("a story of who was asked for", is_story_like(answer, ask(model, turns).text))


_SPECIAL: dict[str, Callable[[BitNet, Sample, Counts], None]] = {
    "story": _story,
    "tool_call": _tool_call,
    "tool_none": _tool_none,
    "tool_answer": _tool_answer,
    "tool_pair": _tool_pair,
    "tool_forced": _forced_call,
    "schema": _schema,
    "options": _options,
    "selection": _selection,
    "judge": lambda model, sample, counts: _choice(model, sample, counts, "yes or no", ["YES", "NO"]),
}
NAMES = {
    "facts": "facts, in wordings never seen",
    "chat": "small talk (a closed set, seen in training)",
    "chat_copy": "names and things the user said",
    "dialogue": "conversations, each answer",
    "unknown": '"I do not know" for invented countries and books',
    "copy": "repeat, look up, quote strings never seen",
    "ctx": "answer from a given text",
    "ctx_no": "say that a given text does not tell",
    "more": "answer from a text that tells more kinds of things",
    "more_no": "say that such a text does not tell",
    "ctx_turns": "several questions about one text, each answer",
    "refine": "refine an answer with a new text",
    "condense": "a follow-up question as a whole question",
    "arith": "sums up to 10 in wordings never seen",
}
# Made up by the model; and drills, of what other skills are measured by.
_UNMEASURED = ("invention", "function_choice", "call_values", "line", "kind")


def recall(model: BitNet, count: int = 50, tests: int = 4) -> tuple[int, int]:
    """How often a held-out question is closest to its own passage of `count`, and of how many."""
    right = 0
    for test in range(tests):
        source = Source("test", f"recall-{test}")
        pairs = [passage_pair(source) for _ in range(count)]
        questions = model.embed([question for question, _ in pairs], kind="query")
        passages = model.embed([passage for _, passage in pairs])
        right += sum(int(i == best) for i, best in enumerate((questions @ passages.T).argmax(axis=1)))
    return right, count * tests


def measure(model: BitNet, samples: Iterable[Sample]) -> Counts:
    counts = Counts()
    for sample in samples:
        if sample.skill in _SPECIAL:
            _SPECIAL[sample.skill](model, sample, counts)
        elif sample.skill not in _UNMEASURED:
            _plain(model, sample, counts, NAMES[sample.skill])
    return counts


# Skills with a goal, and so with three times as many samples: the standard error is 2 points.
_WITH_GOALS = ("facts", "ctx", "ctx_no", "options", "tool_call", "tool_none", "tool_answer")


def _selected(per_skill: int, seed: int) -> list[Sample]:
    seen: Counter[str] = Counter()
    selected = []
    for sample in held_out_samples(3 * per_skill, seed):
        seen[sample.skill] += 1
        if sample.skill in _WITH_GOALS or seen[sample.skill] <= per_skill:
            selected.append(sample)
    return selected


def evaluate(path: Path, per_skill: int = 100, seed: int = 21) -> str:
    """A report in Markdown."""
    from tqdm import tqdm

    with BitNet(path) as model:
        counts = measure(model, tqdm(_selected(per_skill, seed), desc="held-out", dynamic_ncols=True))
        counts.rows["question to its passage among 50 (embeddings)"] = list(recall(model, tests=16))
        everyday = {}
        for split in ("test", "train"):
            source = Source(split, f"everyday-{seed}")
            requests = [everyday_call(source) for _ in range(3 * per_skill)]
            everyday[split] = measure(model, tqdm(requests, desc="functions", dynamic_ncols=True))
        taught = Counts()
        for family, question, answer in tqdm(canonical_questions(), desc="facts", dynamic_ncols=True):
            taught.add(family, ask(model, [("user", question)]).text == answer)
    return "\n".join(
        [
            f"# Evaluation of {path.name}, greedy, through the engine",
            "",
            "## Held-out samples by skill",
            "",
            *counts.table(),
            "## Everyday functions never seen, alone",
            "",
            *everyday["test"].table(),
            "## Everyday functions of the training text, alone, with freshly drawn values",
            "",
            *everyday["train"].table(),
            "## Every fact, asked in its first wording (seen in training)",
            "",
            *taught.table(),
        ]
    )
