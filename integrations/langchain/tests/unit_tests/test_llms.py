"""BitNetLLM: LangChain's contract of text models, for which there is no suite."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from bitnet.testing import FakeReply
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ContextOverflowError
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate

from langchain_bitnet import BitNetLLM
from tests.fakes import scripted, settles


def faked(replies: Any, *, engine: dict[str, Any] | None = None, **fields: Any) -> tuple[Any, BitNetLLM]:
    fake, chat = scripted(replies, engine=engine)
    return fake, BitNetLLM(client=chat.client, **fields)


def upper(request: Any) -> FakeReply:
    return FakeReply(
        list(request.prompt.upper()), error=ZeroDivisionError() if request.prompt == "bad" else None
    )


async def test_every_way_to_ask() -> None:
    engine, llm = faked(upper)
    assert llm.invoke("ab") == await llm.ainvoke("ab") == "AB"
    assert list(llm.stream("ab")) == ["A", "B", ""]
    assert [piece async for piece in llm.astream("ab")] == ["A", "B", ""]
    assert llm.batch(["a", "b", "c"]) == await llm.abatch(["a", "b", "c"]) == ["A", "B", "C"]
    assert (PromptTemplate.from_template("say {what}") | llm | StrOutputParser()).invoke(
        {"what": "hi"}
    ) == "SAY HI"
    assert engine.requests[0].messages is None
    assert llm._llm_type == "bitnet"


def test_generations_tell_what_they_cost() -> None:
    _, llm = faked(upper, logprobs=True)
    result = llm.generate(["ab", "c"])
    assert [[g.text for g in answers] for answers in result.generations] == [["AB"], ["C"]]
    assert result.llm_output == {
        "token_usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "cached_tokens": 0},
        "model_name": "fake",
    }
    info = result.generations[0][0].generation_info
    assert info is not None
    assert (info["finish_reason"], info["model_name"], info["model_provider"]) == ("stop", "fake", "bitnet")
    assert info["token_usage"]["completion_tokens"] == 2
    assert [entry["token"] for entry in info["logprobs"]["content"]] == ["A", "B"]


def test_a_list_of_prompts_is_one_call_of_the_engine() -> None:
    """All prompts are there before the first answer is waited for, sync as well."""
    engine, llm = faked(FakeReply("Hello", delay=0.1), engine={"n_batch": 8})
    running: list[int] = []

    class Listener(BaseCallbackHandler):
        def on_llm_end(self, *_: Any, **__: Any) -> None:
            running.append(len(engine.requests))

    assert llm.batch([str(n) for n in range(8)], {"callbacks": [Listener()]}) == ["Hello"] * 8
    assert running[0] == 8
    assert [request.prompt for request in engine.requests] == [str(n) for n in range(8)]


def test_more_prompts_than_an_engine_keeps_waiting() -> None:
    engine, llm = faked("Hello", engine={"n_batch": 2, "max_waiting": 298})
    assert llm.batch(["Hi"] * 700) == ["Hello"] * 700
    assert len(engine.requests) == 700


async def test_errors_stand_where_they_happened() -> None:
    _, llm = faked(upper)
    for results in (
        llm.batch(["a", "bad", "c"], return_exceptions=True),
        await llm.abatch(["a", "bad", "c"], return_exceptions=True),
    ):
        assert [results[0], results[2]] == ["A", "C"]
        assert isinstance(results[1], ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        llm.batch(["a", "bad"])
    with pytest.raises(ZeroDivisionError):
        await llm.abatch(["a", "bad"])


def test_options() -> None:
    engine, llm = faked("one two three", seed=1, stop=["three"], temperature=0.5)
    assert llm.invoke("Hi") == "one two "
    assert llm.invoke("Hi", stop=["two"], seed=2) == "one "
    assert [(r.sampling.seed, r.sampling.temperature) for r in engine.requests] == [(1, 0.5), (2, 0.5)]
    assert len(llm.generate(["Hi"], n=3).generations[0]) == 3
    with pytest.raises(ValueError, match="a stream has one answer"):
        list(llm.stream("Hi", n=2))


def test_another_model_for_one_call(other_model: str) -> None:
    engine, llm = faked("Hello", max_tokens=2)
    info = llm.generate(["Once upon a time"], model=other_model).generations[0][0].generation_info
    assert info is not None
    assert info["model_name"] == other_model
    assert engine.requests == []


async def test_a_prompt_that_does_not_fit() -> None:
    engine, llm = faked("Hello", engine={"n_ctx": 16})
    for prompts in (["x" * 20], ["x", "x" * 20]):
        with pytest.raises(ContextOverflowError):
            llm.generate(prompts)
        with pytest.raises(ContextOverflowError):
            await llm.agenerate(prompts)
    assert await asyncio.to_thread(settles, engine)


def test_the_cache() -> None:
    engine, llm = faked(upper, cache=InMemoryCache())
    assert llm.batch(["a", "b"]) == ["A", "B"]
    assert llm.batch(["a", "b", "c"]) == ["A", "B", "C"]
    assert [request.prompt for request in engine.requests] == ["a", "b", "c"]
    _, other = faked("other", cache=llm.cache)
    assert other.invoke("a") == "other"


def test_tokens_are_the_models() -> None:
    _, llm = faked("")
    assert llm.get_num_tokens("Hé") == 3
    real = BitNetLLM()
    assert real.get_num_tokens("Once upon a time") == len(real.get_token_ids("Once upon a time"))


def test_a_prompt_is_continued_as_it_is() -> None:
    llm = BitNetLLM(temperature=0, max_tokens=12)
    together = llm.batch(["Once upon a time", "The sun"])
    assert together == [llm.invoke("Once upon a time"), llm.invoke("The sun")]
    assert "".join(llm.stream("Once upon a time")) == together[0]
