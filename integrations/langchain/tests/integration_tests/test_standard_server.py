"""LangChain's integration suites in api mode, against a `bitnet serve` with the bundled model."""

from __future__ import annotations

import pytest
from langchain_core.messages import HumanMessage
from langchain_tests.integration_tests import EmbeddingsIntegrationTests

from langchain_bitnet import BitNetEmbeddings, BitNetLLM, ChatBitNet, ContextOverflowError

from .chat_suite import ChatBitNetSuite


class OnServer(ChatBitNetSuite):
    other = "other"

    @pytest.fixture(autouse=True)
    def _where(self, server_url: str) -> None:
        type(self).where = {"base_url": server_url, "model": "bitnet-tiny"}

    @property
    def chat_model_params(self) -> dict[str, object]:
        # The suite looks at these while it collects, when no server is needed yet.
        return super().chat_model_params if hasattr(type(self), "where") else {}


class TestJsonSchema(OnServer):
    method = "json_schema"


class TestFunctionCalling(OnServer):
    method = "function_calling"


class TestJsonMode(OnServer):
    method = "json_mode"


class TestBitNetEmbeddings(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _where(self, server_url: str) -> None:
        type(self).url = server_url

    url = ""

    @property
    def embeddings_class(self) -> type[BitNetEmbeddings]:
        return BitNetEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, str]:
        return {"base_url": self.url, "model": "bitnet-tiny"}


def test_the_server_says_what_this_process_says(server_url: str) -> None:
    """The same model, so the same tokens, whichever way it is asked."""
    question = "What is the capital of France?"
    here, there = (
        ChatBitNet(**where, temperature=0, max_tokens=30, top_logprobs=2)
        for where in ({}, {"base_url": server_url, "model": "bitnet-tiny"})
    )
    one, other = here.invoke(question), there.invoke(question)
    assert one.content == other.content == "The capital of France is Paris."
    assert one.usage_metadata is not None
    assert other.usage_metadata is not None
    for key in ("input_tokens", "output_tokens"):
        assert one.usage_metadata[key] == other.usage_metadata[key]  # type: ignore[literal-required]
    tokens = [
        [entry["token"] for entry in message.response_metadata["logprobs"]["content"]]
        for message in (one, other)
    ]
    assert tokens[0] == tokens[1]
    assert there.get_num_tokens(question) == here.get_num_tokens(question)
    messages = [HumanMessage(question)]
    assert there.get_num_tokens_from_messages(messages) == here.get_num_tokens_from_messages(messages)


async def test_errors_of_the_server_are_the_errors_of_this_process(server_url: str) -> None:
    chat = ChatBitNet(base_url=server_url, model="bitnet-tiny")
    with pytest.raises(ContextOverflowError):
        chat.invoke("word " * 5000)
    with pytest.raises(ContextOverflowError):
        await chat.ainvoke("word " * 5000)


def test_text_and_vectors_of_the_server(server_url: str) -> None:
    prompts = ["Once upon a time", "The capital of Japan is", "Two and two"]
    options = {"temperature": 0, "max_tokens": 8}
    here = BitNetLLM(**options)
    there = BitNetLLM(**options, base_url=server_url, model="bitnet-tiny")
    assert there.batch(prompts) == here.batch(prompts)
    vectors = BitNetEmbeddings(base_url=server_url, model="bitnet-tiny").embed_documents(prompts)
    for vector, expected in zip(vectors, BitNetEmbeddings().embed_documents(prompts), strict=True):
        assert vector == pytest.approx(expected, abs=1e-6)
