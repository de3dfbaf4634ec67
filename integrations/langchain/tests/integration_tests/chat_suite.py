"""LangChain's integration suite for chat models, set up for ChatBitNet; where it runs the tests say."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langchain_bitnet import ChatBitNet


class ChatBitNetSuite(ChatModelIntegrationTests):
    """Everything a text model can do is switched on.

    where: the fields that say which model answers. other: the name of another one there.
    """

    method: ClassVar[str]
    where: ClassVar[dict[str, Any]]
    other: ClassVar[str]

    @property
    def chat_model_class(self) -> type[ChatBitNet]:
        return ChatBitNet

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**self.where, "seed": 1, "temperature": 0, "max_tokens": 100}

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": self.method}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return self.other

    @property
    def supported_usage_metadata_details(self) -> dict[Literal["invoke", "stream"], list[Any]]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        """The second time the same prompt is asked, most of it was computed before."""
        chat = ChatBitNet(**{**self.chat_model_params, "max_tokens": 8})
        prompt = "Tell me a story about a brave fox, a small house and a very long road to the sea."
        chat.invoke(prompt)
        if not stream:
            return chat.invoke(prompt)
        first, *rest = list(chat.stream(prompt))
        return sum(rest, first)  # type: ignore[return-value]
