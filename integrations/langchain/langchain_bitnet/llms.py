"""BitNetLLM: BitNet models as a LangChain text model, which continues prompts as they are."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bitnet import Delta, Reply
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import ConfigDict

from ._answers import PROVIDER
from ._connection import SharedConnection
from ._errors import translated
from ._options import GenerationFields, logprobs_of

if TYPE_CHECKING:
    import bitnet

# Prompts handed to the engine at the same time at most; it computes n_batch of them together. More would not
# be faster, and an engine refuses to keep any number of them waiting.
_WINDOW = 256


class BitNetLLM(SharedConnection, GenerationFields, BaseLLM):
    """A BitNet model that continues texts, in this process or on a server.

        llm = BitNetLLM(max_tokens=32)
        llm.invoke("Once upon a time")
        llm.batch(["One", "Two", "Three"])  # computed together

    For conversations, tools and structured output use ChatBitNet. Raises ContextOverflowError if a prompt
    does not fit, and the errors of bitnet.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    @property
    def _llm_type(self) -> str:
        return "bitnet"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """The key of LangChain's caches: everything that can change an answer."""
        return {**self.connection_identity(), **self.generation_identity()}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = PROVIDER
        params["ls_model_name"] = self.label_of(kwargs.get("model"))
        return params

    # --- answers ---

    @property
    def _window(self) -> int:
        return max(1, min(_WINDOW, self.max_waiting))

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        options, name = self._options(stop, kwargs)
        replies: list[Reply] = []
        pending: deque[bitnet.Generation] = deque()
        with self.opened(name) as model, translated():
            try:
                for prompt in prompts:
                    if len(pending) == self._window:
                        replies.append(pending.popleft().result())
                    pending.append(model.stream(prompt, **options))
                while pending:
                    replies.append(pending.popleft().result())
            finally:
                for generation in pending:
                    generation.cancel()
        return _result(replies, self.label_of(name))

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        options, name = self._options(stop, kwargs)
        window = asyncio.Semaphore(self._window)

        async def answer(model: bitnet.BitNet, prompt: str) -> Reply:
            async with window:
                return await model.agenerate(prompt, **options)

        async with self.aopened(name) as model:
            tasks = [asyncio.ensure_future(answer(model, prompt)) for prompt in prompts]
            try:
                with translated():
                    replies = await asyncio.gather(*tasks)
            finally:
                for task in tasks:  # nobody waits for them any more, if one failed
                    task.cancel()
        return _result(replies, self.label_of(name))

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        options, name = self._options(stop, kwargs, stream=True)
        with (
            self.opened(name) as model,
            translated(),
            contextlib.closing(model.stream(prompt, **options)) as generation,
        ):
            for delta in generation:
                for chunk in _chunks(delta):
                    if run_manager is not None:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
            yield self._last(generation.result(), name)

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        options, name = self._options(stop, kwargs, stream=True)
        async with self.aopened(name) as model:
            with translated():
                async with contextlib.aclosing(model.astream(prompt, **options)) as generation:
                    async for delta in generation:
                        for chunk in _chunks(delta):
                            if run_manager is not None:
                                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                            yield chunk
                    yield self._last(await generation.aresult(), name)

    def _options(
        self, stop: list[str] | None, kwargs: Mapping[str, Any], *, stream: bool = False
    ) -> tuple[dict[str, Any], str | None]:
        """The keyword arguments of BitNet.generate, and the model if it is not this object's own."""
        options = self.generation_options(stop, kwargs)
        if stream and options.get("n", 1) > 1:
            raise ValueError("a stream has one answer; ask for n > 1 with invoke or generate")
        return options, options.pop("model", None)

    def _last(self, reply: Reply, model: str | None) -> GenerationChunk:
        info = _info(reply, self.label_of(model))
        if not self.stream_usage:
            del info["token_usage"]
        return GenerationChunk(text="", generation_info=info)

    # --- many at a time ---

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """All prompts at once. return_exceptions: in the place of each that failed, and only there."""
        if not return_exceptions:
            return super().batch(inputs, config, **kwargs)
        try:
            return super().batch(inputs, config, **kwargs)
        except Exception:  # LangChain would report it for all of them
            return Runnable.batch(self, inputs, config, return_exceptions=True, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """All prompts at once. return_exceptions: in the place of each that failed, and only there."""
        if not return_exceptions:
            return await super().abatch(inputs, config, **kwargs)
        try:
            return await super().abatch(inputs, config, **kwargs)
        except Exception:  # LangChain would report it for all of them
            return await Runnable.abatch(self, inputs, config, return_exceptions=True, **kwargs)

    # --- tokens ---

    def get_token_ids(self, text: str) -> list[int]:
        """The model's tokens of a text, without those it expects around one."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        with self.opened() as model:
            return model.tokenize(text, add_special=False)


def _chunks(delta: Delta) -> Iterator[GenerationChunk]:
    """None for a delta that says nothing yet."""
    if delta.text or delta.logprobs:
        info = {"logprobs": logprobs_of(delta.logprobs)} if delta.logprobs else None
        yield GenerationChunk(text=delta.text, generation_info=info)


def _info(reply: Reply, label: str) -> dict[str, Any]:
    return {
        "finish_reason": reply.finish_reason,
        "model_name": label,
        "model_provider": PROVIDER,
        "token_usage": reply.usage.to_dict(),
    }


def _result(replies: list[Reply], label: str) -> LLMResult:
    generations = []
    for reply in replies:
        answers = []
        for sample in reply.samples or (reply,):
            info = _info(sample, label)
            if sample.logprobs is not None:
                info["logprobs"] = logprobs_of(sample.logprobs)
            answers.append(Generation(text=sample.text, generation_info=info))
        generations.append(answers)
    total = {
        key: sum(reply.usage.to_dict()[key] for reply in replies)
        for key in ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens")
    }
    return LLMResult(generations=generations, llm_output={"token_usage": total, "model_name": label})
