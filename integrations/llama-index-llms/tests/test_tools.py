"""Tool calling on a scripted engine: what is asked of the model, and where its calls are found."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole, ToolCallBlock
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.tools import FunctionTool
from llama_index.llms.bitnet import BitNet
from pydantic import BaseModel
from scripted import MakeLLM, calling, requests_of

import bitnet
from bitnet import NamedTool


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def weather(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


TOOLS = [FunctionTool.from_defaults(add), FunctionTool.from_defaults(weather)]
ADD = ("add", {"a": 1, "b": 2})
WEATHER = ("weather", {"city": "Oslo"})


def ask(llm: BitNet, *, is_async: bool = False, stream: bool = False, **kwargs: Any) -> list[Any]:
    async def aask() -> list[Any]:
        if stream:
            return [piece async for piece in await llm.astream_chat_with_tools(TOOLS, "Hi", **kwargs)]
        return [await llm.achat_with_tools(TOOLS, "Hi", **kwargs)]

    if is_async:
        return asyncio.run(aask())
    if stream:
        return list(llm.stream_chat_with_tools(TOOLS, "Hi", **kwargs))
    return [llm.chat_with_tools(TOOLS, "Hi", **kwargs)]


FOUR_WAYS = pytest.mark.parametrize(
    ("is_async", "stream"), [(False, False), (False, True), (True, False), (True, True)]
)


@FOUR_WAYS
def test_calls_are_in_both_places(make_llm: MakeLLM, is_async: bool, stream: bool) -> None:
    llm = make_llm(calling(ADD, WEATHER, text="Let me see."))
    responses = ask(llm, is_async=is_async, stream=stream, allow_parallel_tool_calls=True)
    message = responses[-1].message
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    assert [(block.tool_name, block.tool_kwargs) for block in blocks] == [ADD, WEATHER]
    assert [call["function"]["name"] for call in message.additional_kwargs["tool_calls"]] == [
        "add",
        "weather",
    ]
    assert message.content == "Let me see."
    selections = llm.get_tool_calls_from_response(responses[-1])
    assert [(call.tool_name, call.tool_kwargs) for call in selections] == [ADD, WEATHER]
    assert len({call.tool_id for call in selections}) == 2
    assert all(call.tool_id for call in selections)
    assert responses[-1].raw["finish_reason"] == "tool_calls"
    shown = "".join(response.delta or "" for response in responses)
    assert "tool_call" not in shown + message.content
    for response in responses[:-1]:
        assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []


@pytest.mark.parametrize(
    ("kwargs", "choice", "parallel"),
    [
        ({}, "auto", False),
        ({"tool_required": True}, "required", False),
        ({"tool_required": True, "tool_choice": None}, "required", False),
        ({"tool_choice": "any"}, "required", False),
        ({"tool_choice": "none"}, "none", False),
        ({"tool_choice": "weather", "allow_parallel_tool_calls": True}, NamedTool("weather"), True),
        ({"tool_choice": {"type": "function", "function": {"name": "add"}}}, NamedTool("add"), False),
    ],
)
def test_the_choice_of_tools(make_llm: MakeLLM, kwargs: dict[str, Any], choice: Any, parallel: bool) -> None:
    llm = make_llm("ok")
    ask(llm, **kwargs)
    (request,) = requests_of(llm)
    assert (request.tool_choice, request.parallel_tool_calls) == (choice, parallel)
    assert [tool.name for tool in request.tools] == ["add", "weather"]
    assert request.tools[0].parameters["required"] == ["a", "b"]


def test_a_tool_that_is_not_there(make_llm: MakeLLM) -> None:
    with pytest.raises(bitnet.ValidationError, match="names the tool 'fly'"):
        ask(make_llm(), tool_choice="fly")


def test_no_tools(make_llm: MakeLLM) -> None:
    llm = make_llm("ok")
    response = llm.chat_with_tools([], "Hi", tool_required=True, tool_choice="auto")
    assert (response.message.content, requests_of(llm)[0].tools) == ("ok", ())
    with pytest.raises(ValueError, match="at least one tool call"):
        llm.get_tool_calls_from_response(response)
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []


def test_tools_of_one_call(make_llm: MakeLLM) -> None:
    llm = make_llm(calling(WEATHER))
    response = llm.chat(
        [ChatMessage(content="Hi")], tools=TOOLS, tool_choice="weather", parallel_tool_calls=False
    )
    assert [call.tool_kwargs for call in llm.get_tool_calls_from_response(response)] == [{"city": "Oslo"}]
    assert requests_of(llm)[0].tool_choice == NamedTool("weather")


def test_the_history_stays_as_it_was(make_llm: MakeLLM) -> None:
    history = [ChatMessage(role=MessageRole.SYSTEM, content="Be brief.")]
    llm = make_llm("ok")
    llm.chat_with_tools(TOOLS, ChatMessage(content="Hi"), chat_history=history)
    assert len(history) == 1
    assert [message.role for message in requests_of(llm)[0].messages or ()] == ["system", "user"]


def test_long_descriptions_are_passed_on(make_llm: MakeLLM) -> None:
    llm = make_llm("ok")
    llm.chat_with_tools([FunctionTool.from_defaults(add, description="x" * 5000)], "Hi")
    assert requests_of(llm)[0].tools[0].description == "x" * 5000


@pytest.mark.parametrize("is_async", [False, True])
def test_predict_and_call(make_llm: MakeLLM, is_async: bool) -> None:
    def run(llm: BitNet, **kwargs: Any) -> Any:
        if is_async:
            return asyncio.run(llm.apredict_and_call(TOOLS, "Hi", **kwargs))
        return llm.predict_and_call(TOOLS, "Hi", **kwargs)

    assert run(make_llm(calling(ADD))).response == "3"
    both = run(make_llm(calling(ADD, WEATHER)), allow_parallel_tool_calls=True)
    assert [source.content for source in both.sources] == ["3", "sunny in Oslo"]
    # Without tool calling, by a step of ReAct, whose formatter and parser llama_index.core forgets.
    step = 'Thought: I add.\nAction: add\nAction Input: {"a": 4, "b": 5}'
    llm = make_llm(step, tool_calling=False)
    assert run(llm).response == "9"
    (request,) = requests_of(llm)
    assert (request.response_format or {})["type"] == "grammar"
    assert request.stop == ("\nObservation:",)


class Song(BaseModel):
    """A song."""

    title: str
    year: int


@pytest.mark.parametrize("is_async", [False, True])
def test_programs_that_call_functions(make_llm: MakeLLM, is_async: bool) -> None:
    song = {"title": "Hey", "year": 1999}
    llm = make_llm(calling(("Song", song)))
    program = FunctionCallingProgram.from_defaults(
        output_cls=Song, prompt_template_str="A song about {topic}.", llm=llm
    )
    result = asyncio.run(program.acall(topic="x")) if is_async else program(topic="x")
    assert result == Song(**song)
    assert requests_of(llm)[0].tool_choice == "required"
    streamed = list(program.stream_call(topic="x"))
    assert streamed[-1].model_dump() == song  # type: ignore[union-attr]
