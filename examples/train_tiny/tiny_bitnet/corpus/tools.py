"""Conversations with functions, Hermes style: "tool_call", "tool_none" (none is needed), "tool_answer" (from
a result), "tool_pair" (two calls at once), "tool_forced" (a grammar demands a call, whatever is said),
"function_choice" and "call_values" (drills)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from . import words
from .chat import chat, introduction
from .everyday import Value
from .facts import facts
from .source import UNMARK, Clue, Family, Message, Sample, Source, marked
from .tool_specs import Arguments, Tool, definition, make_tools, spoken, tool_of_parts, value_of
from .words import listed


def _tool_line(entry: Mapping[str, Any]) -> str:
    """A function as the chat template lists it."""
    return json.dumps(entry, ensure_ascii=False)


def _clue(tool: Tool, asked: str) -> Clue:
    return Clue(_tool_line(tool.definition), tool.name, asked)


def listed_tools(text: str) -> list[dict[str, Any]]:
    """The definitions that a system text lists."""
    lines = re.search(r"<tools>\n(.*?)\n</tools>", text, re.DOTALL)
    return [json.loads(line) for line in lines[1].splitlines()] if lines else []


def tool_prompt(definitions: list[dict[str, Any]], before: str = "") -> str:
    """The system text that lists the functions."""
    lines = "\n".join(map(_tool_line, definitions))
    prompt = (
        f"# Tools\n<tools>\n{lines}\n</tools>\n"
        'To call a tool, reply <tool_call>{"name": ..., "arguments": {...}}</tool_call>'
    )
    return f"{before}\n\n{prompt}" if before else prompt


def _marked_value(value: Value) -> str:
    if isinstance(value, str):
        # The closing quote ends the value, a decision as well.
        return '"' + marked(json.dumps(value, ensure_ascii=False)[1:])
    return marked(json.dumps(value))


def marked_object(values: Arguments) -> str:
    """As JSON, with marks at what decides: the values, and what ends them."""
    pairs = ", ".join(f"{json.dumps(a, ensure_ascii=False)}: {_marked_value(v)}" for a, v in values.items())
    # A number is ended by what stands behind it.
    return re.sub(rf"(?<=\d){UNMARK}([,}}])", rf"\1{UNMARK}", f"{{{pairs}}}")


def call_text(name: str, arguments: Arguments, chosen: bool = True) -> str:
    """A call; chosen: its name is a decision, as its values are."""
    name = marked(name) if chosen else name
    return f'<tool_call>{{"name": "{name}", "arguments": {marked_object(arguments)}}}</tool_call>'


_SKY = ("sunny", "cloudy", "rainy", "windy", "foggy", "clear", "snowy")
_FIELDS = listed("status price time total name id color city temperature answer value result owner size")


def _found(source: Source) -> Value:
    makers: tuple[Callable[[Source], Value], ...] = (
        Source.number, Source.phrase, Source.full_name, Source.city, Source.decimal, Source.foreign_phrase,
        Source.date, Source.word, Source.number,
    )  # fmt: skip
    return source.choice(makers)(source)


def result(source: Source, tool: str) -> tuple[str, str]:
    """What a tool returns, and what the assistant makes of it."""
    kind = source.integer(0, 9)
    if kind <= 2:
        value = _found(source)
        return str(value), f"The {marked('result')} is {marked(value)}."
    if kind <= 4:
        field = spoken(tool).split()[-1] if source.chance(0.4) else source.choice(_FIELDS)
        value = _found(source)
        return json.dumps({field: value}, ensure_ascii=False), f"The {marked(field)} is {marked(value)}."
    if kind == 5:
        one, two = source.sample(_FIELDS, 2)
        table = {one: _found(source), two: _found(source)}
        said = " and ".join(f"the {marked(f)} is {marked(v)}" for f, v in table.items())
        return json.dumps(table, ensure_ascii=False), said[0].upper() + said[1:] + "."
    if kind == 6:
        problem = source.choice(
            ("not found", "no access", "timeout", f"unknown {source.word()}", source.phrase())
        )
        return f"Error: {problem}", f"{marked('Sorry')}, the tool failed: {marked(problem)}."
    sky, degrees = source.choice(_SKY), source.integer(-9, 39)
    if kind == 7:
        return f"{sky}, {degrees} degrees", f"{marked('It')} is {marked(f'{sky}, {degrees} degrees')}."
    # A sentence is an answer as it is.
    place, thing = source.city(), source.pick_noun()
    sentence = source.choice((
        f"It is {sky} in {place}.", f"It's {degrees} degrees and {sky} in {place}.",
        f"The weather in {place} is {sky}.", f"The {thing} costs {source.number()} dollars.",
        f"{source.full_name()} lives in {place}.", f"The {thing} was sent to {place}.",
        f"There are {source.number()} {thing}s left.", f"{place} has {source.number()} people.",
    ))  # fmt: skip
    return sentence, marked(sentence)


def _small_talk(source: Source) -> list[Message]:
    """A turn for which no tool is needed."""
    kind = source.integer(0, 9)
    if kind <= 4:
        return [m for m in chat(source).messages if m[0] != "system"]
    if kind <= 7:
        return [m for m in facts(source).messages if m[0] != "system"]
    return introduction(source, source.first_name())


def _turn(source: Source, tool: Tool, answered: float) -> list[Message]:
    """A request, its call and perhaps the answer from the result."""
    asked, values = tool.ask(source)
    messages: list[Message] = [("user", asked), ("assistant", call_text(tool.name, values))]
    if source.chance(answered):
        returned, answer = result(source, tool.name)
        messages += [("tool", returned), ("assistant", answer)]
    return messages


def _skill(messages: list[Message]) -> str:
    if len(messages) == 2:
        return "tool_call" if messages[1][1].startswith("<tool_call>") else "tool_none"
    return "tool_answer"


def _pair(source: Source, tools: list[Tool]) -> list[Message]:
    """Two requests in one message: two calls in one answer, then both results."""
    one, two = source.choice(tools), source.choice(tools)
    (first, first_values), (second, second_values) = one.ask(source), two.ask(source)
    joined = source.choice((" And ", " ", " Then: ", "\n", " Also: "))
    calls = call_text(one.name, first_values) + call_text(two.name, second_values)
    (r1, a1), (r2, a2) = result(source, one.name), result(source, two.name)
    return [
        ("user", first + joined + second), ("assistant", calls), ("tool", r1), ("tool", r2),
        ("assistant", f"{a1} {a2}"),
    ]  # fmt: skip


def tools(source: Source) -> Family:
    available = make_tools(source, source.weighted((1, 2, 3, 4), (4, 5, 2, 1)))
    before = source.choice(words.SYSTEM_PROMPTS) if source.chance(0.35) else ""
    system: Message = ("system", tool_prompt([tool.definition for tool in available], before))
    # A conversation that went before, for all of them: sometimes with a call, so that calls do not repeat.
    history: list[Message] = []
    if source.chance(0.25):
        history = _turn(source, source.choice(available), 1.0) if source.chance(0.7) else _small_talk(source)
    family = []
    for _ in range(8):
        if source.chance(0.22):
            messages = _small_talk(source)
        elif source.chance(0.1):
            messages = _pair(source, available)
            family.append(Sample([system, *history, *messages], "tool_pair"))
            continue
        else:
            tool = source.choice(available)
            messages = _turn(source, tool, 0.45)
            clue, call = _clue(tool, messages[0][1]), 2 + len(history)
            family.append(Sample([system, *history, *messages], _skill(messages), False, clue, call))
            continue
        family.append(Sample([system, *history, *messages], _skill(messages)))
    return family


def function_choice(source: Source) -> Family:
    """Which of several functions a request needs, and nothing else: the calls break off behind the name."""
    available = make_tools(source, source.weighted((2, 3, 4, 5), (4, 4, 3, 2)), (35, 50, 15))
    system: Message = ("system", tool_prompt([tool.definition for tool in available]))
    family = []
    for tool in source.choices(available, 12):
        begun = f'<tool_call>{{"name": "{marked(tool.name)}'
        asked, _ = tool.ask(source)
        messages: list[Message] = [system, ("user", asked), ("assistant", begun)]
        family.append(Sample(messages, "function_choice", True, _clue(tool, asked)))
    return family


def everyday_call(source: Source) -> Sample:
    """A request for one of up to three everyday functions, and nothing else; for the evaluation."""
    available = make_tools(source, source.weighted((1, 2, 3), (4, 5, 2)), (100, 0, 0))
    tool = source.choice(available)
    asked, values = tool.ask(source)
    system: Message = ("system", tool_prompt([tool.definition for tool in available]))
    call = call_text(tool.name, values)
    return Sample([system, ("user", asked), ("assistant", call)], "tool_call")


def call_values(source: Source) -> Family:
    """The values of calls, and nothing else: of a function, what several requests tell for it."""
    while True:
        tool = tool_of_parts(source) if source.chance(0.5) else make_tools(source, 1, (70, 15, 15))[0]
        if tool.definition["function"]["parameters"]["properties"]:
            break
    system: Message = ("system", tool_prompt([tool.definition]))
    family = []
    for _ in range(12):
        asked, values = tool.ask(source)
        call = call_text(tool.name, values, chosen=False)
        family.append(Sample([system, ("user", asked), ("assistant", call)], "call_values", True))
    return family


# Functions whose call is the answer, as libraries use them for structured output.
_RECORDS = listed(
    "Person Customer Invoice Product Order Event Book Movie City Recipe Answer Contact Employee Report Song "
    "Pet"
)


def record_text(source: Source, record: Arguments) -> str:
    """A text that tells the values of a record."""
    fields = list(record.items())
    if "name" in record and source.chance(0.6):
        name = record["name"]
        sayings = {"city": "lives in {}", "age": "is {} years old", "job": "works as a {}"}
        other = [(f, v) for f, v in fields if f != "name"]
        parts = [sayings.get(f, "has the " + f.replace("_", " ") + " {}").format(said(v)) for f, v in other]
        if source.chance(0.3):
            pronoun = source.choice(("He", "She"))
            return (
                " ".join(f"{name if i == 0 else pronoun} {part}." for i, part in enumerate(parts))
                or f"{name}."
            )
        return f"{name} {' and '.join(parts)}." if parts else f"My name is {name}."
    if source.chance(0.5):
        source.random.shuffle(fields)
    pair = source.choice(("{}: {}", "the {} is {}", "{} = {}", "{} {}", "The {} is {}."))
    joined = " " if pair.endswith(".") else source.choice((", ", "; ", "\n", " and ", " "))
    return joined.join(pair.format(f.replace("_", " "), said(v)) for f, v in fields)


def said(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


_RECORD_FIELDS = {
    "name": "string", "city": "string", "age": "integer", "job": "string", "color": "string",
    "price": "number",
    "product": "string", "year": "integer", "title": "string", "quantity": "integer", "date": "string",
    "email": "string", "company": "string", "country": "string", "author": "string", "amount": "integer",
}  # fmt: skip


def record(source: Source) -> tuple[dict[str, str], Callable[[Source], Arguments]]:
    """Fields with types, and what makes values for them."""
    known = source.sample(list(_RECORD_FIELDS), source.weighted((1, 2, 3, 4), (2, 4, 3, 1)))
    types = {field: _RECORD_FIELDS[field] for field in known}
    if source.chance(0.15):
        types["member"] = "boolean"
    if source.chance(0.2):
        types[source.word(1, 2)] = "string"

    def make(source: Source) -> Arguments:
        return {field: record_value(source, field, kind) for field, kind in types.items()}

    return types, make


def record_value(source: Source, field: str, kind: str) -> Value:
    if kind == "boolean":
        return source.chance(0.5)
    if field == "age":
        return source.integer(5, 99)
    if field == "year":
        return source.integer(1900, 2030)
    if field == "job":
        return source.choice(words.JOBS)
    if field == "author":
        return source.full_name()
    return value_of(source, kind, field)


def forced(source: Source) -> Family:
    """Records as functions: the call is demanded, its beginning is not the model's choice."""
    name = source.choice(_RECORDS)
    types, make = record(source)
    description = source.choice((name, f"A {name.lower()}.", f"Information about a {name.lower()}.", ""))
    available = [definition(source, name, description, types)]
    system: Message = ("system", tool_prompt(available, source.system_text(0.25)))
    family = []
    for _ in range(4):
        values = make(source)
        text = record_text(source, values)
        if source.chance(0.3):
            text = source.choice(
                ("Extract the data: {}", "{}\nUse the tool.", "Save this: {}", "Text: {}")
            ).format(text)
        call = call_text(name, values, chosen=False)
        messages: list[Message] = [system, ("user", text), ("assistant", call)]
        family.append(Sample(messages, "tool_forced", forced=True))
    return family
