"""BitNet, the LLM class. What is asked and answered is translated in messages.py and responses.py; structured
prediction is in structured.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.base.llms.generic_utils import messages_to_prompt as default_messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection, default_completion_to_prompt
from llama_index.llms.bitnet.messages import (
    to_messages,
    tool_calls_of,
    tool_choice_of,
    tool_definitions,
)
from llama_index.llms.bitnet.react import CompactReActFormatter, react_format
from llama_index.llms.bitnet.responses import (
    chat_chunk,
    chat_response,
    completion_chunk,
    completion_response,
)
from llama_index.llms.bitnet.structured import StructuredPrediction

from bitnet import Delta, Generation, Reply, ValidationError
from bitnet.connection import Connection

if TYPE_CHECKING:
    from llama_index.core.chat_engine.types import AgentChatResponse
    from llama_index.core.tools.types import BaseTool
    from typing_extensions import Self

Response = TypeVar("Response", ChatResponse, CompletionResponse)

_TEMPERATURE = 0.0
_MAX_TOKENS = 256
# Fields that are options of a call, under bitnet's names.
_OPTION_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logit_bias",
    "max_tokens",
    "stop",
    "logprobs",
    "top_logprobs",
    "cache_salt",
    "response_format",
    "template_args",
)
_CALL_OPTIONS = frozenset({*_OPTION_FIELDS, "ignore_eos", "tools", "tool_choice", "parallel_tool_calls"})


class BitNet(Connection, StructuredPrediction, CustomLLM, FunctionCallingLLM):
    """A BitNet model for LlamaIndex, computed in this process, or by a server with `base_url`.

        llm = BitNet()                       # the bundled model; or BitNet(model="model.gguf", n_ctx=4096)
        llm.complete("What is the capital of France?").text

    The fields of bitnet.connection.Connection say which model answers; those below say how, and each can also
    be given with a call. Unknown options raise TypeError. Nothing is loaded before the first answer, and
    objects for the same file and options share one loaded model, also with BitNetEmbedding. They can be
    pickled, copied, and used from any number of threads and event loops. Closing a stream (`aclose()` of an
    async one) stops its computation.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    temperature: float | None = Field(default=None, ge=0)
    """0 = always the likeliest token. None = as `config` says, 0 without one."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    """The same seed gives the same answer."""
    logit_bias: dict[int, float] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of an answer at most. None = as `config` says, 256 without one. LlamaIndex keeps that much of
    the context free for it."""
    stop: list[str] | None = None
    """Texts that end an answer and are not part of it. Those of a call are used instead."""
    logprobs: bool = False
    """Report the log-probability of each token."""
    top_logprobs: int | None = None
    """And of that many of the likeliest tokens in its place."""
    cache_salt: str | None = None
    """What is computed for prompts is only reused for calls with the same salt."""
    response_format: dict[str, Any] | None = None
    """What every answer must look like (see bitnet.Request, and `formats` for what LlamaIndex's own prompts
    expect). That of a call is used instead."""
    template_args: dict[str, Any] | None = None
    """Further variables for the model's chat template."""

    tool_calling: bool = True
    """Whether agents, selectors and programs are told that this model calls tools. If not, they use ReAct."""
    context_slack: int = Field(default=64, ge=0)
    """Tokens kept back from LlamaIndex when it asks for the context size: it does not count those that a chat
    template puts around messages."""

    @classmethod
    def class_name(cls) -> str:
        return "bitnet_llm"

    @property
    def metadata(self) -> LLMMetadata:
        """Known from the file's header, without loading the model.

        Raises bitnet.ValidationError if max_tokens leaves no room for a prompt.
        """
        window = self.context_size() - self.context_slack
        num_output = self._effective_max_tokens
        if num_output >= window:
            raise ValidationError(
                f"max_tokens={num_output} leaves no room for a prompt in a context of {window} tokens "
                f"({self.context_slack} more are kept back as context_slack); lower it, or raise n_ctx",
                field="max_tokens",
            )
        chat = self.has_chat_template()
        return LLMMetadata(
            context_window=window,
            num_output=num_output,
            is_chat_model=chat,
            is_function_calling_model=chat and self.tool_calling,
            model_name=self.label,
        )

    @property
    def _effective_max_tokens(self) -> int:
        if self.max_tokens is not None:
            return self.max_tokens
        return _MAX_TOKENS if self.config is None else self.settings.max_tokens

    @property
    def tokenizer(self) -> ModelTokenizer:
        """The model's own, for Settings.tokenizer: set it before indices, splitters and memories are made."""
        return ModelTokenizer(self)

    def with_options(self, **fields: Any) -> Self:
        """Another object with some fields changed. It shares the loaded model if the same one answers."""
        # Unlike model_copy, which validates nothing.
        values = {name: _own(getattr(self, name)) for name in type(self).model_fields}
        return type(self)(**{**values, **fields})

    def for_react(self, tools: Sequence[BaseTool]) -> Self:
        """Another object for ReActAgent with these tools: what it answers is always a step that the agent can
        read, and a call in it names a tool and has arguments that match its schema."""
        return self.with_options(
            response_format=react_format(tools),
            stop=[*(self.stop or ()), "\nObservation:"],
            tool_calling=False,
        )

    def close(self) -> None:
        """Give the model back, and end answers under way. The next call opens it again."""
        self.disconnect()

    async def aclose(self) -> None:
        """`close` for event loops."""
        await asyncio.to_thread(self.disconnect)

    # The eight ways to ask. Each is decorated once and calls no other, so that each call is one event.

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Options of the call: the fields of this class that say how to answer, and tools, tool_choice,
        parallel_tool_calls, ignore_eos."""
        return chat_response(self._ask(messages, kwargs).result(), self.label)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat` for event loops. Cancelling the task stops the computation."""
        generation = await asyncio.to_thread(self._ask, messages, kwargs)
        return chat_response(await generation.aresult(), self.label)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """`chat` in pieces. The last one is without text: it has the calls, and `raw` with usage."""
        return _pieces(self._ask(messages, kwargs), chat_chunk, chat_response, self.label)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat` for event loops."""
        generation = await asyncio.to_thread(self._ask, messages, kwargs)
        return _apieces(generation, chat_chunk, chat_response, self.label)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """formatted: continue the prompt as it is. If not, it is one message of the user. Options as in
        `chat`."""
        return completion_response(self._ask_prompt(prompt, formatted, kwargs).result(), self.label)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete` for event loops. Cancelling the task stops the computation."""
        generation = await asyncio.to_thread(self._ask_prompt, prompt, formatted, kwargs)
        return completion_response(await generation.aresult(), self.label)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """`complete` in pieces. The last one is without text, and has `raw` with usage."""
        generation = self._ask_prompt(prompt, formatted, kwargs)
        return _pieces(generation, completion_chunk, completion_response, self.label)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """`stream_complete` for event loops."""
        generation = await asyncio.to_thread(self._ask_prompt, prompt, formatted, kwargs)
        return _apieces(generation, completion_chunk, completion_response, self.label)

    def _ask(self, messages: Sequence[ChatMessage], call: Mapping[str, Any]) -> Generation:
        """Submit a conversation. Blocks while the model is loaded and a grammar compiled."""
        options = self._options(call)
        if self.messages_to_prompt is default_messages_to_prompt and self.has_chat_template():
            return self.connect().stream_chat(to_messages(messages), **options)
        to_messages(messages)  # refuses what is no text
        assert self.messages_to_prompt is not None  # LLM's validators see to that
        return self._continue(self.messages_to_prompt(messages), options)

    def _ask_prompt(self, prompt: str, formatted: bool, call: Mapping[str, Any]) -> Generation:
        """Submit a prompt. Blocks while the model is loaded and a grammar compiled."""
        options = self._options(call)
        if formatted:
            return self._continue(prompt, options)
        own = self._completion_template
        if own is None and self.has_chat_template():
            return self.connect().stream_chat([{"role": "user", "content": prompt}], **options)
        return self._continue(prompt if own is None else own(prompt), options)

    @property
    def _completion_template(self) -> Callable[[str], str] | None:
        """The user's own, if there is one."""
        template = self.completion_to_prompt
        return None if template in (None, default_completion_to_prompt) else template

    def _continue(self, prompt: str, options: dict[str, Any]) -> Generation:
        own_template = (
            self._completion_template is not None or self.messages_to_prompt is not default_messages_to_prompt
        )
        model = self.connect()
        if own_template and (self.client is not None or self.settings.mode == "direct"):
            # A template written by hand spells special tokens out. A server has rules of its own for that.
            return model.stream(model.tokenize(prompt, parse_special=True), **options)
        return model.stream(prompt, **options)

    def _options(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """bitnet's options: this object's, and those of one call over them. None = not given."""
        for name in call:
            if name not in _CALL_OPTIONS:
                known = ", ".join(sorted(_CALL_OPTIONS))
                raise TypeError(f"BitNet got an unknown option {name!r}; known: {known}")
        options: dict[str, Any] = {}
        if self.config is None:
            options |= {"temperature": _TEMPERATURE, "max_tokens": _MAX_TOKENS}
        for values in ({name: getattr(self, name) for name in _OPTION_FIELDS}, call):
            options |= {name: value for name, value in values.items() if value is not None}
        if options.get("top_logprobs"):
            options["logprobs"] = True
        tools = options.pop("tools", None)
        choice = options.pop("tool_choice", None)
        if not tools:
            options.pop("parallel_tool_calls", None)
            return options
        options["tools"] = tool_definitions(tools)
        if choice is not None:
            options["tool_choice"] = tool_choice_of(choice)
        return options

    def _extend_messages(self, messages: list[ChatMessage]) -> list[ChatMessage]:
        """With the system prompt before them: in one message with theirs, since many chat templates refuse a
        second one."""
        if not self.system_prompt:
            return messages
        text, rest = self.system_prompt, messages
        if messages and messages[0].role == MessageRole.SYSTEM and messages[0].content is not None:
            text, rest = f"{text}\n\n{messages[0].content}", messages[1:]
        return [ChatMessage(role=MessageRole.SYSTEM, content=text), *rest]

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or ())
        if user_msg is not None:
            if isinstance(user_msg, str):
                user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
            messages.append(user_msg)
        options = {"messages": messages, **kwargs}
        if tools:
            options["tools"] = tool_definitions(tools)
            options["tool_choice"] = tool_choice_of(tool_choice or ("required" if tool_required else "auto"))
            options["parallel_tool_calls"] = allow_parallel_tool_calls
        return options

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        calls = tool_calls_of(response.message)
        if not calls and error_on_no_tool_call:
            raise ValueError(f"Expected at least one tool call, but got {len(calls)} tool calls.")
        return [
            ToolSelection(tool_id=call.id, tool_name=call.name, tool_kwargs=call.parsed) for call in calls
        ]

    def predict_and_call(self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any) -> AgentChatResponse:
        """Let the model choose a tool, and call it. With tool_calling=False, by one step of ReAct."""
        if self.metadata.is_function_calling_model:
            return super().predict_and_call(tools, *args, **kwargs)
        return CustomLLM.predict_and_call(self.for_react(tools), list(tools), *args, **_with_react(kwargs))

    async def apredict_and_call(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> AgentChatResponse:
        """`predict_and_call` for event loops."""
        if self.metadata.is_function_calling_model:
            return await super().apredict_and_call(tools, *args, **kwargs)
        step = self.for_react(tools)
        return await CustomLLM.apredict_and_call(step, list(tools), *args, **_with_react(kwargs))


class ModelTokenizer:
    """Counts as the model does, for everything in LlamaIndex that cuts text to size."""

    def __init__(self, llm: BitNet) -> None:
        self._llm = llm

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` alone. Loads the model."""
        return self._llm.connect().tokenize(text, add_special=False)

    __call__ = encode


def _pieces(
    generation: Generation,
    chunk: Callable[[str, Delta], Response],
    whole: Callable[[Reply, str, str], Response],
    model: str,
) -> Generator[Response, None, None]:
    text = ""
    with contextlib.closing(generation):
        for delta in generation:
            if delta.text:
                text += delta.text
                yield chunk(text, delta)
        yield whole(generation.result(), model, "")


async def _apieces(
    generation: Generation,
    chunk: Callable[[str, Delta], Response],
    whole: Callable[[Reply, str, str], Response],
    model: str,
) -> AsyncGenerator[Response, None]:
    text = ""
    async with contextlib.aclosing(generation):
        async for delta in generation:
            if delta.text:
                text += delta.text
                yield chunk(text, delta)
        yield whole(await generation.aresult(), model, "")


def _own(value: Any) -> Any:
    return value.copy() if isinstance(value, (list, dict)) else value


def _with_react(options: Mapping[str, Any]) -> dict[str, Any]:
    # llama_index.core passes None for what is not given, and its agent refuses that.
    defaults = {"react_chat_formatter": CompactReActFormatter(), "output_parser": ReActOutputParser()}
    return {**defaults, **{name: value for name, value in options.items() if value is not None}}
