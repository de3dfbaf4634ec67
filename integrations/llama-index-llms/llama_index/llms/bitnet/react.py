"""ReAct: agents that read a model's steps from its text. A grammar makes every step one that can be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.base.llms.types import ChatMessage

if TYPE_CHECKING:
    from llama_index.core.agent.react.types import BaseReasoningStep
    from llama_index.core.tools.types import BaseTool

MAX_THOUGHT = 150  # characters; a small model may not find an end by itself
MAX_ANSWER = 2000

# No colon, because ReActOutputParser finds "Action:" and its like also inside of a thought.
_THOUGHT = rf"/[^\s:][^\n:]{{0,{MAX_THOUGHT - 1}}}/"

COMPACT_HEADER = """\
You answer questions with the help of tools.
{tool_desc}{context}
To use a tool, reply:
Thought: what to do next
Action: the tool, one of {tool_names}
Action Input: its arguments as JSON, such as {{"input": "hello"}}
You are told the result as Observation. When you know the answer, reply:
Thought: I can answer without using any more tools.
Answer: the answer"""


class CompactReActFormatter(ReActChatFormatter):
    """For ReActAgent(formatter=...): the same conversation behind a header a quarter as long as LlamaIndex's,
    which alone fills half the context of a small model."""

    system_header: str = COMPACT_HEADER

    def format(
        self,
        tools: Sequence[BaseTool],
        chat_history: list[ChatMessage],
        current_reasoning: list[BaseReasoningStep] | None = None,
    ) -> list[ChatMessage]:
        # The agent puts its own long header in the place of one that does not mention the context.
        context = f"\n{self.context}\n" if self.context else ""
        header = self.system_header.replace("{context}", context.replace("{", "{{").replace("}", "}}"))
        plain = ReActChatFormatter(system_header=header, observation_role=self.observation_role)
        return plain.format(tools, chat_history, current_reasoning)


def react_format(tools: Sequence[BaseTool]) -> dict[str, Any]:
    """The response_format of a step: a thought, and either a call of one of `tools` or an answer."""
    schemas = {}
    calls = []
    for index, tool in enumerate(tools):
        rule = f"arguments_{index}"
        schemas[rule] = tool.metadata.get_parameters_dict()
        calls.append(f"{_literal(tool.metadata.get_name() + chr(10) + 'Action Input: ')} {rule}")
    step = '"Answer: " ANSWER'
    lines = [f"THOUGHT: {_THOUGHT}", f"ANSWER: /[^\\s](?s:.{{0,{MAX_ANSWER - 1}}})/"]
    if calls:
        step = f'("Action: " call | {step})'
        lines.append(f"call: {' | '.join(calls)}")
    lines.insert(0, f'start: "Thought: " THOUGHT "\\n" {step}')
    return {"type": "grammar", "grammar": "\n".join(lines), "schemas": schemas}


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
