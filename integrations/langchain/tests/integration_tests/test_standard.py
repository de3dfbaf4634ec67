"""LangChain's integration suites on the bundled model, in this process and without the network."""

from __future__ import annotations

import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests

from langchain_bitnet import BitNetEmbeddings

from .chat_suite import ChatBitNetSuite

pytestmark = pytest.mark.disable_socket


class InProcess(ChatBitNetSuite):
    where = {}  # noqa: RUF012  # never changed

    @pytest.fixture(autouse=True)
    def _other(self, other_model: str) -> None:
        type(self).other = other_model


class TestJsonSchema(InProcess):
    method = "json_schema"


class TestFunctionCalling(InProcess):
    method = "function_calling"


class TestJsonMode(InProcess):
    method = "json_mode"


class TestBitNetEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[BitNetEmbeddings]:
        return BitNetEmbeddings
