"""The grammar of answers that may or must call tools; running it is left to constraints.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bitnet.errors import ConstraintError
from bitnet.values import NamedTool, Tool, ToolChoice

from .constraints import GRAMMAR_HEADER, Constraint, compile_cached
from .grammar_vocabulary import GrammarVocabulary
from .json_schema import JsonGrammar
from .response_formats import ANSWER, Rules, answer_rules
from .tokenizer import Tokenizer
from .tool_calls import CLOSER, OPENER

MAX_PARALLEL_CALLS = 16  # of one answer: a small model may not find an end by itself


def tool_constraint(
    tools: Sequence[Tool],
    tool_choice: ToolChoice,
    parallel: bool,
    response_format: Mapping[str, Any] | None,
    tokenizer: Tokenizer,
) -> Constraint:
    """What an answer must look like where there are tools, at least one, and the choice is not "none".

    "required" and a named tool: one call, or up to 16 if `parallel`, from the first token on. "auto": text,
    which becomes a call wherever the model writes <tool_call>; behind a call only more calls can follow. With
    a response_format there is no text before, and the answer is either calls or what the format says.
    Raises ConstraintError.
    """
    if isinstance(tool_choice, NamedTool):
        tools = [tool for tool in tools if tool.name == tool_choice.name]
    forced = tool_choice == "required" or isinstance(tool_choice, NamedTool)
    markers = _marker_ids(tokenizer)

    def build(description: Any, vocabulary: GrammarVocabulary) -> Constraint:
        rules = answer_rules(description["response_format"])
        more = f' (("\\n")? opener body closer){{0,{MAX_PARALLEL_CALLS - 1}}}' if parallel else ""
        if forced:
            start = f"start: opener body closer{more}\n"
        elif rules is None:
            opener = _marker_lark(OPENER, markers, before="TEXT ")
            start = _TEXT_OR_CALLS.format(opener=opener, more=more)
        else:
            start = f"start: opener body closer{more} | {ANSWER}\n{rules.lark}"
        calls = _call_rules(tools, markers)
        return Constraint(
            f"{GRAMMAR_HEADER}{start}{calls.lark}",
            vocabulary,
            patterns=[*calls.patterns, *(() if rules is None else rules.patterns)],
            visible_ids=frozenset(markers.values()),
        )

    description = {
        "tools": [tool.to_dict() for tool in tools],
        "forced": forced,
        "parallel": parallel,
        "response_format": {"type": "text"} if response_format is None else response_format,
    }
    constraint = compile_cached(description, tokenizer, build)
    assert constraint is not None
    return constraint


# The lazy rule ends with the first opener: from there on the text cannot be anything but a call.
_TEXT_OR_CALLS = """start: TEXT | first_opener body closer{more}
TEXT: /(?s:.*)/
first_opener: lazy_opener{opener}
lazy_opener[lazy]: TEXT "<tool_call>"
"""


def _call_rules(tools: Sequence[Tool], markers: Mapping[str, int]) -> Rules:
    opener, closer = _marker_lark(OPENER, markers), _marker_lark(CLOSER, markers)
    call, patterns = _call_lark(tools)
    lark = f'opener: "{OPENER}"{opener}\ncloser: "{CLOSER}"{closer}\nbody: ("\\n")? {call} ("\\n")?\n'
    return Rules(lark, patterns)


def _call_lark(tools: Sequence[Tool]) -> tuple[str, list[str]]:
    """An expression for the JSON of a call of one of `tools`, and the patterns in it."""
    grammar = JsonGrammar()
    branches: list[dict[str, Any]] = []
    for tool in tools:
        try:
            arguments = grammar.add(tool.parameters, name=f"tool {tool.name}: ")
            grammar.check(arguments)
        except ConstraintError as error:
            raise ConstraintError(f"tool {tool.name!r}: {error}") from None
        branches.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return grammar.lark({"anyOf": branches}), grammar.patterns


def _marker_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The markers that are control tokens here. As ordinary tokens, their text finds them."""
    ids = {text: tokenizer.token_id(text) for text in (OPENER, CLOSER)}
    return {text: i for text, i in ids.items() if i is not None and i in tokenizer.special_ids}


def _marker_lark(text: str, markers: Mapping[str, int], before: str = "") -> str:
    """The alternative for a marker that is a control token, "" if it is not."""
    return f" | {before}<[{markers[text]}]>" if text in markers else ""
