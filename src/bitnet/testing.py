"""For tests of code that uses bitnet: an engine that answers what a script says, without a model.

    engine = FakeEngine(["Hello!", FakeReply(error=OverloadedError("busy"))])
    model = BitNet.from_engine(engine)
    assert model.generate("Hi").text == "Hello!"
    assert engine.requests[0].prompt == "Hi"

Everything else is real: requests are validated, generations can be iterated, awaited, cancelled and dropped.
"""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bitnet.engines.generation import Generation, Outlet
from bitnet.errors import ContextOverflowError, EngineClosedError, OverloadedError, ValidationError
from bitnet.runtime.answer import AnswerText, Gathering
from bitnet.text.tool_calls import CLOSER, OPENER
from bitnet.values import (
    Delta,
    EmbeddingRequest,
    FinishReason,
    Health,
    ModelInfo,
    Reply,
    Request,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)

if TYPE_CHECKING:
    from bitnet.engines import Engine

__all__ = ["FakeEngine", "FakeReply"]

BOS_ID, EOS_ID, VOCAB_SIZE = 256, 257, 258  # below them, one token for each byte
_SLICE = 0.001  # seconds between two looks at whether a delay is still wanted


@dataclass(frozen=True)
class FakeReply:
    """What to answer to one request.

    text: the answer, or its pieces: each is one Delta. If the request has tools, <tool_call> in it begins a
    call, as in a model's answer.
    tool_calls: calls behind the text. A mapping as arguments is made into JSON.
    finish_reason: unless max_tokens ("length"), a stop string ("stop") or the user ("cancelled") ends it
    before. With calls, "stop" becomes "tool_calls".
    error: raised by the generation after the text.
    refuse: raised at once by whoever submits the request, and there is no generation.
    delay: seconds before each Delta, and before the end.
    logprob: of every token, if the request asks for log-probabilities.
    """

    text: str | Sequence[str] = ""
    tool_calls: Sequence[ToolCall] = ()
    finish_reason: FinishReason = "stop"
    error: BaseException | None = None
    refuse: BaseException | None = None
    delay: float = 0.0
    logprob: float = -0.1

    @property
    def pieces(self) -> tuple[str, ...]:
        text = (self.text,) if isinstance(self.text, str) else tuple(self.text)
        calls = (
            f'{OPENER}{{"name": "{call.name}", "arguments": {call.arguments}}}{CLOSER}'
            for call in self.tool_calls
        )
        return (*(piece for piece in text if piece or not self.tool_calls), *calls)


Script = str | FakeReply | Iterable[str | FakeReply] | Callable[[Request], str | FakeReply]
Embedder = Mapping[str, Sequence[float]] | Callable[[str], Sequence[float]]


