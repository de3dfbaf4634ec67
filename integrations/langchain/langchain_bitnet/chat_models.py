"""ChatBitNet: BitNet models as a LangChain chat model."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import BaseModel, ConfigDict

from ._answers import PROVIDER, BegunCalls, Call, Chunks
from ._connection import SharedConnection
from ._errors import translated
from ._messages import to_messages
from ._options import GenerationFields
from ._structured import METHODS, Method, response_format, text_parser, tool_parser, with_raw
from ._tools import ToolLike, to_tool_choice, to_tools


class ChatBitNet(SharedConnection, GenerationFields, BaseChatModel):
    """A BitNet model that holds conversations, in this process or on a server.

        chat = ChatBitNet()                                # the bundled model, computed in this process
        chat = ChatBitNet(model="model.gguf", n_ctx=4096, temperature=0)
        chat = ChatBitNet(base_url="http://localhost:8080", model="bitnet-tiny")
        chat.invoke("What is the capital of France?").content

    Tool calls and structured output are enforced while the answer is written, so they are always valid. An
    object costs nothing to make; the model is loaded with the first call and shared by all who ask for the
    same. Closing a stream, or cancelling the task that waits, stops the computation.

    Raises ContextOverflowError (LangChain's and bitnet's) if the prompt does not fit, TruncatedOutputError if
    a call or JSON was cut, and the errors of bitnet.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    parallel_tool_calls: bool = False
    """Whether one answer may hold several calls. Small models do not know when to stop."""
    reasoning: bool | None = None
    """Whether an answer's <think>...</think> goes to additional_kwargs["reasoning_content"]; otherwise it
    stays in the text."""
    template_args: dict[str, Any] | None = None
    """Further variables for the model's chat template."""

    @property
    def _llm_type(self) -> str:
        return "chat-bitnet"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """The key of LangChain's caches: everything that can change an answer."""
        return {
            **self.connection_identity(),
            **self.generation_identity(),
            "parallel_tool_calls": self.parallel_tool_calls,
            "reasoning": self.reasoning,
            "template_args": self.template_args,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider=PROVIDER, ls_model_name=self.label_of(kwargs.get("model")), ls_model_type="chat"
        )
        temperature = kwargs.get("temperature", self.temperature)
        if temperature is not None:
            params["ls_temperature"] = temperature
        max_tokens = kwargs.get("max_tokens", self.max_tokens)
        if max_tokens is not None:
            params["ls_max_tokens"] = max_tokens
        if stop or self.stop:
            params["ls_stop"] = stop or self.stop or []
        return params

    def _resolve_model_profile(self) -> ModelProfile:
        profile: ModelProfile = {
            "text_inputs": True,
            "text_outputs": True,
            "image_inputs": False,
            "image_url_inputs": False,
            "pdf_inputs": False,
            "audio_inputs": False,
            "video_inputs": False,
            "image_tool_message": False,
            "pdf_tool_message": False,
            "image_outputs": False,
            "audio_outputs": False,
            "video_outputs": False,
            "reasoning_output": bool(self.reasoning),
            "tool_calling": True,
            "tool_choice": True,
            "tool_call_streaming": True,
            "structured_output": True,
            "temperature": True,
        }
        n_ctx = self.known_context_size()
        if n_ctx is not None:
            profile["max_input_tokens"] = n_ctx
            profile["max_output_tokens"] = n_ctx
        # An older langchain_core warns of what it does not know yet. What is left is a ModelProfile, as its
        # values were when it was made above.
        known = ModelProfile.__annotations__
        return {name: value for name, value in profile.items() if name in known}  # type: ignore[return-value]  # a TypedDict

    # --- answers ---

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._call(stop, kwargs)
        begun = BegunCalls()
        with self.opened(call.model) as model, translated():
            generation = model.stream_chat(to_messages(messages), **call.options)
            if call.has_tools:
                for delta in generation:
                    begun.count(delta)
            return call.result(generation.result(), begun)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._call(stop, kwargs)
        begun = BegunCalls()
        async with self.aopened(call.model) as model:
            with translated():
                generation = model.astream_chat(to_messages(messages), **call.options)
                if call.has_tools:
                    async for delta in generation:
                        begun.count(delta)
                return call.result(await generation.aresult(), begun)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = self._call(stop, kwargs, stream=True)
        with contextlib.closing(self._chunks(messages, call)) as chunks:
            for chunk in chunks:
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _chunks(self, messages: list[BaseMessage], call: Call) -> Generator[ChatGenerationChunk, None, None]:
        chunks = Chunks(call)
        with (
            self.opened(call.model) as model,
            translated(),
            contextlib.closing(model.stream_chat(to_messages(messages), **call.options)) as generation,
        ):
            for delta in generation:
                yield from chunks.of(delta)
            yield chunks.last(generation.result())

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = self._call(stop, kwargs, stream=True)
        async with contextlib.aclosing(self._achunks(messages, call)) as chunks:
            async for chunk in chunks:
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _achunks(
        self, messages: list[BaseMessage], call: Call
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        chunks = Chunks(call)
        async with self.aopened(call.model) as model:
            with translated():
                generation = model.astream_chat(to_messages(messages), **call.options)
                async with contextlib.aclosing(generation):
                    async for delta in generation:
                        for chunk in chunks.of(delta):
                            yield chunk
                    yield chunks.last(await generation.aresult())

    def _call(self, stop: list[str] | None, kwargs: Mapping[str, Any], *, stream: bool = False) -> Call:
        """The request of one call: this object's fields, and the keyword arguments of the call over them."""
        options = self.generation_options(stop, kwargs)
        model = options.pop("model", None)
        usage = kwargs.get("stream_usage", self.stream_usage)
        reasoning = options.pop("reasoning", self.reasoning)
        if stream and options.get("n", 1) > 1:
            raise ValueError("a stream has one answer; ask for n > 1 with invoke or generate")
        if self.template_args is not None:
            options.setdefault("template_args", self.template_args)
        tools = to_tools(options.pop("tools", ()))
        choice = to_tool_choice(options.pop("tool_choice", None), tools)
        if tools:
            options["tools"] = tools
            options.setdefault("parallel_tool_calls", self.parallel_tool_calls)
            if choice is not None:
                options["tool_choice"] = choice
        else:
            options.pop("parallel_tool_calls", None)
        wanted = options.get("response_format")
        if wanted is not None and not (
            isinstance(wanted, Mapping) and wanted.get("type", "object") != "object"
        ):
            options["response_format"] = response_format(wanted)
        return Call(options, model, self.label_of(model), reasoning=bool(reasoning), usage=bool(usage))

    # --- many at a time ---

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """As many calls at the same time as fill the engine, unless the config says max_concurrency."""
        config = self._with_concurrency(config, len(inputs))
        return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """As many calls at the same time as fill the engine, unless the config says max_concurrency."""
        config = self._with_concurrency(config, len(inputs))
        return await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)

    def _with_concurrency(
        self, config: RunnableConfig | list[RunnableConfig] | None, n_inputs: int
    ) -> RunnableConfig | list[RunnableConfig] | None:
        """Twice as many as are computed together, so that there is always one ready to follow.

        LangChain would use as many threads as suit the processor, and no limit at all in an event loop.
        """
        slots = self.slots
        if slots is None or not n_inputs:
            return config
        if isinstance(config, list):
            return [_limited(entry, 2 * slots) for entry in config]
        return _limited(config, 2 * slots)

    # --- tools and objects ---

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: dict[str, Any] | type | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """With tools that the model may ask to be called.

        tools: functions, pydantic or TypedDict classes, LangChain tools, or definitions as OpenAI and
            Anthropic write them; none is allowed.
        tool_choice: "auto", "none", "any" (or "required", True): one must be called, or the name of one, also
            as {"type": "function", "function": {"name": ...}}.
        strict: accepted; arguments always match their schema.
        parallel_tool_calls: whether one answer may hold several calls.
        response_format: what an answer that calls no tool must look like.
        """
        definitions = to_tools(tools, strict=strict)
        bound = {
            "tools": definitions,
            "tool_choice": to_tool_choice(tool_choice, definitions) if definitions else None,
            "parallel_tool_calls": parallel_tool_calls,
            "response_format": response_format,
        }
        kwargs |= {name: value for name, value in bound.items() if value is not None}
        return self.bind(**kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        include_raw: bool = False,
        method: Method = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Answers as objects of a pydantic class, or as dicts.

        schema: a pydantic class (version 2 or 1), a TypedDict class, a JSON schema or an OpenAI function.
        include_raw: {"raw": message, "parsed": object or None, "parsing_error": error or None} instead.
        method: "json_schema" and "json_mode" hold the answer's text to the schema; "json_mode" needs none,
            and then any JSON object is an answer. "function_calling" makes it the arguments of a call.
        strict: accepted; the schema is always enforced.
        In a stream, dicts grow with the answer; objects come whole, at the end.
        """
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
        if schema is None and method != "json_mode":
            raise ValueError(f"method {method!r} needs a schema")
        if method == "function_calling":
            assert schema is not None
            model = self.bind_tools([schema], tool_choice="any", strict=strict, **kwargs)
            (definition,) = model.kwargs["tools"]  # type: ignore[attr-defined]  # a RunnableBinding
            parser = tool_parser(schema, definition["function"]["name"])
        else:
            model = self.bind(response_format=response_format(schema), **kwargs)
            parser = text_parser(schema)
        # Core takes it out again, and shows it to tracers.
        form = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
        model = model.bind(ls_structured_output_format=form)
        return with_raw(model, parser) if include_raw else model | parser

    # --- tokens ---

    def get_token_ids(self, text: str) -> list[int]:
        """The model's tokens of a text, without those it expects around one."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        with self.opened() as model:
            return model.tokenize(text, add_special=False)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[ToolLike] | None = None
    ) -> int:
        """Tokens of the prompt that the model's chat template makes of a conversation and its tools."""
        options: dict[str, Any] = {} if self.template_args is None else {"template_args": self.template_args}
        if tools:
            options["tools"] = to_tools(tools)
        with self.opened() as model:
            return model.count_tokens(to_messages(messages), **options)


def _limited(config: RunnableConfig | None, limit: int) -> RunnableConfig:
    if config is None:
        return {"max_concurrency": limit}
    return config if config.get("max_concurrency") else {**config, "max_concurrency": limit}
