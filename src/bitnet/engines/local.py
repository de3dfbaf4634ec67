"""What all engines in this process have in common: a tokenizer, a chat template, and a scheduler.

Text becomes tokens here, on the caller's thread; everything after that happens on the scheduler's. In a
forked process the weights are used on, with a scheduler and compute threads of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from bitnet.engines.generation import Generation
from bitnet.errors import ContextOverflowError, EngineClosedError, ModelFileError, ValidationError
from bitnet.runtime.answer import Gathering
from bitnet.runtime.embedding import (
    EMBEDDING_ARCHITECTURES,
    POOLING_TYPES,
    EmbeddingSequence,
    EmbeddingWindow,
)
from bitnet.runtime.runner import Runner
from bitnet.runtime.scheduler import PROMPT_TILE, Scheduler
from bitnet.runtime.sequence import GenerationSequence, LogitsSequence, LogprobsSequence
from bitnet.text.chat_template import ChatTemplate
from bitnet.text.tokenizer import Encode, Tokenizer
from bitnet.text.tool_calls import prompt_parts
from bitnet.values import EmbeddingRequest, EngineName, Health, ModelInfo, Pooling, Request

if TYPE_CHECKING:
    from bitnet.text.constraints import Constraint

logger = logging.getLogger("bitnet")

# Enough for most conversations, and a key/value store that small machines can hold.
DEFAULT_N_CTX = 2048
GPU_PROMPT_TOKENS = 256  # not tuned on a device yet
# Prompts up to this size become tokens within the event loop that asks; see `submits_at_once`.
_MAX_CHARACTERS_AT_ONCE = 1000
_CHARACTERS_AROUND_A_MESSAGE = 50  # what a template's work for a message is worth


class LoadedModel(Protocol):
    """Weights that are in memory, as far as this module looks at them."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def n_layers(self) -> int: ...


