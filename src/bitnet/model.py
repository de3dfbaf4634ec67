"""BitNet: the one object users hold. It turns calls into requests, and hands them to an engine.

Every way to ask exists for threads and for event loops, under the same name with an `a` in front. Which
engine that is, and who else uses it, is the registry's business.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet import models
from bitnet.engines.generation import DeferredGeneration
from bitnet.engines.native import NativeEngine
from bitnet.engines.registry import Lease
from bitnet.values import (
    EmbeddingKind,
    EmbeddingRequest,
    GenerateOptions,
    ModelInfo,
    Pooling,
    Reply,
    Request,
    as_flag,
    as_integer,
    as_number,
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
    """A model. May be used from any number of threads and event loops at the same time.

        model = BitNet()                          # the bundled model, or a path: BitNet("model.gguf")
        model.generate("Once upon a time").text
        for delta in model.stream_chat([{"role": "user", "content": "Hi"}]):
            print(delta.text, end="")

    The options of generate, stream, chat, stream_chat and their async siblings are the fields of
    bitnet.Request (max_tokens, n, stop, ignore_eos, logprobs, top_logprobs, response_format, tools,
    tool_choice, parallel_tool_calls, template_args, cache_salt) and of bitnet.Sampling
    (temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed,
    logit_bias). All of them raise ValidationError, ContextOverflowError if the prompt does not fit,
    OverloadedError if too many requests wait, EngineClosedError.

    Objects for the same file and the same options share one loaded model, which is freed when the last of
    them is closed or garbage collected. They can be pickled and copied: what travels is the file's path and
    the options, and the copy loads the model when it is first used. After os.fork() the child process may use
    them too; generations under way stay with the parent.
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
        kv_tokens: int | None = None,
        max_waiting: int = 1024,
        keep_alive: float = 0,
        lazy: bool = False,
    ) -> None:
        """Load a model.

        model: path of a GGUF file; None = the model bundled with this package.
        n_ctx: tokens a sequence (prompt and answer) may hold; 0 = the model's own limit; None = 2048, or
            that limit if it is smaller.
        n_threads: compute threads; 0 = physical cores.
        n_batch: requests computed together; memory for keys and values grows with it.
        kv_tokens: tokens whose keys and values are held for all requests together, n_ctx at least; None = as
            many as n_batch full contexts have. With fewer, requests that do not fit wait, or make way and are
            computed again: their answers stay the same.
        use_mmap: keep the packed weights of large models in the user's cache directory and map them from
            there, shared between processes; False = in private memory.
        use_mlock: keep the weights from being swapped out.
        max_waiting: requests that may wait for their turn, above which they are refused with OverloadedError.
        keep_alive: seconds the model stays loaded after it was closed by all who use it; negative = until
            bitnet.unload_all().
        lazy: load when it is first used; only whether the file exists is checked now.
        Raises ModelNotFoundError, ModelFileError and ValidationError; if lazy, the latter two may be raised
        when it is first used instead.
        """
        if n_ctx is not None:
            n_ctx = as_integer("n_ctx", n_ctx, 0, 2**31 - 1)
        options: dict[str, Any] = {
            "n_ctx": n_ctx,
            "n_threads": as_integer("n_threads", n_threads, 0, 1024),
            "n_batch": as_integer("n_batch", n_batch, 1, 256),
            "use_mmap": as_flag("use_mmap", use_mmap),
            "use_mlock": as_flag("use_mlock", use_mlock),
            "kv_tokens": None if kv_tokens is None else as_integer("kv_tokens", kv_tokens, 1, 2**31 - 1),
            "max_waiting": as_integer("max_waiting", max_waiting, 0, 2**31 - 1),
        }
        keep_alive = as_number("keep_alive", keep_alive, -math.inf, math.inf)
        as_flag("lazy", lazy)
        # Absolute, because it may be loaded, or loaded again, in another working directory.
        path = Path(os.path.abspath(models.find(model)))
        self._path: str | None = str(path)
        # The bundled model may be elsewhere where the object is unpickled.
        pickled_path = None if model is None else self._path
        self._arguments = {"model": pickled_path, **options, "keep_alive": keep_alive}
        self._lease = Lease.of_file(NativeEngine, path, options, keep_alive)
        if not lazy:
            try:
                self.load()
            except BaseException:
                self._lease.close()
                raise

    @classmethod
    def from_engine(cls, engine: Engine) -> Self:
        """Around an engine of your own, such as bitnet.testing.FakeEngine, which is closed with this object.

        It can be copied, and copies share the engine, but not pickled.
        """
        self = cls.__new__(cls)
        self._path = None
        self._arguments = {}
        self._lease = Lease.of_engine(engine)
        return self

    def load(self) -> None:
        """Load the model now, if it is not loaded.

        Raises ModelFileError, ValidationError and EngineClosedError.
        """
        self._lease.engine()

    @property
    def _engine(self) -> Engine:
        """For what can be known without computing: after `close`, the engine that was."""
        return self._lease.loaded or self._lease.engine()

    def generate(self, prompt: str | Iterable[int], **options: Unpack[GenerateOptions]) -> Reply:
        """Continue a text, or token ids, which are computed as they are."""
        return self.stream(prompt, **options).result()

    def stream(self, prompt: str | Iterable[int], **options: Unpack[GenerateOptions]) -> Generation:
        """`generate`, a Delta at a time; `.result()` of the returned Generation is the whole Reply."""
        return self._lease.submit(Request.build(prompt=prompt, options=options))

    def chat(self, messages: Iterable[MessageLike], **options: Unpack[GenerateOptions]) -> Reply:
        """Answer a conversation, given as bitnet.Message or {"role": ..., "content": ...}.

        Raises ChatTemplateError if the model has no chat template, or if it refuses these messages.
        """
        return self.stream_chat(messages, **options).result()

    def stream_chat(self, messages: Iterable[MessageLike], **options: Unpack[GenerateOptions]) -> Generation:
        """`chat`, a Delta at a time; `.result()` of the returned Generation is the whole Reply."""
        return self._lease.submit(Request.build(messages=messages, options=options))

    async def agenerate(self, prompt: str | Iterable[int], **options: Unpack[GenerateOptions]) -> Reply:
        """`generate` for event loops. Cancelling the task stops the computation."""
        return await self.astream(prompt, **options).aresult()

    def astream(self, prompt: str | Iterable[int], **options: Unpack[GenerateOptions]) -> Generation:
        """`stream` for event loops: not to be awaited, but iterated with `async for`.

        It begins with the first iteration, or with `aresult()`, which also load the model if it is not.
        """
        return self._deferred(Request.build(prompt=prompt, options=options))

    async def achat(self, messages: Iterable[MessageLike], **options: Unpack[GenerateOptions]) -> Reply:
        """`chat` for event loops. Cancelling the task stops the computation."""
        return await self.astream_chat(messages, **options).aresult()

    def astream_chat(self, messages: Iterable[MessageLike], **options: Unpack[GenerateOptions]) -> Generation:
        """`stream_chat` for event loops: not to be awaited, but iterated with `async for`.

        It begins with the first iteration, or with `aresult()`, which also load the model if it is not.
        """
        return self._deferred(Request.build(messages=messages, options=options))

    def _deferred(self, request: Request) -> Generation:
        lease = self._lease
        return DeferredGeneration(lambda: lease.submit(request))

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

    def render(self, messages: Iterable[MessageLike], **options: Unpack[GenerateOptions]) -> str:
        """The prompt that `chat` makes of a conversation, and of tools if there are any, as text.

        Special tokens are written out: the text is for showing. Raises ChatTemplateError.
        """
        return self._engine.render(Request.build(messages=messages, options=options))

    def count_tokens(self, prompt: str | Iterable[MessageLike], **options: Unpack[GenerateOptions]) -> int:
        """Tokens of the prompt that `generate` makes of a text, or `chat` of a conversation."""
        if isinstance(prompt, str):
            return self._engine.count_tokens(Request.build(prompt=prompt, options=options))
        return self._engine.count_tokens(Request.build(messages=prompt, options=options))

    def logits(self, token_ids: Iterable[int]) -> NDArray[np.float32]:
        """[len(token_ids), vocab_size], float32: row i are the logits of what follows token i.

        The ids are computed as they are, in turn with other requests. Raises ValidationError,
        ContextOverflowError.
        """
        return self._lease.engine().logits(as_token_ids("token_ids", token_ids))

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        kind: EmbeddingKind = "document",
        pooling: Pooling | None = None,
        normalize: bool = True,
    ) -> NDArray[np.float32]:
        """[len(texts), hidden_size], float32: a vector for each text. A single string is one text.

        kind: what the texts are in a search, "query" or "document"; matters for models that expect different
            words before each, and none that is computed today does.
        pooling: "mean" of the hidden states of all tokens, or the "last" token's; None = as the model
            declares, which for a plain language model is the mean.
        normalize: scale each vector to the length 1.
        A text's vector does not depend on the others: the same text gives the same bits. Raises
        ValidationError for an empty text, and ContextOverflowError for one that has more than n_ctx tokens,
        before anything is computed; ModelFileError for a vector that is not finite.
        """
        request = _embedding_request(texts, kind, pooling, normalize)
        return self._lease.engine().embed(request)

    async def aembed(
        self,
        texts: str | Iterable[str],
        *,
        kind: EmbeddingKind = "document",
        pooling: Pooling | None = None,
        normalize: bool = True,
    ) -> NDArray[np.float32]:
        """`embed` for event loops. Cancelling the task stops the computation."""
        request = _embedding_request(texts, kind, pooling, normalize)
        if not (self._lease.ready or self._lease.closed):
            await asyncio.to_thread(self.load)
        return await self._lease.engine().aembed(request)

    @property
    def info(self) -> ModelInfo:
        """What is loaded: name, architecture, sizes, memory, what was repaired."""
        return self._engine.info

    def close(self) -> None:
        """End this object's generations, with EngineClosedError, and free the memory if no other uses it.

        May be repeated. Afterwards everything that computes raises EngineClosedError.
        """
        self._lease.close()

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

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is None:
            raise TypeError("a BitNet.from_engine() cannot be pickled: its engine lives in this process")
        return _restore, (type(self), self._arguments)

    def __copy__(self) -> Self:
        """Another object for the same model, not closed even if this one is."""
        copy = type(self).__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._lease = self._lease.copy()
        return copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __repr__(self) -> str:
        engine = self._lease.loaded
        if engine is None:
            state = ", closed" if self._lease.closed else ", not loaded"
            return f"BitNet({self._path!r}{state})"
        info = engine.info
        state = ", closed" if self._lease.closed or engine.health().closed else ""
        return f"BitNet({info.path!r}, {info.n_parameters / 1e6:.1f} M parameters, n_ctx={info.n_ctx}{state})"


def _embedding_request(
    texts: str | Iterable[str], kind: EmbeddingKind, pooling: Pooling | None, normalize: bool
) -> EmbeddingRequest:
    # The request makes a tuple of them.
    return EmbeddingRequest(texts=texts, kind=kind, pooling=pooling, normalize=normalize)  # type: ignore[arg-type]


def _restore(cls: type[BitNet], arguments: dict[str, Any]) -> BitNet:
    return cls(**arguments, lazy=True)
