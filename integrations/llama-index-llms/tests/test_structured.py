"""Structured prediction on a scripted engine: held to the schema in all four methods."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.prompts.base import SelectorPromptTemplate
from llama_index.core.prompts.utils import is_chat_model
from llama_index.core.types import PydanticProgramMode
from llama_index.llms.bitnet import BitNet, TruncatedOutputError
from pydantic import BaseModel, Field, ValidationError, field_validator
from scripted import MakeLLM, calling, prompts_of, requests_of

from bitnet.testing import FakeReply

PROMPT = PromptTemplate("A song about {topic}.")


class Song(BaseModel):
    """A song."""

    title: str = Field(description="What it is called.")
    years: list[int] = Field(default_factory=list)

    @field_validator("title")
    @classmethod
    def _no_noise(cls, title: str) -> str:
        if title == "noise":
            raise ValueError("that is noise")
        return title


TEXT = '{"title": "Hey \\"you\\"", "years": [1999, 2001]}'
SONG = Song(title='Hey "you"', years=[1999, 2001])


def predict(llm: BitNet, way: str, prompt: Any = PROMPT, **kwargs: Any) -> list[Any]:
    async def apredict() -> list[Any]:
        if "stream" in way:
            stream = await llm.astream_structured_predict(Song, prompt, topic="x{y}", **kwargs)
            return [value async for value in stream]
        return [await llm.astructured_predict(Song, prompt, topic="x{y}", **kwargs)]

    if way.startswith("a"):
        return asyncio.run(apredict())
    if "stream" in way:
        return list(llm.stream_structured_predict(Song, prompt, topic="x{y}", **kwargs))
    return [llm.structured_predict(Song, prompt, topic="x{y}", **kwargs)]


WAYS = pytest.mark.parametrize("way", ["sync", "async", "stream", "astream"])


@WAYS
def test_the_four_methods(make_llm: MakeLLM, way: str) -> None:
    llm = make_llm(FakeReply(list(TEXT)), system_prompt="Be kind.")
    values = predict(llm, way)
    assert values[-1] == SONG
    (request,) = requests_of(llm)
    assert request.response_format == {
        "type": "json_schema",
        "json_schema": {"name": "Song", "schema": Song.model_json_schema()},
    }
    schema = json.dumps(Song.model_json_schema())
    assert prompts_of(llm) == [
        "system: Be kind.\nuser: A song about x{y}.\n\nHere's a JSON schema to follow:\n"
        f"{schema}\n\nOutput a valid JSON object but do not repeat the schema.\n"
    ]
    if "stream" in way:
        titles = [value.title for value in values]
        assert titles[0] == ""
        assert titles == sorted(titles, key=len)
        assert [1999] in [value.years for value in values]
        assert all(isinstance(value, BaseModel) for value in values)


@WAYS
def test_cut_and_invalid_answers(make_llm: MakeLLM, way: str) -> None:
    with pytest.raises(TruncatedOutputError, match="the Song was cut off") as caught:
        predict(make_llm(FakeReply(list(TEXT)), max_tokens=12), way)
    assert caught.value.text == TEXT[:12]
    with pytest.raises(ValidationError, match="that is noise"):
        predict(make_llm('{"title": "noise"}'), way)


@WAYS
def test_nothing_of_the_caller_changes(make_llm: MakeLLM, way: str) -> None:
    options = {"temperature": 0.5}
    prompt = PromptTemplate("A song about {topic}.")
    before = copy.deepcopy((options, prompt.template, prompt.output_parser, prompt.kwargs))
    llm = make_llm(TEXT)
    predict(llm, way, prompt, llm_kwargs=options)
    assert (options, prompt.template, prompt.output_parser, prompt.kwargs) == before
    assert requests_of(llm)[0].sampling.temperature == 0.5


@WAYS
def test_the_prompt_for_chat_models_is_taken(make_llm: MakeLLM, way: str) -> None:
    chat = ChatPromptTemplate(
        message_templates=[
            ChatMessage(role=MessageRole.SYSTEM, content="You sing."),
            ChatMessage(role=MessageRole.USER, content="Sing of {topic}."),
        ]
    )
    selector = SelectorPromptTemplate(default_template=PROMPT, conditionals=[(is_chat_model, chat)])
    llm = make_llm(TEXT, system_prompt="Be kind.", schema_in_prompt=False)
    assert predict(llm, way, selector)[-1] == SONG
    # One system message, because many chat templates refuse a second one.
    assert prompts_of(llm) == ["system: Be kind.\n\nYou sing.\nuser: Sing of x{y}."]


def test_other_program_modes_are_the_frameworks(make_llm: MakeLLM) -> None:
    song = {"title": "Hey", "years": []}
    llm = make_llm(calling(("Song", song)), pydantic_program_mode=PydanticProgramMode.FUNCTION)
    assert predict(llm, "sync") == [Song(**song)]
    assert predict(llm, "async") == [Song(**song)]
    assert predict(llm, "stream")[-1].title == "Hey"
    assert predict(llm, "astream")[-1].title == "Hey"
    assert all(request.response_format is None for request in requests_of(llm))
    assert [tool.name for tool in requests_of(llm)[0].tools] == ["Song"]


@pytest.mark.parametrize("way", ["chat", "complete", "stream_chat", "achat", "acomplete", "astream_chat"])
def test_as_structured_llm(make_llm: MakeLLM, way: str) -> None:
    structured = make_llm(FakeReply(list(TEXT))).as_structured_llm(Song)
    question: Any = "Hi {there}" if "complete" in way else [ChatMessage(content="Hi {there}")]

    async def run() -> Any:
        response = getattr(structured, way)(question)
        response = await response if way.startswith("a") else response
        if "stream" not in way:
            return response
        return [r async for r in response][-1] if way.startswith("a") else list(response)[-1]

    response = asyncio.run(run())
    assert response.raw == SONG
    assert Song.model_validate_json(str(response if "complete" in way else response.message.content)) == SONG
    assert prompts_of(structured.llm)[0].startswith("user: Hi {there}\n\nHere's a JSON schema")
