"""/completions: plain text continued, in OpenAI's older shape."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from bitnet.engines.generation import Generation
from bitnet.server import generate, parameters, strict_json
from bitnet.server.chat import SYSTEM_FINGERPRINT, stream_parameters
from bitnet.server.errors import ApiError, invalid
from bitnet.server.exchange import Exchange
from bitnet.server.generate import DONE, sse
from bitnet.server.watch import Watch
from bitnet.values import MAX_TOP_LOGPROBS, Delta, Reply, TokenLogprob


async def completions(exchange: Exchange) -> None:
    body = await exchange.read_json()
    options = parameters.options_of(body, parameters.COMPLETIONS)
    prompts = _prompts(body.get("prompt"), exchange.service.limits.max_prompts)
    options.update(_logprob_options(body.get("logprobs")))
    _check_best_of(body.get("best_of"), options.get("n", 1))
    options["cache_salt"] = generate.salt(exchange, body)
    exchange.service.limits.apply(options)
    streamed, with_usage = stream_parameters(body)
    with_ids = parameters.flag(body, "return_token_ids")
    if streamed and len(prompts) > 1:
        raise invalid("several prompts cannot be streamed together: send them one by one", "prompt")
    served = exchange.service.models.find(body.get("model"))
    exchange.model = served.name
    async with served.use() as model:
        generations = [model.astream(prompt, **options) for prompt in prompts]
        if streamed:
            writer = _CompletionWriter(served.name, with_usage=with_usage, with_ids=with_ids)
            await generate.stream(exchange, generations[0], writer)
            return
        if len(generations) == 1:
            replies = [await generate.whole(exchange, generations[0])]
        else:
            replies = await _all(exchange, generations)
    await exchange.send_json(_completion(served.name, replies, exchange, with_ids=with_ids))


async def _all(exchange: Exchange, generations: Sequence[Generation]) -> list[Reply]:
    """Several whole answers, computed together. If one fails, the others are of no use."""
    computing = asyncio.gather(*(generation.aresult() for generation in generations))

    def cancel() -> None:
        for generation in generations:
            generation.cancel()

    watch = Watch(exchange, cancel)
    try:
        replies = await computing
    except Exception:
        cancel()
        watch.check()
        raise
    finally:
        watch.close()
    watch.check()
    for reply in replies:
        generate.note(exchange, reply)
    return replies


def _prompts(value: Any, limit: int) -> list[Any]:
    """A text, texts, token ids, or lists of token ids, as a list of what BitNet.generate takes."""
    if value is None:
        raise invalid("prompt is missing", "prompt")
    if isinstance(value, str) or not isinstance(value, list):
        return [value if isinstance(value, str) else _not_a_prompt()]
    if not value:
        raise invalid("prompt is empty: there is nothing to continue", "prompt")
    if all(isinstance(item, int) for item in value):
        return [value]
    if not all(isinstance(item, (str, list)) for item in value):
        _not_a_prompt()
    if len(value) > limit:
        raise invalid(f"prompt must hold at most {limit} prompts here, not {len(value)}", "prompt")
    return value


def _not_a_prompt() -> Any:
    raise invalid("prompt must be a string, a list of strings, or token ids", "prompt")


def _logprob_options(value: Any) -> dict[str, Any]:
    """Here logprobs is a number: of the likeliest tokens to tell beside the chosen one."""
    if value is None:
        return {}
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOP_LOGPROBS:
        raise invalid(f"logprobs must be a whole number from 0 to {MAX_TOP_LOGPROBS} here", "logprobs")
    return {"logprobs": True, "top_logprobs": value}


def _check_best_of(best_of: Any, n: Any) -> None:
    if best_of is not None and (isinstance(best_of, bool) or best_of != n):
        raise invalid(
            "best_of is not supported: ask for n answers and choose among them",
            "best_of",
            "unsupported_parameter",
        )


def _completion(
    model: str, replies: Sequence[Reply], exchange: Exchange, *, with_ids: bool
) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    for reply in replies:
        for sample in reply.samples or (reply,):
            choice = {
                "index": len(choices),
                "text": sample.text,
                "logprobs": None if sample.logprobs is None else _logprobs(sample.logprobs, 0),
                "finish_reason": sample.finish_reason,
                "stop_reason": sample.stop_string,
            }
            if with_ids:
                choice["token_ids"] = list(sample.token_ids)
            choices.append(choice)
    assert exchange.usage is not None
    return {
        "id": generate.new_id("cmpl"),
        "object": "text_completion",
        "created": generate.now(),
        "model": model,
        "choices": choices,
        "usage": generate.usage_dict(exchange.usage),
        "system_fingerprint": SYSTEM_FINGERPRINT,
        "timings": replies[0].timings.to_dict(),
    }


def _logprobs(entries: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """The older shape. offset: characters of the answer before these tokens."""
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry.token)
    return {
        "tokens": [entry.token for entry in entries],
        "token_logprobs": [generate.logprob_value(entry.logprob) for entry in entries],
        "top_logprobs": [_top(entry) for entry in entries],
        "text_offset": offsets,
    }


def _top(entry: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens and the chosen one. Of tokens that read alike, the likeliest."""
    top: dict[str, float] = {}
    for other in (*entry.top, entry):
        top.setdefault(other.token, generate.logprob_value(other.logprob))
    return top


class _CompletionWriter:
    """Chunks of a text completion."""

    def __init__(self, model: str, *, with_usage: bool, with_ids: bool) -> None:
        self._with_usage = with_usage
        self._with_ids = with_ids
        head = strict_json.dump(
            {
                "id": generate.new_id("cmpl"),
                "object": "text_completion",
                "created": generate.now(),
                "model": model,
                "system_fingerprint": SYSTEM_FINGERPRINT,
            }
        )
        self._head = b"data: " + head[:-1]
        self._tail = b',"usage":null}\n\n' if with_usage else b"}\n\n"
        self._offsets: dict[int, int] = {}

    def deltas(self, deltas: list[Delta]) -> bytes:
        parts = generate.by_index(deltas)
        return b"".join([self._chunk(index, part) for index, part in parts.items()])

    def _chunk(self, index: int, deltas: list[Delta]) -> bytes:
        text = "".join([delta.text for delta in deltas])
        logprobs = [entry for delta in deltas for entry in delta.logprobs]
        if not text and not logprobs and not self._with_ids:
            return b""
        choice = _part(index, text)
        if logprobs:
            offset = self._offsets.get(index, 0)
            choice["logprobs"] = _logprobs(logprobs, offset)
            self._offsets[index] = offset + sum(len(entry.token) for entry in logprobs)
        if self._with_ids:
            choice["token_ids"] = [token_id for delta in deltas for token_id in delta.token_ids]
        return self._event([choice])

    def end(self, reply: Reply) -> bytes:
        events = []
        for index, sample in enumerate(reply.samples or (reply,)):
            choice = _part(index, "")
            choice["finish_reason"] = sample.finish_reason
            choice["stop_reason"] = sample.stop_string
            events.append(self._event([choice]))
        if self._with_usage:
            rest: Mapping[str, Any] = {
                "choices": [],
                "usage": generate.usage_dict(reply.usage),
                "timings": reply.timings.to_dict(),
            }
            events.append(self._head + b"," + strict_json.dump(rest)[1:] + b"\n\n")
        return b"".join([*events, DONE])

    def error(self, error: ApiError) -> bytes:
        return sse(error.to_dict())

    def _event(self, choices: list[dict[str, Any]]) -> bytes:
        return self._head + b',"choices":' + strict_json.dump(choices) + self._tail


def _part(index: int, text: str) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": None}
