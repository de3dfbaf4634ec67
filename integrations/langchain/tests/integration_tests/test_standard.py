"""LangChain's integration suites on the bundled model, in this process and without the network."""

from __future__ import annotations

import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests

from langchain_bitnet import BitNetEmbeddings

from .chat_suite import ChatBitNetSuite

pytestmark = pytest.mark.disable_socket


@pytest.fixture(autouse=True, scope="module")
def _other(other_model: str) -> None:
    ChatBitNetSuite.other = other_model


class TestJsonSchema(ChatBitNetSuite):
    method = "json_schema"


class TestFunctionCalling(ChatBitNetSuite):
    method = "function_calling"


class TestJsonMode(ChatBitNetSuite):
    method = "json_mode"


class TestBitNetEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[BitNetEmbeddings]:
        return BitNetEmbeddings
