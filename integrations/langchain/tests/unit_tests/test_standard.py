"""LangChain's unit suites, as they are."""

from __future__ import annotations

from typing import Any

from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests

from langchain_bitnet import BitNetEmbeddings, ChatBitNet

ENVIRONMENT = {"BITNET_BASE_URL": "http://127.0.0.1:9", "BITNET_API_KEY": "key-of-the-environment"}
FROM_ENVIRONMENT = {"base_url": "http://127.0.0.1:9", "api_key": "key-of-the-environment"}


class TestChatBitNet(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[ChatBitNet]:
        return ChatBitNet

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return ENVIRONMENT, {}, FROM_ENVIRONMENT


class TestBitNetEmbeddings(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[BitNetEmbeddings]:
        return BitNetEmbeddings

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return ENVIRONMENT, {}, FROM_ENVIRONMENT
