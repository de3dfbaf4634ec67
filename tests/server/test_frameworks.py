"""LangChain's and LlamaIndex's own OpenAI clients, unmodified, against the server.

`pytest -m frameworks`, with requirements-frameworks.txt installed.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from hosting import ANSWER, Hosted
from pydantic import BaseModel

pytestmark = [
    pytest.mark.frameworks,
    # Their own, of their dependencies.
    pytest.mark.filterwarnings("default"),
]

TEXT = "What is the capital of France?"


class Place(BaseModel):
    """A city."""

    city: Literal["Paris", "Rome"]


@pytest.fixture
def langchain(server: Hosted) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        model="tiny", base_url=f"{server.url}/v1", api_key="none", temperature=0, stream_usage=True
    )


def test_langchain_chat(langchain: Any) -> None:
    answer = langchain.invoke(TEXT)
    assert answer.content == ANSWER
    assert answer.usage_metadata["input_tokens"] > 10
    assert answer.response_metadata["model_name"] == "tiny"
    chunks = list(langchain.stream(TEXT))
    assert "".join(chunk.content for chunk in chunks) == ANSWER
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 5
    assert [reply.content for reply in langchain.batch([TEXT, TEXT])] == [ANSWER, ANSWER]


def test_langchain_async(langchain: Any) -> None:
    async def ask() -> tuple[str, str]:
        whole = await langchain.ainvoke(TEXT)
        return whole.content, "".join([chunk.content async for chunk in langchain.astream(TEXT)])

    assert asyncio.run(ask()) == (ANSWER, ANSWER)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_structured_output(langchain: Any, method: str) -> None:
    assert isinstance(langchain.with_structured_output(Place, method=method).invoke(TEXT), Place)


def test_langchain_tools(langchain: Any) -> None:
    bound = langchain.bind_tools([Place], tool_choice="Place", parallel_tool_calls=False)
    (call,) = bound.invoke(TEXT).tool_calls
    assert call["name"] == "Place"
    assert call["args"]["city"] in ("Paris", "Rome")
    streamed = None
    for chunk in bound.stream(TEXT):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    assert [(call["name"], set(call["args"])) for call in streamed.tool_calls] == [("Place", {"city"})]


def test_langchain_responses_api(server: Hosted) -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model="tiny", base_url=f"{server.url}/v1", api_key="none", temperature=0, use_responses_api=True
    )
    assert model.invoke(TEXT).text == ANSWER
    assert "".join(chunk.text for chunk in model.stream(TEXT)) == ANSWER


def test_langchain_embeddings(server: Hosted) -> None:
    from langchain_openai import OpenAIEmbeddings

    url = f"{server.url}/v1"
    embeddings = OpenAIEmbeddings(
        model="tiny", base_url=url, api_key="none", check_embedding_ctx_length=False
    )
    vectors = embeddings.embed_documents(["a fox", "a dog"])
    assert len(vectors) == 2
    assert sum(x * x for x in vectors[0]) == pytest.approx(1, abs=1e-5)


@pytest.fixture
def llamaindex(server: Hosted) -> Any:
    from llama_index.llms.openai_like import OpenAILike

    return OpenAILike(
        model="tiny",
        api_base=f"{server.url}/v1",
        api_key="none",
        temperature=0,
        is_chat_model=True,
        is_function_calling_model=True,
        max_tokens=64,
    )


def test_llamaindex_chat(llamaindex: Any) -> None:
    from llama_index.core.llms import ChatMessage

    question = [ChatMessage(role="user", content=TEXT)]
    assert llamaindex.chat(question).message.content == ANSWER
    assert list(llamaindex.stream_chat(question))[-1].message.content == ANSWER
    assert llamaindex.complete(TEXT).text == ANSWER

    async def ask() -> str:
        stream = await llamaindex.astream_chat(question)
        return "".join([part.delta or "" async for part in stream])

    assert asyncio.run(ask()) == ANSWER


def test_llamaindex_structured_output(llamaindex: Any) -> None:
    from llama_index.core.prompts import PromptTemplate

    place = llamaindex.structured_predict(Place, PromptTemplate("{text}"), text=TEXT)
    assert isinstance(place, Place)


def test_llamaindex_completion(server: Hosted) -> None:
    from llama_index.llms.openai_like import OpenAILike

    model = OpenAILike(
        model="tiny",
        api_base=f"{server.url}/v1",
        api_key="none",
        temperature=0,
        is_chat_model=False,
        max_tokens=8,
    )
    whole = model.complete("Once upon a time").text
    assert whole
    assert list(model.stream_complete("Once upon a time"))[-1].text == whole
