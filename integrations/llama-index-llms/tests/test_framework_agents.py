"""The agents of llama_index.core on a scripted engine, and ReAct's steps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.agent.workflow import (
    AgentStream,
    AgentWorkflow,
    FunctionAgent,
    ReActAgent,
    ToolCallResult,
)
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.bitnet import CompactReActFormatter
from llama_index.llms.bitnet.react import react_format
from pydantic import BaseModel
from scripted import MakeLLM, calling, prompts_of, requests_of

from bitnet import BitNet as Model
from bitnet import Request
from bitnet.testing import FakeReply


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def note(text: str, tags: list[str] | None = None) -> str:
    """Write something down."""
    return f"noted {text}"


ADD = FunctionTool.from_defaults(add)
NOTE = FunctionTool.from_defaults(note)


class Sum(BaseModel):
    """The result."""

    value: int


def one_call(request: Request) -> Any:
    """Calls, unless the last message is a result; an object if one is asked for."""
    if request.response_format:
        return '{"value": 7}'
    assert request.messages is not None
    if request.messages[-1].role == "tool":
        return FakeReply(["It is ", request.messages[-1].content])
    return calling(("add", {"a": 3, "b": 4}))


def run(agent: Any, question: str = "What is 3 + 4?", **kwargs: Any) -> tuple[Any, list[Any]]:
    async def events() -> tuple[Any, list[Any]]:
        handler = agent.run(question, max_iterations=4, **kwargs)
        seen = [event async for event in handler.stream_events()]
        return await handler, seen

    return asyncio.run(events())


@pytest.mark.parametrize("streaming", [True, False])
def test_function_agent(make_llm: MakeLLM, streaming: bool) -> None:
    llm = make_llm(one_call)
    result, events = run(FunctionAgent(tools=[ADD], llm=llm, streaming=streaming, system_prompt="Be kind."))
    assert str(result) == "It is 7"
    assert [event.tool_output.content for event in events if isinstance(event, ToolCallResult)] == ["7"]
    deltas = "".join(event.delta for event in events if isinstance(event, AgentStream))
    assert deltas == ("It is 7" if streaming else "")
    first, second = requests_of(llm)
    assert (first.tool_choice, first.parallel_tool_calls) == ("auto", True)
    assert [message.role for message in second.messages or ()] == ["system", "user", "assistant", "tool"]
    call, answer = (second.messages or ())[2:]
    assert call.tool_calls[0].id == answer.tool_call_id
    assert call.tool_calls[0].parsed == {"a": 3, "b": 4}


@pytest.mark.parametrize("streaming", [True, False])
def test_function_agent_with_output_cls(make_llm: MakeLLM, streaming: bool) -> None:
    agent = FunctionAgent(tools=[ADD], llm=make_llm(one_call), streaming=streaming, output_cls=Sum)
    result, _ = run(agent)
    assert result.structured_response == {"value": 7}
    assert result.get_pydantic_model(Sum) == Sum(value=7)


def test_function_agent_with_a_first_choice(make_llm: MakeLLM) -> None:
    llm = make_llm(one_call)
    run(FunctionAgent(tools=[ADD, NOTE], llm=llm, initial_tool_choice="add"))
    assert [getattr(request.tool_choice, "name", request.tool_choice) for request in requests_of(llm)] == [
        "add",
        "auto",
    ]


def test_parallel_calls(make_llm: MakeLLM) -> None:
    def reply(request: Request) -> Any:
        if (request.messages or ())[-1].role == "tool":
            return "Both done."
        return calling(("add", {"a": 1, "b": 2}), ("add", {"a": 3, "b": 4}))

    result, events = run(FunctionAgent(tools=[ADD], llm=make_llm(reply)))
    assert str(result) == "Both done."
    outputs = [event.tool_output.content for event in events if isinstance(event, ToolCallResult)]
    assert sorted(outputs) == ["3", "7"]


@pytest.mark.parametrize("tool_calling", [True, False])
def test_agent_workflow_chooses_the_kind_of_agent(make_llm: MakeLLM, tool_calling: bool) -> None:
    llm = make_llm(one_call if tool_calling else "Thought: Easy.\nAnswer: It is 7", tool_calling=tool_calling)
    workflow = AgentWorkflow.from_tools_or_functions([ADD], llm=llm)
    (agent,) = workflow.agents.values()
    assert isinstance(agent, FunctionAgent if tool_calling else ReActAgent)
    assert str(run(workflow)[0]) == "It is 7"


REACT = [
    'Thought: I add them.\nAction: add\nAction Input: {"a": 3, "b": 4}',
    "Thought: I can answer without using any more tools.\nAnswer: It is 7",
]


@pytest.mark.parametrize("formatter", [ReActChatFormatter, CompactReActFormatter])
@pytest.mark.parametrize("streaming", [True, False])
def test_react_agent(make_llm: MakeLLM, streaming: bool, formatter: Any) -> None:
    tools = [ADD, NOTE]
    llm = make_llm(REACT).for_react(tools)
    agent = ReActAgent(
        tools=tools, llm=llm, streaming=streaming, formatter=formatter(), system_prompt="Be {kind}."
    )
    result, events = run(agent)
    assert str(result) == "It is 7"
    assert [event.tool_output.content for event in events if isinstance(event, ToolCallResult)] == ["7"]
    assert all(request.stop == ("\nObservation:",) for request in requests_of(llm))
    assert all(request.response_format == react_format(tools) for request in requests_of(llm))
    first, second = prompts_of(llm)
    assert first.startswith("system: ")
    assert "Add two numbers." in first
    assert "{context}" not in first
    assert second.endswith("Observation: 7")
    if formatter is CompactReActFormatter:
        assert "Be {kind}." in first  # which older versions of the framework's own header leave out
        assert len(first) < 1400


def test_the_compact_formatter_without_context() -> None:
    messages = CompactReActFormatter().format([ADD], [ChatMessage(content="Hi")])
    assert messages[0].content is not None
    assert "one of add" in messages[0].content
    assert '{"input": "hello"}' in messages[0].content
    assert "{context}" not in messages[0].content


@pytest.mark.parametrize("tools", [[ADD, NOTE], [ADD], []])
def test_every_step_can_be_read(tools: list[FunctionTool]) -> None:
    """On the bundled model, at a temperature at which it babbles."""
    parser = ReActOutputParser()
    with Model() as model:
        for seed in range(3):
            text = model.chat(
                [{"role": "user", "content": "Add 3 and 4."}],
                response_format=react_format(tools),
                temperature=1.5,
                top_k=0,
                top_p=1,
                seed=seed,
                max_tokens=80,
            ).text
            step = parser.parse(text)
            if step.is_done:
                assert step.response.strip()  # type: ignore[attr-defined]
            else:
                assert step.action in [tool.metadata.name for tool in tools]  # type: ignore[attr-defined]
                arguments = step.action_input  # type: ignore[attr-defined]
                if step.action == "add":  # type: ignore[attr-defined]
                    assert {type(arguments["a"]), type(arguments["b"])} == {int}
                else:
                    assert isinstance(arguments["text"], str)
