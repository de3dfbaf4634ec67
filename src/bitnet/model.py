"""BitNet: the one object users hold. It turns calls into requests, and hands them to an engine.

Every way to ask exists for threads and for event loops, under the same name with an `a` in front.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bitnet import models
from bitnet.engines.native import NativeEngine
from bitnet.values import (
    GenerateOptions,
    ModelInfo,
    Reply,
    Request,
    as_flag,
    as_integer,
    as_text,
    as_token_ids,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self, Unpack

    from bitnet.engines import Engine
    from bitnet.engines.generation import Generation
    from bitnet.values import MessageLike


class BitNet:
    """A loaded model. May be used from any number of threads and event loops at the same time.

        model = BitNet()                          # the bundled model, or a path: BitNet("model.gguf")
        model.generate("Once upon a time").text
        for delta in model.stream_chat([{"role": "user", "content": "Hi"}]):
            print(delta.text, end="")

    The options of generate, stream, chat, stream_chat and their async siblings are the fields of
    bitnet.Request (max_tokens, stop, ignore_eos, logprobs, top_logprobs) and of bitnet.Sampling
    (temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed,
    logit_bias). All of them raise ValidationError, ContextOverflowError if the prompt does not fit,
    OverloadedError if too many requests wait, EngineClosedError.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        n_ctx: int | None = None,
        n_threads: int = 0,
        n_batch: int = 2,
        use_mmap: bool = True,
        use_mlock: bool = False,
        max_waiting: int = 1024,
    ) -> None:
        """Load a model.

        model: path of a GGUF file; None = the model bundled with this package.
        n_ctx: tokens a sequence (prompt and answer) may hold; 0 = the model's own limit; None = 2048, or
        that limit
            if it is smaller.
        n_threads: compute threads; 0 = physical cores.
        n_batch: requests computed together; memory for keys and values grows with it.
        use_mmap: keep the packed weights of large models in the user's cache directory and map them from
        there,
            shared between processes; False = in private memory.
        use_mlock: keep the weights from being swapped out.
        max_waiting: requests that may wait for their turn, above which they are refused with OverloadedError.
        Raises ModelNotFoundError, ModelFileError and ValidationError.
        """
        if n_ctx is not None:
            as_integer("n_ctx", n_ctx, 0, 2**31 - 1)
        self._engine: Engine = NativeEngine(
            models.find(model),
            n_ctx=n_ctx,
            n_threads=as_integer("n_threads", n_threads, 0, 1024),
            n_batch=as_integer("n_batch", n_batch, 1, 256),
            use_mmap=as_flag("use_mmap", use_mmap),
            use_mlock=as_flag("use_mlock", use_mlock),
            max_waiting=as_integer("max_waiting", max_waiting, 0, 2**31 - 1),
        )

    def generate(self, prompt: str | Iterable[int], **options: Unpack[GenerateOptions]) -> Reply:
        """Continue a text, or token ids, which are computed as they are."""
        return self.stream(prompt, **options).result()

    def stream(self, prompt: str | Iterable[int], **options: Unpack[GenerateOptions]) -> Generation:
        """`generate`, a Delta at a time; `.result()` of the returned Generation is the whole Reply."""
        return self._engine.submit(Request.build(prompt=prompt, options=options))

    def chat(self, messages: Iterable[MessageLike], **options: Unpack[GenerateOptions]) -> Reply:
        """Answer a conversation, given as bitnet.Message or {"role": ..., "content": ...}.

        Raises ChatTemplateError if the model has no chat template, or if it refuses these messages.
        """
        return self.stream_chat(messages, **options).result()

    def stream_chat(self, messages: Iterable[MessageLike], **options: Unpack[GenerateOptions]) -> Generation:
        """`chat`, a Delta at a time; `.result()` of the returned Generation is the whole Reply."""
        return self._engine.submit(Request.build(messages=messages, options=options))

    async def agenerate(self, prompt: str | Iterable[int], **options: Unpack[GenerateOptions]) -> Reply:
        """`generate` for event loops. Cancelling the task stops the computation."""
        return await self.astream(prompt, **options).aresult()

    def astream(self, prompt: str | Iterable[int], **options: Unpack[GenerateOptions]) -> Generation:
        """`stream` for event loops: not to be awaited, but iterated with `async for`."""
        return self.stream(prompt, **options)

    async def achat(self, messages: Iterable[MessageLike], **options: Unpack[GenerateOptions]) -> Reply:
        """`chat` for event loops. Cancelling the task stops the computation."""
        return await self.astream_chat(messages, **options).aresult()

    def astream_chat(self, messages: Iterable[MessageLike], **options: Unpack[GenerateOptions]) -> Generation:
        """`stream_chat` for event loops: not to be awaited, but iterated with `async for`."""
        return self.stream_chat(messages, **options)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        add_special: with the tokens the model expects around a text, as `generate` has them.
        parse_special: special tokens that are written out in the text become those tokens.
        """
        return self._engine.tokenize(
            as_text("text", text), add_special=add_special, parse_special=parse_special
        )

    def detokenize(self, token_ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of token ids. skip_special: without the special tokens among them."""
        return self._engine.detokenize(list(token_ids), skip_special=skip_special)

    def logits(self, token_ids: Iterable[int]) -> NDArray[np.float32]:
        """[len(token_ids), vocab_size], float32: row i are the logits of what follows token i.

        The ids are computed as they are, in turn with other requests. Raises ValidationError,
        ContextOverflowError.
        """
        return self._engine.logits(as_token_ids("token_ids", token_ids))

    @property
    def info(self) -> ModelInfo:
        """What is loaded: name, architecture, sizes, memory, what was repaired."""
        return self._engine.info

    def close(self) -> None:
        """Stop everything and free the memory; generations under way end with EngineClosedError."""
        self._engine.close()

    async def aclose(self) -> None:
        """`close` for event loops."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        info = self._engine.info
        state = ", closed" if self._engine.health().closed else ""
        return f"BitNet({info.path!r}, {info.n_parameters / 1e6:.1f} M parameters, n_ctx={info.n_ctx}{state})"
