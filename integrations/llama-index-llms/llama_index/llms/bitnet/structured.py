"""Structured prediction: answers held to the schema of a pydantic class, token by token.

llama_index.core would show the model a schema and hope, or disguise it as a tool. Other program modes than
the default are left to it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any

import pydantic_core
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.llm import LLM
from llama_index.core.program.utils import FlexibleModel, create_flexible_model
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import Model, PydanticProgramMode
from llama_index.llms.bitnet.messages import with_suffix
from llama_index_instrumentation import get_dispatcher

dispatcher = get_dispatcher(__name__)

# The words that llama_index.core has for this.
_HINT = (
    "\n\nHere's a JSON schema to follow:\n{schema}\n\n"
    "Output a valid JSON object but do not repeat the schema.\n"
)


class TruncatedOutputError(ValueError):
    """JSON was cut off by the token limit. `text`: what there is of it."""

    def __init__(self, output_cls: type[BaseModel], text: str) -> None:
        super().__init__(
            f"the {output_cls.__name__} was cut off after the last token that max_tokens or the context "
            "allows; allow more max_tokens, or shorten the prompt"
        )
        self.text = text


class StructuredPrediction(LLM):
    """The four methods of LLM that predict an object, for a class whose chat takes `response_format`."""

    schema_in_prompt: bool = True
    """Whether structured prediction also tells the model the schema that its answer is held to."""

    @dispatcher.span
    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """An object of `output_cls`.

        Raises TruncatedOutputError, and pydantic's ValidationError if validators of the class refuse what its
        schema allows.
        """
        if not self._by_schema:
            predicted: Model = super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return predicted
        dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        messages = self._schema_messages(output_cls, prompt, prompt_args)
        result = _parse(output_cls, self.chat(messages, **_with_schema(output_cls, llm_kwargs)))
        dispatcher.event(LLMStructuredPredictEndEvent(output=result))
        return result

    @dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """`structured_predict` for event loops."""
        if not self._by_schema:
            predicted: Model = await super().astructured_predict(
                output_cls, prompt, llm_kwargs, **prompt_args
            )
            return predicted
        dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        messages = self._schema_messages(output_cls, prompt, prompt_args)
        result = _parse(output_cls, await self.achat(messages, **_with_schema(output_cls, llm_kwargs)))
        dispatcher.event(LLMStructuredPredictEndEvent(output=result))
        return result

    # These two are what stream_structured_predict and its async sibling run, which report the events.

    def _structured_stream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Model | list[Model] | FlexibleModel | list[FlexibleModel], None, None]:
        if not self._by_schema:
            return super()._structured_stream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        messages = self._schema_messages(output_cls, prompt, prompt_args)
        stream = self.stream_chat(messages, **_with_schema(output_cls, llm_kwargs))
        growing = _Growing(output_cls)

        def objects() -> Generator[Model | list[Model] | FlexibleModel | list[FlexibleModel], None, None]:
            for response in stream:
                yield from growing.feed(response)
            yield growing.whole()

        return objects()

    async def _structured_astream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Model | list[Model] | FlexibleModel | list[FlexibleModel], None]:
        if not self._by_schema:
            return await super()._structured_astream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        messages = self._schema_messages(output_cls, prompt, prompt_args)
        stream = await self.astream_chat(messages, **_with_schema(output_cls, llm_kwargs))
        growing = _Growing(output_cls)

        async def objects() -> AsyncGenerator[
            Model | list[Model] | FlexibleModel | list[FlexibleModel], None
        ]:
            async for response in stream:
                for grown in growing.feed(response):
                    yield grown
            yield growing.whole()

        return objects()

    @property
    def _by_schema(self) -> bool:
        return self.pydantic_program_mode == PydanticProgramMode.DEFAULT

    def _schema_messages(
        self, output_cls: type[BaseModel], prompt: PromptTemplate, prompt_args: Mapping[str, Any]
    ) -> Sequence[ChatMessage]:
        # With llm, so that a prompt with a variant for chat models takes that one.
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        if not self.schema_in_prompt:
            return messages
        schema = json.dumps(output_cls.model_json_schema(), ensure_ascii=False)
        return with_suffix(messages, _HINT.format(schema=schema))


def _with_schema(output_cls: type[BaseModel], llm_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    response_format = {
        "type": "json_schema",
        "json_schema": {"name": output_cls.__name__, "schema": output_cls.model_json_schema()},
    }
    return {**(llm_kwargs or {}), "response_format": response_format}


def _parse(output_cls: type[Model], response: ChatResponse) -> Model:
    text = response.message.content or ""
    if response.raw["finish_reason"] == "length":  # type: ignore[index]  # a dict, see responses.py
        raise TruncatedOutputError(output_cls, text)
    return output_cls.model_validate_json(text)


class _Growing:
    """An object while it is answered: whatever there is of it, and in the end a validated one."""

    def __init__(self, output_cls: type[Model]) -> None:
        self._output_cls = output_cls
        self._partial_cls = create_flexible_model(output_cls)
        self._last: Any = None
        self._response: ChatResponse | None = None

    def feed(self, response: ChatResponse) -> Generator[FlexibleModel, None, None]:
        self._response = response
        try:
            value = pydantic_core.from_json(response.message.content or "", allow_partial="trailing-strings")
        except ValueError:  # nothing yet
            return
        if isinstance(value, dict) and value and value != self._last:
            self._last = value
            yield self._partial_cls.model_validate(value)

    def whole(self) -> Any:
        assert self._response is not None  # a stream has a last piece
        return _parse(self._output_cls, self._response)
