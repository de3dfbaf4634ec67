"""Skills "tool_call", "tool_answer" and "tool_none": functions listed in the system prompt, Hermes style."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from . import words
from .chat import chat
from .facts import facts
from .source import Message, Sample, Source
from .words import listed

Arguments = dict[str, str | int]

_VERBS = listed(
    "get find search create set send book convert compute check list open delete update translate play order "
    "track add show make start lookup count fetch"
)
_TOPICS = listed(
    "weather user order email message flight ticket price stock song movie event task note file alarm timer "
    "light room table item product city country customer account payment report recipe route map news photo "
    "contact reminder score team game password label value"
)
_ARGUMENTS = {
    "string": listed(
        "name city location query title text topic product item song user customer country subject message "
        "label keyword"
    ),
    "integer": listed("count number amount id input x y age quantity limit minutes size n value price year"),
}


class Tool(NamedTuple):
    name: str
    types: dict[str, str]  # argument name -> JSON schema type
    definition: dict[str, Any]  # as in the OpenAI API


def tool_prompt(tools: list[Tool], before: str = "") -> str:
    """The system text that lists the functions."""
    listed = "\n".join(json.dumps(tool.definition, ensure_ascii=False) for tool in tools)
    prompt = (
        f"# Tools\n<tools>\n{listed}\n</tools>\n"
        'To call a tool, reply <tool_call>{"name": ..., "arguments": {...}}</tool_call>'
    )
    return f"{before}\n\n{prompt}" if before else prompt


def call_text(name: str, arguments: Arguments) -> str:
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>{call}</tool_call>"


def _spoken(name: str) -> str:
    """A tool name as words: getUser, get_user -> "get user"."""
    spaced = "".join(f" {c.lower()}" if c.isupper() else " " if c == "_" else c for c in name)
    return spaced.strip()


def _tool_name(source: Source) -> str:
    def make() -> str:
        verb = source.choice(_VERBS) if source.chance(0.8) else source.word(1, 2)
        topic = source.choice(_TOPICS) if source.chance(0.7) else source.word(1, 2)
        forms = (f"{verb}_{topic}", f"{topic}_{verb}", f"{topic}_function", verb + topic.capitalize())
        return source.weighted(forms, (3, 1, 1, 1))

    return source.until_allowed(make)


def _value(source: Source, kind: str, argument: str) -> str | int:
    if kind == "integer":
        return source.number()
    if argument in ("city", "location", "country"):
        return source.city() if source.chance(0.85) else source.foreign()
    if argument in ("name", "user", "customer"):
        return source.full_name() if source.chance(0.75) else source.foreign()
    return source.weighted((source.phrase, source.word, source.foreign, source.full_name), (5, 3, 1, 1))()


def make_tool(source: Source) -> Tool:
    name = _tool_name(source)
    types: dict[str, str] = {}
    wanted = source.choice((0, 1, 1, 1, 1, 2, 2, 3))
    while len(types) < wanted:
        kind = source.choice(("string", "string", "integer"))
        types[source.choice(_ARGUMENTS[kind]) if source.chance(0.85) else source.word(1, 2)] = kind
    said = _spoken(name)
    title = said.capitalize()
    description = source.choice(
        (f"{title}.", f"Use this to {said}.", f"{title} for the user.", f"Tool to {said}")
    )
    if types and source.chance(0.3):
        description += f" {source.choice(('by', 'with', 'for', 'using'))} {' and '.join(types)}"
    properties = {
        argument: {"description": f"The {argument}", "type": kind} if source.chance(0.25) else {"type": kind}
        for argument, kind in types.items()
    }
    parameters = {"type": "object", "properties": properties, "required": list(types)}
    function = {"name": name, "description": description, "parameters": parameters}
    return Tool(name, types, {"type": "function", "function": function})


def _quoted(source: Source, value: str | int) -> str:
    if isinstance(value, int) or source.chance(0.6):
        return str(value)
    return source.choice(("'{}'", '"{}"')).format(value)


def request(source: Source, tool: Tool) -> tuple[str, Arguments]:
    """What a user asks so that `tool` must be called, and the arguments of that call."""
    said = _spoken(tool.name)
    title, topic = said.capitalize(), said.split()[-1]
    values: Arguments = {a: _value(source, kind, a) for a, kind in tool.types.items()}
    if not values:
        forms = [title, f"Please {said}.", f"What is the value of {tool.name}()? Use the tool.",
                 f"Call {tool.name}.", f"Can you {said}?"]  # fmt: skip
        return source.choice(forms), values
    if source.chance(0.15):
        call = f"{tool.name}({', '.join(str(v) for v in values.values())})"
        forms = ["What is the value of {}? Use the tool.", "Call {}", "Run {}.", "Please use {}."]
        return source.choice(forms).format(call), values
    if len(values) == 1:
        ((argument, value),) = values.items()
        v = _quoted(source, value)
        forms = [
            f"{title} {v}", f"{title} for {v}.", f"Please {said} with {argument} {v}.",
            f"What is the {topic} in {v}?", f"What is the {topic} of {v}?", f"Can you {said} for {v}?",
            f"I need to {said}: {v}", f"{v}: {said} please", f"Use the tool to {said} {v}.",
            f"{title} where the {argument} is {v}.",
        ]  # fmt: skip
        return source.choice(forms), values
    listed = list(values.items())
    if source.chance(0.25):
        return f"{title} {source.choice((', ', ' and ')).join(_quoted(source, v) for _, v in listed)}", values
    if source.chance(0.3):
        source.random.shuffle(listed)
    pair = source.choice(("{} {}", "{} is {}", "{}: {}", "the {} is {}", "{} = {}"))
    joined = source.choice((", ", " and ")).join(pair.format(a, _quoted(source, v)) for a, v in listed)
    forms = ["{} with {}.", "Please {}, {}.", "{}: {}", "I want to {}; {}", "Can you {} where {}?"]
    sentence = source.choice(forms)
    return sentence.format(said if source.chance(0.5) else title, joined), values


def _result(source: Source, tool: Tool) -> tuple[str, str]:
    """What the tool returns, and what the assistant makes of it."""
    kind = source.integer(0, 3)
    if kind == 0:
        value = source.choice((str(source.number()), source.phrase(), source.full_name(), source.city()))
        return value, f"The result is {value}."
    if kind == 1:
        field = source.choice(("result", "value", "answer", _spoken(tool.name).split()[-1]))
        found = source.choice((source.number(), source.phrase(), source.full_name()))
        return json.dumps({field: found}, ensure_ascii=False), f"The {field} is {found}."
    if kind == 2:
        one, two = source.sample(("status", "price", "time", "total", "name", "id", "color", "city"), 2)
        table = {one: source.choice((source.number(), source.phrase())), two: source.word()}
        answer = f"The {one} is {table[one]} and the {two} is {table[two]}."
        return json.dumps(table, ensure_ascii=False), answer
    sky = source.choice(("sunny", "cloudy", "rainy", "windy", "foggy", "clear"))
    return f"{sky}, {(degrees := source.integer(-9, 39))} degrees", f"It is {sky}, {degrees} degrees."


def tools(source: Source) -> Sample:
    available: dict[str, Tool] = {}
    wanted = source.choice((1, 1, 2, 2, 3))
    while len(available) < wanted:
        tool = make_tool(source)
        available[tool.name] = tool
    before = source.choice(words.SYSTEM_PROMPTS) if source.chance(0.3) else ""
    system: Message = ("system", tool_prompt(list(available.values()), before))
    kind = source.integer(0, 9)
    if kind >= 8:
        plain = chat(source) if kind == 8 else facts(source)
        return Sample([system, *(m for m in plain.messages if m[0] != "system")], "tool_none")
    tool = source.choice(list(available.values()))
    asked, values = request(source, tool)
    messages: list[Message] = [system, ("user", asked), ("assistant", call_text(tool.name, values))]
    if kind <= 4:
        return Sample(messages, "tool_call")
    result, answer = _result(source, tool)
    return Sample([*messages, ("tool", result), ("assistant", answer)], "tool_answer")
