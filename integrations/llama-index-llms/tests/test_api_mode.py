"""The same classes with `base_url`, against a `bitnet serve` with the bundled model on this machine."""

from __future__ import annotations

import asyncio
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool, ToolMetadata
from llama_index.embeddings.bitnet import BitNetEmbedding
from llama_index.llms.bitnet import BitNet, BitNetSelector, formats
from pydantic import BaseModel

import bitnet

pytest.importorskip("uvicorn", reason="needs bitnet-cpp[server]")

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    command = [sys.executable, "-m", "bitnet", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            log = []
            for line in process.stderr:
                log.append(line)
                if match := re.search(r"serving (\S+) .*on (http://\S+)|serving .* on (http://\S+)", line):
                    break
            else:
                raise AssertionError(f"the server ended: {''.join(log)}")
            # Somebody must read on, or the server will wait once the pipe is full.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield match[2] or match[3]
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
def llm(server_url: str) -> Iterator[BitNet]:
    model = BitNet(base_url=server_url, max_tokens=64, n_ctx=1024)
    yield model
    model.close()


def test_it_answers_as_in_process(llm: BitNet) -> None:
    here = BitNet(max_tokens=64)
    assert llm.complete(QUESTION).text == here.complete(QUESTION).text == "The capital of France is Paris."
    assert llm.complete("The capital of", formatted=True).text == here.complete("The capital of", True).text
    pieces = list(llm.stream_complete(QUESTION))
    assert "".join(piece.delta or "" for piece in pieces) == pieces[-1].text == here.complete(QUESTION).text
    usage, there = here.complete(QUESTION).raw["usage"], pieces[-1].raw["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (
        there["prompt_tokens"],
        there["completion_tokens"],
    )
    assert [asyncio.run(llm.acomplete(QUESTION)).text for _ in range(3)] == [pieces[-1].text] * 3
    assert llm.tokenizer.encode("Hello") == here.tokenizer.encode("Hello")
    assert pickle.loads(pickle.dumps(llm)).complete(QUESTION).text == pieces[-1].text


class Pet(BaseModel):
    """A pet."""

    kind: Literal["cat", "dog"]


def test_forms(llm: BitNet) -> None:
    assert llm.structured_predict(Pet, PromptTemplate("A pet.")).kind in ("cat", "dog")
    *_, pet = llm.stream_structured_predict(Pet, PromptTemplate("A pet."))
    assert pet.kind in ("cat", "dog")
    choices = [ToolMetadata(name=str(i), description=f"About {i}.") for i in range(3)]
    assert BitNetSelector(llm).select(choices, "Which?").ind in range(3)
    verdict = llm.with_options(response_format=formats.YES_NO).complete("Is it?").text
    assert verdict in ("YES", "NO")
    compared = llm.with_options(response_format=formats.PAIRWISE).complete("A or B?").text
    assert re.fullmatch(r"[^\[]+\[\[[ABC]\]\]", compared)


def test_an_agent(llm: BitNet) -> None:
    def get_weather(city: str) -> str:
        """Get the weather of a city."""
        return f"It is sunny in {city}."

    tool = FunctionTool.from_defaults(get_weather)
    response = llm.chat_with_tools([tool], "What is the weather in Oslo?", tool_required=True)
    assert [call.tool_name for call in llm.get_tool_calls_from_response(response)] == ["get_weather"]

    async def run() -> Any:
        agent = FunctionAgent(tools=[tool], llm=llm)
        return await agent.run("What is the weather in Oslo?", max_iterations=4)

    assert "Oslo" in str(asyncio.run(run()))


def test_vectors_and_answers(llm: BitNet, server_url: str) -> None:
    embedding = BitNetEmbedding(base_url=server_url)
    here = BitNetEmbedding()
    assert embedding.get_text_embedding("Hello") == pytest.approx(here.get_text_embedding("Hello"), abs=1e-6)
    index = VectorStoreIndex.from_documents([Document(text="Mira lives in Tolbek.")], embed_model=embedding)
    assert "Tolbek" in str(index.as_query_engine(llm=llm).query("Where does Mira live?"))


def test_a_server_that_is_not_there() -> None:
    gone = BitNet(base_url="http://127.0.0.1:9/v1", max_retries=0, timeout=5)
    assert gone.metadata.context_window == 2048 - 64
    with pytest.raises(bitnet.BitNetError):
        gone.complete("Hi")