class LocalEngine(ABC):
    """Implements bitnet.engines.Engine for who has weights, and a Runner that computes steps with them.

    A subclass sets what stands here, calls `_begin`, and sets `_info`.
    """

    name: ClassVar[EngineName]
    survives_fork: ClassVar[bool] = True
    _tokenizer: Tokenizer
    _chat_template: ChatTemplate
    _info: ModelInfo

    def _begin(
        self,
        model: LoadedModel,
        *,
        path: Path,
        n_ctx: int,
        n_batch: int,
        max_waiting: int,
        speculate: bool,
    ) -> Runner:
        """Check that tokenizer and weights belong together, and start a scheduler."""
        if self._tokenizer.vocab_size != model.vocab_size:
            raise ModelFileError(
                f"{path}: the tokenizer has {self._tokenizer.vocab_size} tokens, but the embedding has "
                f"{model.vocab_size} rows; the file is damaged or was converted wrongly"
            )
        self._process = os.getpid()
        self._n_ctx = n_ctx
        self._n_batch = n_batch
        self._max_waiting = max_waiting
        self._speculate = speculate
        self._lock = threading.RLock()  # guards _model and _current; a garbage collection may close us
        self._model: LoadedModel | None = model
        runner = self._start(model)
        _engines.add(self)
        return runner

    @abstractmethod
    def _new_runner(self, model: Any) -> Runner:
        """Raises DeviceError and ModelFileError."""

    def _start(self, model: LoadedModel) -> Runner:
        runner = self._new_runner(model)
        # A GPU that has all layers computes so many prompt tokens in hardly more time than a few.
        prompt_tokens = GPU_PROMPT_TOKENS if runner.n_gpu_layers == model.n_layers else PROMPT_TILE
        scheduler = Scheduler(
            runner,
            n_batch=self._n_batch,
            max_waiting=self._max_waiting,
            prompt_tokens=prompt_tokens,
            longest=self._n_ctx,
        )
        # Also when the engine is dropped without close, and before the interpreter ends.
        self._close = weakref.finalize(self, scheduler.close)
        self._current: Scheduler | None = scheduler
        return runner

    @property
    def _scheduler(self) -> Scheduler:
        """The scheduler of this process. Raises EngineClosedError if the model was closed before a fork, or
        does not survive one."""
        if not self.survives_fork and self._process != os.getpid():
            raise EngineClosedError(
                f"this model was loaded with the engine {self.name} before the process was forked, which it "
                "does not survive; start workers with the method 'spawn'"
            )
        with self._lock:
            if self._current is None:
                if self._model is None:
                    raise EngineClosedError("the model is closed; load it again")
                self._start(self._model)
            assert self._current is not None
            return self._current

    def leave_behind(self) -> None:
        """In a child process, right after the fork: the threads of scheduler and runner are in the parent."""
        _keep_for_ever(self._current)
        if not self._close.alive:
            self._model = None
        self._close.detach()
        self._current = None
        self._lock = threading.RLock()  # somebody who does not exist here may hold the other one

    @property
    def info(self) -> ModelInfo:
        return self._info

    def submit(self, request: Request) -> Generation:
        prompt_ids = self._prompt_ids(request)
        if len(prompt_ids) >= self._info.n_ctx:
            raise ContextOverflowError(len(prompt_ids), self._info.n_ctx)
        self._check_ids("logit_bias", request.sampling.logit_bias)
        constraint = self._constraint(request)
        gathering = Gathering(request.n)
        sequences = [
            GenerationSequence(
                prompt_ids,
                request,
                self._tokenizer,
                self._info.n_ctx,
                constraint,
                gathering,
                index,
                speculate=self._speculate,
            )
            for index in range(request.n)
        ]
        scheduler = self._scheduler
        scheduler.submit(*sequences)
        return Generation(gathering.outlet, scheduler.notice_cancel, owner=self)

    def submits_at_once(self, request: Request) -> bool:
        # To compile a grammar takes longer, and so does to make tokens of a long text.
        if request.n > 1 or request.response_format is not None or request.callable_tools:
            return False
        messages = request.messages or ()
        if any(message.tool_calls for message in messages):
            return False
        n_characters = sum(len(message.content) + _CHARACTERS_AROUND_A_MESSAGE for message in messages)
        return n_characters + len(request.prompt or request.token_ids or ()) <= _MAX_CHARACTERS_AT_ONCE

    def _constraint(self, request: Request) -> Constraint | None:
        if request.callable_tools:
            from bitnet.text.tool_grammar import tool_constraint  # late: most requests need no grammars

            return tool_constraint(
                request.callable_tools,
                request.tool_choice,
                request.parallel_tool_calls,
                request.response_format,
                self._tokenizer,
            )
        if request.response_format is None:
            return None
        from bitnet.text.constraints import compile_constraint

        return compile_constraint(request.response_format, self._tokenizer)

    def _prompt_ids(self, request: Request) -> Sequence[int]:
        if request.token_ids is not None:
            self._check_ids("prompt", request.token_ids)
            return request.token_ids
        if request.messages is not None:
            messages, tools = prompt_parts(self._chat_template, request.messages, request.callable_tools)
            return self._chat_template.render(messages, tools=tools, **request.template_args)
        prompt_ids = self.tokenize(request.prompt or "")
        if not prompt_ids:
            raise ValidationError(
                "the prompt is empty, and this model has no token to begin with; give it some text",
                field="prompt",
            )
        return prompt_ids

    def _check_ids(self, field: str, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            if token_id >= self._info.vocab_size:
                raise ValidationError(
                    f"{field}: token id {token_id} is outside of the vocabulary of {self._info.vocab_size}",
                    field=field,
                )

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return self._tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        return self._tokenizer.decode(token_ids, skip_special=skip_special)

    def vocabulary(self) -> Sequence[bytes]:
        return [self._tokenizer.token_bytes(token_id) for token_id in range(self._tokenizer.vocab_size)]

    def render(self, request: Request) -> str:
        return self.detokenize(self._prompt_ids(request), skip_special=False)

    def count_tokens(self, request: Request) -> int:
        return len(self._prompt_ids(request))

    def logits(
        self, token_ids: Sequence[int], *, first: int = 0, cache_salt: str | None = None
    ) -> NDArray[np.float32]:
        self._check_measurable(token_ids)
        return self._measured(LogitsSequence(token_ids, self._info.vocab_size, first=first, salt=cache_salt))

    def logprobs(self, token_ids: Sequence[int], *, first: int = 1) -> NDArray[np.float64]:
        self._check_measurable(token_ids)
        return self._measured(LogprobsSequence(token_ids, first=first))

    def _check_measurable(self, token_ids: Sequence[int]) -> None:
        self._check_ids("token_ids", token_ids)
        if len(token_ids) > self._info.n_ctx:
            raise ContextOverflowError(len(token_ids), self._info.n_ctx)

    def _measured(self, sequence: LogitsSequence | LogprobsSequence) -> NDArray[Any]:
        scheduler = self._scheduler
        scheduler.submit(sequence)
        try:
            return sequence.outlet.result()
        except BaseException:
            sequence.outlet.cancelled = True
            scheduler.notice_cancel()
            raise

    def embed(self, request: EmbeddingRequest) -> NDArray[np.float32]:
        window = self._embedding_window(request)
        vectors = []
        try:
            while (outlet := window.oldest()) is not None:
                vectors.append(outlet.result())
                window.pop()
        except BaseException:
            window.cancel()
            raise
        return self._stack(vectors, request)

    async def aembed(self, request: EmbeddingRequest) -> NDArray[np.float32]:
        # To make tokens of many texts takes longer than an event loop may stand still.
        window = await asyncio.to_thread(self._embedding_window, request)
        vectors = []
        try:
            while (outlet := window.oldest()) is not None:
                vectors.append(await outlet.aresult())
                window.pop()
        except BaseException:
            window.cancel()
            raise
        return self._stack(vectors, request)

    def _embedding_window(self, request: EmbeddingRequest) -> EmbeddingWindow:
        info = self._info
        chosen = request.pooling or info.pooling
        if chosen is None:
            raise ValidationError(
                f"{info.name} declares a way of pooling that is not computed here; choose "
                'pooling="mean" or "last" yourself',
                field="pooling",
            )
        dimensions = request.dimensions or info.hidden_size
        if dimensions > info.hidden_size:
            raise ValidationError(
                f"dimensions can be {info.hidden_size} at most: that is the length of this model's vectors",
                field="dimensions",
            )
        if dimensions < info.hidden_size and info.architecture not in EMBEDDING_ARCHITECTURES:
            raise ValidationError(
                f"dimensions can only be {info.hidden_size}: this model was not trained for shorter vectors",
                field="dimensions",
            )
        prefix = info.embedding_prefixes.get(request.kind, "") if request.prefix is None else request.prefix
        texts = [self.tokenize(prefix + text) for text in request.texts]
        for index, token_ids in enumerate(texts):
            if len(token_ids) > info.n_ctx:
                raise _text_overflow(index, len(token_ids), info.n_ctx)
        sequences = (
            EmbeddingSequence(
                ids, info.hidden_size, pooling=chosen, normalize=request.normalize, dimensions=dimensions
            )
            for ids in texts
        )
        # Twice as many as run together, so that there is always one ready to follow.
        return EmbeddingWindow(self._scheduler, sequences, 2 * info.n_batch)

    def _stack(self, vectors: list[NDArray[np.float32]], request: EmbeddingRequest) -> NDArray[np.float32]:
        length = request.dimensions or self._info.hidden_size
        return np.stack(vectors) if vectors else np.empty((0, length), np.float32)

    def health(self) -> Health:
        try:
            return self._scheduler.health()
        except EngineClosedError:  # before the fork that made this process
            return Health(closed=True, running=0, waiting=0, free_blocks=0, n_blocks=0, n_steps=0, n_tokens=0)

    def close(self) -> None:
        with self._lock:
            scheduler, self._model = self._current, None
        if scheduler is not None:
            self._close()
            scheduler.close()  # waits, should another thread be closing


def text_parts(
    path: Path, metadata: Mapping[str, Any], other_encode: Encode | None = None
) -> tuple[Tokenizer, ChatTemplate, list[str]]:
    """Tokenizer and chat template, and what was repaired. Raises ModelFileError naming the file.

    other_encode: for a file whose text is split in a way unknown here.
    """
    try:
        tokenizer = Tokenizer.from_metadata(metadata, other_encode)
        template = ChatTemplate.from_metadata(metadata, tokenizer)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None
    repairs = [*tokenizer.repairs, *template.repairs]
    end = template.end_of_turn()
    if end is not None and end not in tokenizer.end_ids and end != tokenizer.bos_id:
        tokenizer = tokenizer.ending_with(end)
        repairs.append(
            f"The chat template ends each answer with {tokenizer.token_text(end)} ({end}), which the model "
            "file does not name as the end of a turn; it ends answers here, too."
        )
    return tokenizer, template, repairs


def pooling(metadata: Mapping[str, Any], architecture: str) -> Pooling | None:
    declared = metadata.get(f"{architecture}.pooling_type")
    if declared is None:
        return "last" if architecture in EMBEDDING_ARCHITECTURES else "mean"
    return POOLING_TYPES.get(declared) if isinstance(declared, int) else None


_told: set[tuple[str, int, str]] = set()


def tell_once(path: Path, messages: Iterable[str]) -> None:
    """Log each message about a file once in this process, however often the file is loaded."""
    for message in dict.fromkeys(messages):
        key = (os.path.realpath(path), path.stat().st_mtime_ns, message)
        if key not in _told:
            _told.add(key)
            logger.warning("%s: %s", path.name, message)


def _text_overflow(index: int, n_tokens: int, n_ctx: int) -> ContextOverflowError:
    error = ContextOverflowError(n_tokens, n_ctx)
    error.field = "texts"
    error.args = (
        f"texts[{index}] has {n_tokens} tokens; a context of {n_ctx} has room for {n_ctx}. Shorten or split "
        "the text, or load the model with a larger n_ctx",
    )
    return error


def context_size(n_ctx: int | None, limit: int) -> int:
    """Tokens a sequence may hold. n_ctx: None = the default, 0 = the model's own limit.

    Raises ValidationError for more than the limit.
    """
    if n_ctx is None:
        return min(DEFAULT_N_CTX, limit)
    if n_ctx > limit:
        raise ValidationError(
            f"n_ctx={n_ctx} is more than the {limit} this model was made for; give that at most, or 0 for it",
            field="n_ctx",
        )
    return n_ctx or limit


def check_kv_tokens(kv_tokens: int | None, n_ctx: int) -> None:
    """Raises ValidationError if there is no room for one sequence."""
    if kv_tokens is not None and kv_tokens < n_ctx:
        raise ValidationError(
            f"kv_tokens={kv_tokens} is less than one context of n_ctx={n_ctx}; give that at least, or load "
            "the model with a smaller n_ctx",
            field="kv_tokens",
        )


_engines: weakref.WeakSet[LocalEngine] = weakref.WeakSet()


def _keep_for_ever(value: object) -> None:
    """Never destroy `value`: the destructor of a thread pool waits for its threads."""
    import ctypes  # only after a fork

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _after_fork() -> None:
    for engine in list(_engines):
        engine.leave_behind()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