class FakeEngine:
    """Implements bitnet.engines.Engine. Its tokens are the bytes of a text, behind a token that begins it.

    requests, embedding_requests: all that were submitted, the refused ones included.
    """

    def __init__(
        self,
        replies: Script = "",
        *,
        embeddings: Embedder | None = None,
        embedding_dim: int = 16,
        n_ctx: int = 2048,
        n_batch: int = 8,
        max_waiting: int = 1024,
        name: str = "fake",
    ) -> None:
        """replies: one for all requests; or one after the other, and an AssertionError when there are no
            more; or a function of the request, called on the thread that submits it.
        embeddings: the vectors by text, or a function of the text; None = vectors made of the text's hash.
        embedding_dim: the length of those.
        n_ctx: tokens of prompt and answer together. n_batch: requests answered at the same time; up to
            max_waiting more are accepted, and answered at the same time as well.
        """
        self.requests: list[Request] = []
        self.embedding_requests: list[EmbeddingRequest] = []
        self._reply_to = _as_function(replies)
        self._embeddings = embeddings
        self._max_requests = n_batch + max_waiting
        self._lock = threading.Lock()
        self._threads: dict[threading.Thread, Outlet[Reply]] = {}
        self._closed = False
        self._n_tokens = 0
        self._info = ModelInfo(
            name=name,
            path="",
            architecture="fake",
            activation="none",
            n_parameters=0,
            n_layers=0,
            hidden_size=embedding_dim,
            ffn_size=0,
            n_heads=0,
            n_kv_heads=0,
            head_dim=0,
            vocab_size=VOCAB_SIZE,
            tied_head=True,
            context_length=n_ctx,
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_threads=1,
            kernels="none",
            ternary_bytes=0,
            head_bytes=0,
            kv_bytes=0,
            has_chat_template=True,
            pooling="mean",
            repairs=(),
            warnings=(),
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def submit(self, request: Request) -> Generation:
        prompt_ids = self._prompt_ids(request)
        with self._lock:
            self._check_open()
            self.requests.append(request)
        if len(prompt_ids) >= self._info.n_ctx:
            raise ContextOverflowError(len(prompt_ids), self._info.n_ctx)
        _check_ids("logit_bias", request.sampling.logit_bias)
        gathering = Gathering(request.n)
        threads = []
        for index in range(request.n):
            reply = self._reply_to(request)
            if isinstance(reply, str):
                reply = FakeReply(reply)
            if reply.refuse is not None:
                raise reply.refuse
            answer = _Answer(request, reply, len(prompt_ids), self._info.n_ctx, gathering, index)
            threads.append(
                threading.Thread(target=self._run, args=(answer,), name="bitnet-fake", daemon=True)
            )
        with self._lock:
            self._check_open()
            if len(self._threads) + len(threads) > self._max_requests:
                raise OverloadedError(f"too many requests: {len(self._threads)} under way")
            self._threads.update(dict.fromkeys(threads, gathering.outlet))
        for thread in threads:
            thread.start()
        return Generation(gathering.outlet, lambda: None, owner=self)

    def submits_at_once(self, request: Request) -> bool:
        return False  # a reply may be a function, which may take its time

    def _run(self, answer: _Answer) -> None:
        hand_over = answer.run()
        # Before the one who waits goes on: as with a real engine, an answer that is there is not under way.
        with self._lock:
            self._n_tokens += answer.n_tokens
            del self._threads[threading.current_thread()]
        hand_over()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the model is closed; load it again")

    def _prompt_ids(self, request: Request) -> Sequence[int]:
        if request.token_ids is not None:
            _check_ids("prompt", request.token_ids)
            return request.token_ids
        if request.messages is not None:
            return self.tokenize(self.render(request))
        return self.tokenize(request.prompt or "")

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return [BOS_ID] * add_special + list(text.encode())

    def detokenize(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        _check_ids("token_ids", token_ids)
        special = {BOS_ID: b"<s>", EOS_ID: b"</s>"}
        return b"".join(
            bytes([token_id]) if token_id < BOS_ID else b"" if skip_special else special[token_id]
            for token_id in token_ids
        ).decode(errors="replace")

    def vocabulary(self) -> Sequence[bytes]:
        return [*(bytes([byte]) for byte in range(BOS_ID)), b"<s>", b"</s>"]

    def render(self, request: Request) -> str:
        """A line for each message, and one for the tools if there are any."""
        if request.messages is None:
            return self.detokenize(self._prompt_ids(request))
        lines = [f"tools: {', '.join(tool.name for tool in request.callable_tools)}\n"]
        lines += [
            f"{message.role}: {' '.join([message.content, *(call.name for call in message.tool_calls)])}\n"
            for message in request.messages
        ]
        return "".join(lines[not request.callable_tools :]) + "assistant: "

    def count_tokens(self, request: Request) -> int:
        return len(self._prompt_ids(request))

    def logits(
        self, token_ids: Sequence[int], *, first: int = 0, cache_salt: str | None = None
    ) -> NDArray[np.float32]:
        """Noise that depends on the tokens so far, as a model's logits do."""
        with self._lock:
            self._check_open()
        _check_ids("token_ids", token_ids)
        if len(token_ids) > self._info.n_ctx:
            raise ContextOverflowError(len(token_ids), self._info.n_ctx)
        return np.stack(
            [_noise(repr(tuple(token_ids[: end + 1])), VOCAB_SIZE) for end in range(first, len(token_ids))]
        )

    def logprobs(self, token_ids: Sequence[int], *, first: int = 1) -> NDArray[np.float64]:
        """Those of `logits`."""
        logits = self.logits(token_ids, first=first - 1)[:-1].astype(np.float64)
        targets = np.array(token_ids[first:])
        shifted = logits - logits.max(axis=1, keepdims=True)
        logprobs: NDArray[np.float64] = shifted[range(len(targets)), targets] - np.log(
            np.exp(shifted).sum(axis=1)
        )
        return logprobs

    def embed(self, request: EmbeddingRequest) -> NDArray[np.float32]:
        with self._lock:
            self._check_open()
            self.embedding_requests.append(request)
        for text in request.texts:
            if self._info.n_ctx < (n_tokens := len(self.tokenize(text))):
                raise ContextOverflowError(n_tokens, self._info.n_ctx)
        size = request.dimensions or self._info.hidden_size
        if size > self._info.hidden_size:
            raise ValidationError(
                f"dimensions={size} is more than the {self._info.hidden_size} of this model's vectors",
                field="dimensions",
            )
        vectors = [self._vector((request.prefix or "") + text)[:size] for text in request.texts]
        if request.normalize:
            vectors = [vector / np.linalg.norm(vector) for vector in vectors]
        stacked = np.stack(vectors) if vectors else np.empty((0, size))
        return stacked.astype(np.float32)

    async def aembed(self, request: EmbeddingRequest) -> NDArray[np.float32]:
        await asyncio.sleep(0)  # a point to be cancelled at
        return self.embed(request)

    def _vector(self, text: str) -> NDArray[np.float64]:
        if self._embeddings is None:
            return _noise(text, self._info.hidden_size).astype(np.float64)
        if callable(self._embeddings):
            return np.asarray(self._embeddings(text), np.float64)
        return np.asarray(self._embeddings[text], np.float64)

    def health(self) -> Health:
        with self._lock:
            return Health(
                closed=self._closed,
                running=len(self._threads),
                waiting=0,
                free_blocks=self._info.n_batch - min(len(self._threads), self._info.n_batch),
                n_blocks=self._info.n_batch,
                n_steps=self._n_tokens,
                n_tokens=self._n_tokens,
            )

    def close(self) -> None:
        with self._lock:
            self._closed = True
            under_way = dict(self._threads)
        for outlet in under_way.values():
            outlet.fail(EngineClosedError("the model was closed before the answer was complete"))
            outlet.cancelled = True
        for thread in under_way:
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join()


class _Answer:
    """One reply on its way out, on a thread of its own."""

    def __init__(
        self, request: Request, reply: FakeReply, n_prompt: int, n_ctx: int, gathering: Gathering, index: int
    ) -> None:
        self._gathering = gathering
        self._index = index
        self._outlet = gathering.outlet
        self._request = request
        self._reply = reply
        self._n_prompt = n_prompt
        room = n_ctx - n_prompt
        self._max_tokens = min(request.max_tokens or room, room)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._answer = AnswerText(request.stop, with_tools=bool(request.callable_tools or reply.tool_calls))
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._started_at = time.perf_counter()
        self._first_token_at: float | None = None

    @property
    def n_tokens(self) -> int:
        return len(self._ids)

    def run(self) -> Callable[[], None]:
        """Say all of it. Returns what hands over how it ended."""
        try:
            reason = self._speak()
        except BaseException as error:
            return partial(self._fail, error)
        now = time.perf_counter()
        first = self._first_token_at or now
        calls = self._answer.tool_calls
        reply = Reply(
            text=self._answer.text,
            token_ids=tuple(self._ids),
            finish_reason="tool_calls" if calls and reason == "stop" else reason,
            usage=Usage(self._n_prompt, len(self._ids)),
            timings=Timings(0.0, first - self._started_at, now - first, 0.0, 0.0),
            logprobs=tuple(self._logprobs) if self._request.logprobs else None,
            stop_string=self._answer.stop_string,
            tool_calls=calls,
        )
        return partial(self._gathering.finish, self._index, reply)

    def _fail(self, error: BaseException) -> None:
        self._outlet.fail(error)
        self._outlet.cancelled = True

    def _speak(self) -> FinishReason:
        for piece in self._reply.pieces:
            if not self._pause():
                return self._end("cancelled")
            if reason := self._say(piece):
                return self._end(reason)
        if not self._pause():
            return self._end("cancelled")
        if self._reply.error is not None:
            raise self._reply.error
        return self._end(self._reply.finish_reason)

    def _pause(self) -> bool:
        """Wait for the delay. False = cancelled meanwhile."""
        until = time.monotonic() + self._reply.delay
        # Not an event: cancelling must not wait for locks.
        while not self._outlet.cancelled and (rest := until - time.monotonic()) > 0:
            time.sleep(min(rest, _SLICE))
        return not self._outlet.cancelled

    def _say(self, piece: str) -> FinishReason | None:
        """Hand out one piece, as far as the request wants it. Returns why it ends there, if it does."""
        ids: list[int] = []
        text = ""
        calls: tuple[ToolCallDelta, ...] = ()
        reason: FinishReason | None = None
        for token_id in piece.encode():
            ids.append(token_id)
            more = self._answer.feed(self._utf8.decode(bytes([token_id])))
            text += more.text
            calls = _joined(calls, more.tool_calls)
            if self._answer.stop_string is not None:
                reason = "stop"
            elif len(self._ids) + len(ids) == self._max_tokens:
                reason = "length"
            if reason is not None:
                break
        logprobs = tuple(map(self._logprob, ids)) if self._request.logprobs else ()
        self._ids += ids
        self._logprobs += logprobs
        self._first_token_at = self._first_token_at or time.perf_counter()
        self._outlet.push(Delta(text, tuple(ids), logprobs, calls, self._index))
        return reason

    def _end(self, reason: FinishReason) -> FinishReason:
        """Hand out what was held back because a character, a stop string or a call might have been
        completed."""
        if self._answer.stop_string is None:
            text, calls = self._answer.flush(self._utf8.decode(b"", final=True))
            if text or calls:
                self._outlet.push(Delta(text, tool_calls=calls, index=self._index))
        return reason

    def _logprob(self, token_id: int) -> TokenLogprob:
        def entry(token_id: int, value: float) -> TokenLogprob:
            return TokenLogprob(token_id, bytes([token_id]), value)

        value = self._reply.logprob
        top = tuple(entry((token_id + i) % BOS_ID, value - i) for i in range(self._request.top_logprobs))
        return TokenLogprob(token_id, bytes([token_id]), value, top)


def _joined(calls: tuple[ToolCallDelta, ...], more: tuple[ToolCallDelta, ...]) -> tuple[ToolCallDelta, ...]:
    """Pieces of calls in a row, the arguments of one call in one piece."""
    for delta in more:
        if calls and delta.id is None and calls[-1].id is None and calls[-1].index == delta.index:
            calls = (*calls[:-1], replace(calls[-1], arguments=calls[-1].arguments + delta.arguments))
        else:
            calls = (*calls, delta)
    return calls


def _as_function(replies: Script) -> Callable[[Request], str | FakeReply]:
    if isinstance(replies, (str, FakeReply)):
        same = replies
        return lambda request: same
    if callable(replies):
        return replies
    script = list(replies)
    lock = threading.Lock()
    n_asked = itertools.count(1)

    def next_reply(request: Request) -> str | FakeReply:
        with lock:
            index = next(n_asked)
        if index > len(script):
            raise AssertionError(f"request {index} to a FakeEngine with a script of {len(script)} replies")
        return script[index - 1]

    return next_reply


def _check_ids(field: str, token_ids: Iterable[int]) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < VOCAB_SIZE:
            raise ValidationError(
                f"{field}: token id {token_id} is outside of the vocabulary of {VOCAB_SIZE}", field=field
            )


def _noise(seed: str, n: int) -> NDArray[np.float32]:
    """[n] numbers from -1 to 1, the same for the same seed in every process."""
    words = hashlib.shake_256(seed.encode()).digest(4 * n)
    return (np.frombuffer(words, "<i4") / 2.0**31).astype(np.float32)


if TYPE_CHECKING:
    _implements: type[Engine] = FakeEngine
