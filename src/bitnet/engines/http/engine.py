"""The engine of api mode: requests answered by a server, over HTTP.

Generations are produced by the loop of loop.py, on a thread of its own, and consumed anywhere. In a forked
process the engine is used on, with a thread and connections of its own.
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bitnet.engines.generation import Generation, Outlet
from bitnet.errors import (
    BitNetError,
    CapabilityError,
    DeadlineError,
    EngineClosedError,
    ServerError,
    ValidationError,
)
from bitnet.values import EmbeddingRequest, Health, ModelInfo, Reply, Request, as_text

from .answers import Answers, together
from .bodies import Call, calls_for, embedding_body
from .connection import Connection
from .loop import ClientLoop
from .options import BaseUrl, Secret, Timeout, as_address, as_key, as_retry, as_timeout
from .servers import Server

if TYPE_CHECKING:
    from bitnet.engines import Engine

Result = TypeVar("Result")

# Of a request for embeddings, so that none takes long and a cancelled one wastes little.
_TEXTS_PER_REQUEST = 64


class HttpEngine:
    """Implements bitnet.engines.Engine over HTTP.

    The server is `bitnet serve`, llama-server (bitnet.cpp's run_inference_server.py starts one), vLLM, or
    anything else that speaks OpenAI's API. What it is, it is asked before the first request. What it cannot
    do raises CapabilityError naming the field, before anything is sent; stop strings beyond the four that
    OpenAI's API takes are looked for here.

    What differs from an engine in this process: errors of a request are raised by its Generation, not by
    `submit`, unless they are known here. What a server does not tell is empty or 0: token_ids, token ids of
    log-probabilities (-1), usage, sizes in `info`. How special tokens written out in a text are read is the
    server's business. `logits` is not to be had.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: object = None,
        timeout: object = None,
        retry: object = None,
        verify: bool | str = True,
        proxy: str | Secret | None = None,
    ) -> None:
        """Does not ask the server anything yet; `connect` does.

        base_url: with or without /v1. model: its name there; None = the only one there is.
        api_key: a string, a Secret or a pydantic.SecretStr.
        timeout: {"connect": ..., "total": ...}, milliseconds, 0 = no limit; 10 s and 120 s unless given. A
            number is the total in seconds. total covers a whole answer, retries included.
        retry: {"enabled", "max_retries", "initial_wait_ms", "max_wait_ms", "exponential_base", "jitter"};
            False = none. Only what failed before the first token is sent again: connections that failed, and
            the statuses 429, 502, 503 and 504, no sooner than a Retry-After of up to max_wait_ms says.
        verify: False = any certificate will do; a text = file or folder of certificates to trust instead of
            the usual ones.
        proxy: its URL; None = as the environment says (HTTP_PROXY, HTTPS_PROXY, NO_PROXY); "" = none.
        Raises ValidationError.
        """
        options = engine_options(
            base_url, model=model, api_key=api_key, timeout=timeout, retry=retry, verify=verify, proxy=proxy
        )
        self._base_url = options["base_url"]
        self._timeout = options["timeout"]
        self._connection = Connection(
            as_address(base_url),
            model=model,
            key=options["api_key"],
            timeout=options["timeout"],
            retry=options["retry"],
            verify=options["verify"],
            proxy=options["proxy"],
        )
        self._lock = threading.RLock()  # guards _loop and _closed; a garbage collection may close us
        self._loop: ClientLoop | None = None
        self._stop_loop: weakref.finalize[Any, Any] | None = None
        self._closed = False
        self._under_way: set[Outlet[Reply]] = set()
        _engines.add(self)

    def _client_loop(self) -> ClientLoop:
        """The loop of this process. Raises EngineClosedError, and ValidationError for proxy and verify."""
        with self._lock:
            if self._closed:
                raise EngineClosedError("the connection is closed; make another one")
            if self._loop is None:
                try:
                    self._loop = ClientLoop(self._connection.make_client)
                except (ValueError, ImportError) as error:
                    if isinstance(error, BitNetError):
                        raise
                    # The text may hold the password of the proxy.
                    raise ValidationError("proxy is not the URL of a proxy", field="proxy") from None
                # When the engine is dropped without close, and before the interpreter ends.
                self._stop_loop = weakref.finalize(self, self._loop.stop, wait=False)
            return self._loop

    def leave_behind(self) -> None:
        """In a child process, right after the fork: the thread is in the parent."""
        self._lock = threading.RLock()  # somebody who does not exist here may hold the other one
        if self._stop_loop is not None:
            self._stop_loop.detach()
        if self._loop is not None:
            self._loop.leave_behind()
        self._loop = self._stop_loop = None
        self._under_way = set()

    def connect(self) -> None:
        """Ask the server what it is, unless that is known; `bitnet serve` then has the model loaded as well.

        Raises what requests raise.
        """
        self._sized_server()

    def _server(self) -> Server:
        known = self._connection.server
        if known is not None:
            return known
        return self._wait(lambda loop: self._connection.identify(loop, self._deadline()))

    def _sized_server(self) -> Server:
        server = self._server()
        if server.kind == "bitnet" and not server.n_ctx and not self._closed:
            # It tells the sizes once it has loaded the model, which this makes it do.
            self._ask(f"{server.root}/tokenize", {"content": ""}, server)
            server = self._wait(lambda loop: self._connection.identify(loop, self._deadline(), again=True))
        return server

    def _deadline(self) -> float | None:
        return _deadline(self._timeout)

    @property
    def info(self) -> ModelInfo:
        """What the server tells of its model; asked if it was not asked yet."""
        return self._sized_server().info

    def submit(self, request: Request) -> Generation:
        server = self._connection.server
        # Refused here and now if it is known what the server cannot do.
        calls = None if server is None else calls_for(server, request)
        outlet: Outlet[Reply] = Outlet()
        under_way = self._under_way
        with self._lock:
            loop = self._client_loop()
            answering = _Answering(self._connection, loop, request, outlet, calls, self._timeout)

            def ended(task: asyncio.Task[None]) -> None:  # without the engine: it may be dropped meanwhile
                under_way.discard(outlet)
                answering.end(task)

            under_way.add(outlet)
            cancel = loop.spawn(answering.run(), ended, self._timeout.total_seconds)
        return Generation(outlet, cancel, owner=self)

    def submits_at_once(self, request: Request) -> bool:
        return False  # the first one waits for the thread of the client's loop

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        server = self._server()
        if server.kind == "vllm":
            if not parse_special:
                raise self._lacks("tokenize without parse_special")
            body = {"model": server.model, "prompt": text, "add_special_tokens": add_special}
        else:
            body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        answer = self._ask(f"{self._tokenizer_root(server)}/tokenize", body, server)
        return _token_ids(answer)

    def detokenize(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        server = self._server()
        body: dict[str, Any] = {"tokens": list(token_ids)}
        if server.kind == "bitnet":
            body["skip_special"] = skip_special
        elif skip_special and server.kind == "llama-server":
            raise self._lacks("detokenize with skip_special")
        answer = self._ask(f"{self._tokenizer_root(server)}/detokenize", body, server)
        text = answer.get("content", answer.get("prompt")) if isinstance(answer, Mapping) else None
        if not isinstance(text, str):
            raise ServerError(f"the server's answer cannot be understood: {answer!r:.100}")
        return text

    def vocabulary(self) -> Sequence[bytes]:
        raise self._lacks("its vocabulary to tell")

    def render(self, request: Request) -> str:
        server = self._server()
        if request.messages is None:
            if request.prompt is not None:
                return request.prompt
            return self.detokenize(request.token_ids or (), skip_special=False)
        if server.kind not in ("bitnet", "llama-server") or not server.modern:
            raise self._lacks("/apply-template")
        answer = self._ask(f"{server.root}/apply-template", self._prompt_body(server, request), server)
        prompt = answer.get("prompt") if isinstance(answer, Mapping) else None
        if not isinstance(prompt, str):
            raise ServerError(f"the server's answer cannot be understood: {answer!r:.100}")
        return prompt

    def count_tokens(self, request: Request) -> int:
        if request.token_ids is not None:
            return len(request.token_ids)
        server = self._server()
        if request.messages is None:
            # All but ours read special tokens in every text.
            return len(self.tokenize(request.prompt or "", parse_special=server.kind != "bitnet"))
        if server.kind == "bitnet":  # counts what it would compute
            answer = self._ask(f"{server.root}/tokenize", self._prompt_body(server, request), server)
            count = answer.get("count") if isinstance(answer, Mapping) else None
            if not isinstance(count, int):
                raise ServerError(f"the server's answer cannot be understood: {answer!r:.100}")
            return count
        return len(self.tokenize(self.render(request), add_special=True, parse_special=True))

    def _prompt_body(self, server: Server, request: Request) -> dict[str, Any]:
        """What makes the prompt of a conversation."""
        body = calls_for(server, request)[0].body
        names = ("messages", "tools", "tool_choice", "chat_template_kwargs")
        return {name: body[name] for name in names if name in body}

    def logits(
        self, token_ids: Sequence[int], *, first: int = 0, cache_salt: str | None = None
    ) -> NDArray[np.float32]:
        raise self._lacks("logits")

    def logprobs(self, token_ids: Sequence[int], *, first: int = 1) -> NDArray[np.float64]:
        raise self._lacks("logprobs of a given text")

    def embed(self, request: EmbeddingRequest) -> NDArray[np.float32]:
        return self._wait(lambda loop: self._embed(loop, request))

    async def aembed(self, request: EmbeddingRequest) -> NDArray[np.float32]:
        future = self._begin(lambda loop: self._embed(loop, request))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self._closed:
                raise EngineClosedError("the connection was closed before the answer was complete") from None
            raise

    async def _embed(self, loop: ClientLoop, request: EmbeddingRequest) -> NDArray[np.float32]:
        deadline = self._deadline()
        server = await self._connection.identify(loop, deadline)
        rows: list[NDArray[np.float32]] = []
        texts = request.texts
        embedding_body(server, request, ())  # refuses what the server does not have, also for no texts
        for start in range(0, len(texts), _TEXTS_PER_REQUEST):
            part = texts[start : start + _TEXTS_PER_REQUEST]
            body = embedding_body(server, request, part)
            answer = await self._connection.post(loop, f"{server.api}/embeddings", body, deadline)
            rows += _vectors(answer, len(part))
        if not rows:
            return np.empty((0, request.dimensions or server.hidden_size), np.float32)
        if len({row.shape for row in rows}) != 1:
            raise ServerError("the server's embeddings are not all of the same length")
        vectors = np.stack(rows)
        if request.dimensions not in (None, vectors.shape[1]):
            raise ServerError(
                f"the server's embeddings have {vectors.shape[1]} dimensions instead of {request.dimensions}"
            )
        if not np.isfinite(vectors).all():
            raise ServerError("the server's embeddings are not all finite numbers")
        if request.normalize and server.kind != "bitnet":
            lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
            if not lengths.all():
                raise ServerError("the server's embedding is zero, and has no direction")
            vectors = (vectors / lengths).astype(np.float32)
        return vectors

    def health(self) -> Health:
        """Of this engine; the server is not asked. running: answers that are waited for."""
        return Health(
            closed=self._closed,
            running=len(self._under_way),
            waiting=0,
            free_blocks=0,
            n_blocks=0,
            n_steps=0,
            n_tokens=0,
        )

    def close(self) -> None:
        with self._lock:
            self._closed = True
            loop, stop = self._loop, self._stop_loop
            under_way = list(self._under_way)
        for outlet in under_way:
            outlet.fail(EngineClosedError("the connection was closed before the answer was complete"))
        if stop is not None:
            stop.detach()
        if loop is not None:
            loop.stop(wait=True)

    def _lacks(self, what: str) -> CapabilityError:
        server = self._server()
        return CapabilityError(f"{server.title} at {server.root} does not have {what}")

    def _tokenizer_root(self, server: Server) -> str:
        if not server.has_tokenizer:
            raise self._lacks("a tokenizer to ask (/tokenize and /detokenize)")
        return server.root

    def _ask(self, url: str, body: Mapping[str, Any], server: Server) -> Any:
        if server.kind == "bitnet" and server.model is not None:
            body = {"model": server.model, **body}
        return self._wait(lambda loop: self._connection.post(loop, url, body, self._deadline()))

    async def _timed(self, work: Coroutine[Any, Any, Result]) -> Result:
        try:
            return await asyncio.wait_for(work, self._timeout.total_seconds)
        except asyncio.TimeoutError as error:
            if isinstance(error, BitNetError):
                raise
            raise _late(self._timeout) from None

    def _begin(
        self, work: Callable[[ClientLoop], Coroutine[Any, Any, Result]]
    ) -> concurrent.futures.Future[Result]:
        with self._lock:  # or the loop might be closed before it has begun, and nobody would be told
            loop = self._client_loop()
            return loop.submit(self._timed(work(loop)))

    def _wait(self, work: Callable[[ClientLoop], Coroutine[Any, Any, Result]]) -> Result:
        """What `work` returns, waited for."""
        future = self._begin(work)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise EngineClosedError("the connection was closed before the answer was complete") from None
        except BaseException:
            future.cancel()
            raise

    def __repr__(self) -> str:
        return f"HttpEngine({self._base_url!r})"


def engine_options(
    base_url: Any,
    *,
    model: Any = None,
    api_key: Any = None,
    timeout: Any = None,
    retry: Any = None,
    verify: Any = True,
    proxy: Any = None,
) -> dict[str, Any]:
    """The arguments of HttpEngine, checked, hashable and without a text in them that must not be shown."""
    address = as_address(base_url)
    if model is not None and as_text("model", model) == "":
        raise ValidationError("model is empty", field="model")
    key = as_key(api_key)
    if key is not None and address.username:
        raise ValidationError("base_url has a user in it, and there is an api_key: give one", field="api_key")
    if not isinstance(verify, (bool, str)):
        raise ValidationError(
            f"verify must be True, False or a path, not {type(verify).__name__}", field="verify"
        )
    if proxy is not None and not isinstance(proxy, Secret):
        proxy = Secret(as_text("proxy", proxy))
    return {
        "base_url": BaseUrl(base_url),
        "model": model,
        "api_key": key,
        "timeout": as_timeout(timeout),
        "retry": as_retry(retry),
        "verify": verify,
        "proxy": proxy,
    }


def connected_engine(**options: Any) -> HttpEngine:
    """An HttpEngine that knows its server. Raises what asking the server raises."""
    engine = HttpEngine(**options)
    try:
        engine.connect()
    except BaseException:
        engine.close()
        raise
    return engine


class _Answering:
    """A request while it is being answered. Holds the engine's connection, but not the engine."""

    def __init__(
        self,
        connection: Connection,
        loop: ClientLoop,
        request: Request,
        outlet: Outlet[Reply],
        calls: list[Call] | None,
        timeout: Timeout,
    ) -> None:
        self._connection = connection
        self._loop = loop
        self._request = request
        self._outlet = outlet
        self._calls = calls
        self._timeout = timeout
        self._deadline = _deadline(timeout)
        self._answers: list[Answers] = []

    async def run(self) -> None:
        if self._calls is None:
            server = await self._connection.identify(self._loop, self._deadline)
            self._calls = calls_for(server, self._request)
        self._answers = [self._new_answers(call) for call in self._calls]
        await _all(*(self._answer(place, call) for place, call in enumerate(self._calls)))

    def _new_answers(self, call: Call) -> Answers:
        return Answers(self._request, self._outlet, call.indices, call.shape)

    async def _answer(self, place: int, call: Call) -> None:
        def anew() -> Answers:
            self._answers[place] = self._new_answers(call)
            return self._answers[place]

        await self._connection.stream(self._loop, call, anew, self._deadline)

    def end(self, task: asyncio.Task[None]) -> None:
        """The task is over: give the outlet its reply, or the error."""
        outlet = self._outlet
        try:
            if not task.cancelled():
                if (error := task.exception()) is not None:
                    outlet.fail(error)
                else:
                    outlet.finish(together(self._answers))
            elif outlet.cancelled:
                answers = self._answers or [Answers(self._request, outlet, range(self._request.n), "chat")]
                outlet.finish(together(answers, "cancelled"))
            else:
                outlet.fail(_late(self._timeout))
        except BaseException as error:
            outlet.fail(error)


def _deadline(timeout: Timeout) -> float | None:
    """In seconds of time.monotonic."""
    seconds = timeout.total_seconds
    return None if seconds is None else time.monotonic() + seconds


def _late(timeout: Timeout) -> DeadlineError:
    return DeadlineError(
        f"the answer was not complete after {timeout.total / 1000:g} s; allow more time (timeout.total) or "
        "fewer tokens (max_tokens)"
    )


async def _all(*works: Coroutine[Any, Any, None]) -> None:
    """Wait for all; if one fails or this is cancelled, the others are cancelled."""
    if len(works) == 1:
        await works[0]
        return
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _token_ids(answer: Any) -> list[int]:
    tokens = answer.get("tokens") if isinstance(answer, Mapping) else None
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise ServerError(f"the server's answer cannot be understood: {answer!r:.100}")
    return tokens


def _vectors(answer: Any, count: int) -> list[NDArray[np.float32]]:
    """The vectors of an answer of /v1/embeddings, in the order of the texts."""
    try:
        entries = sorted(answer["data"], key=lambda entry: entry["index"])
        if [entry["index"] for entry in entries] != list(range(count)):
            raise ValueError(f"{len(entries)} embeddings of {count} texts")
        vectors = [_vector(entry["embedding"]) for entry in entries]
    except (TypeError, ValueError, KeyError) as error:
        raise ServerError(f"the server's embeddings cannot be understood: {error!r:.200}") from None
    return vectors


def _vector(value: Any) -> NDArray[np.float32]:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float32)
    vector = np.asarray(value, np.float32)
    if vector.ndim != 1 or not len(vector):
        raise ValueError("an embedding must be a list of numbers")
    return vector


_engines: weakref.WeakSet[HttpEngine] = weakref.WeakSet()


def _after_fork() -> None:
    for engine in list(_engines):
        engine.leave_behind()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

if TYPE_CHECKING:
    _implements: type[Engine] = HttpEngine
