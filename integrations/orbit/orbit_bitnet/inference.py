"""BitNetService: Orbit's inference service on `bitnet`."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

from bitnet import BitNet, CapabilityError, GenerateOptions, Generation, Reply

from orbit_bitnet._model import Opened, label, read_settings
from orbit_bitnet._orbit import InferenceService, ToolCallingResult, UsageReportingMixin
from orbit_bitnet.errors import BitNetServiceError, told_to_orbit

logger = logging.getLogger("orbit_bitnet")

# Options of `bitnet` that a call may give. Everything else that Orbit passes along (web_search, ...) is for
# other providers.
_OPTIONS = frozenset(GenerateOptions.__annotations__) - {"n", "tools", "tool_choice", "parallel_tool_calls"}
_MESSAGE_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name")

Messages = Iterable[Mapping[str, Any]]


class BitNetService(UsageReportingMixin, InferenceService):
    """The provider `bitnet`: a model in this process (mode direct) or on a server (mode api).

    Any number of requests may be under way; the model computes `n_batch` of them together. Nothing here
    blocks the event loop, and leaving a stream or cancelling the task stops the computation within a step.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """config: Orbit's whole configuration. Raises bitnet.ConfigError. Loads nothing."""
        super().__init__(config, "bitnet")
        settings = read_settings("inference", self._extract_provider_config())
        self.settings = settings
        self.mode = settings.mode
        self.model = label(settings)
        self.base_url = settings.base_url if settings.mode == "api" else None
        # Orbit takes a provider without a key for one that is not configured.
        self.api_key = settings.api_key.get_secret_value() if settings.api_key else "none"
        self.temperature = settings.temperature
        self.top_p = settings.top_p
        self.top_k = settings.top_k
        self.max_tokens = settings.max_tokens
        self.stream_enabled = settings.stream
        self._opened = Opened(settings)

    async def initialize(self) -> bool:
        """Load the model, or connect to the server. False = it failed, and the log says why; the next request
        tries again."""
        try:
            with told_to_orbit("loading the model"):
                await self._ready()
        except BitNetServiceError:
            self.initialized = False
        return self.initialized

    async def _ready(self) -> BitNet:
        model = await self._opened.ready()
        self.initialized = True
        return model

    async def verify_connection(self) -> bool:
        """Whether requests can be answered: the model is loaded, or the server answers."""
        try:
            with told_to_orbit("verifying the connection"):
                return await self._opened.is_healthy()
        except BitNetServiceError:
            return False

    async def close(self) -> None:
        """Give the model back, which is freed if no other service uses it. May be repeated; the next request
        loads it again."""
        self.initialized = False
        await self._opened.close()

    async def generate(self, prompt: str, **kwargs: Any) -> str:
        """The answer to `messages`, or to the prompt as one message. Raises BitNetServiceError."""
        usage_sink = self._take_usage_sink(kwargs)
        with told_to_orbit("generation"):
            reply = await (await self._start(prompt, kwargs)).aresult()
        self._finish(reply, usage_sink)
        return reply.text

    async def generate_stream(self, prompt: str, **kwargs: Any) -> AsyncGenerator[str, None]:
        """`generate`, in pieces as they come; in one piece if the configuration says `stream: false`."""
        usage_sink = self._take_usage_sink(kwargs)
        with told_to_orbit("streaming generation"):
            generation = await self._start(prompt, kwargs)
            try:
                if not self.stream_enabled:
                    yield (await generation.aresult()).text
                else:
                    async for delta in generation:
                        # While Orbit was busy with a piece, more may have come: it gets them as one.
                        text = delta.text + "".join(more.text for more in generation.queued())
                        if text:
                            yield text
                reply = await generation.aresult()
            finally:
                # Orbit leaves streams without closing them: this may be a garbage collection, so no await.
                generation.cancel()
        self._finish(reply, usage_sink)

    async def generate_with_tools(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], **kwargs: Any
    ) -> ToolCallingResult:
        """One answer that may ask for calls of tools, whose arguments always match the tools' schemas.

        Raises BitNetServiceError, and NotImplementedError for a model that cannot be told of tools, for which
        Orbit falls back to an answer without.
        """
        usage_sink = self._take_usage_sink(kwargs)
        try:
            with told_to_orbit("generation with tools"):
                model = await self._ready()
                if tools and not model.info.has_chat_template:
                    raise CapabilityError("the model has no chat template, and needs one for tools")
                options = {**_options(kwargs), "tools": tools} if tools else _options(kwargs)
                reply = await model.astream_chat(_conversation("", messages), **options).aresult()
                calls = [
                    {"id": call.id, "name": call.name, "arguments": call.parsed} for call in reply.tool_calls
                ]
        except BitNetServiceError as error:
            if isinstance(error.original_error, CapabilityError):
                raise NotImplementedError(str(error.original_error)) from error
            raise
        self._finish(reply, usage_sink)
        return ToolCallingResult(
            text=reply.text or None,
            tool_calls=calls or None,
            assistant_message=reply.message.to_dict(),
            finish_reason=reply.finish_reason,
        )

    async def _start(self, prompt: str, kwargs: Mapping[str, Any]) -> Generation:
        model = await self._ready()
        messages = _conversation(prompt, kwargs.get("messages"))
        options = _options(kwargs)
        if model.info.has_chat_template:
            return model.astream_chat(messages, **options)
        # A model that only continues texts.
        text = prompt or "\n".join(str(message["content"]) for message in messages)
        return model.astream(text, **options)

    def _finish(self, reply: Reply, usage_sink: dict[str, Any] | None) -> None:
        usage = reply.usage
        if usage.total_tokens:  # a server may not tell
            self._report_usage(
                usage_sink,
                usage.prompt_tokens,
                usage.completion_tokens,
                cached_prompt_tokens=usage.cached_tokens,
            )
        if reply.finish_reason == "length":
            logger.warning(
                "bitnet: an answer was cut after %d tokens, by max_tokens or the end of the context (n_ctx)",
                usage.completion_tokens,
            )
        logger.debug("bitnet: answered (%s): %s, %s", reply.finish_reason, usage, reply.timings)


def _conversation(prompt: str, messages: Messages | None) -> list[dict[str, Any]]:
    """Messages for `bitnet`; messages win over the prompt, which is one message of the user."""
    turns = [
        {key: message[key] for key in _MESSAGE_KEYS if message.get(key) is not None}
        for message in messages or ()
    ]
    for turn in turns:
        turn.setdefault("content", "")
    # Orbit sends a system message even where there is nothing to say in it.
    turns = [turn for turn in turns if turn.get("role") != "system" or str(turn["content"]).strip()]
    return turns or [{"role": "user", "content": prompt}]


def _options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a call says of `bitnet`'s options; the model has those of the configuration as defaults."""
    return {key: value for key, value in kwargs.items() if key in _OPTIONS and value is not None}
