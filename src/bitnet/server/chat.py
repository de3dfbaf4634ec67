"""/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitnet.server import generate, parameters, strict_json
from bitnet.server.errors import ApiError, invalid
from bitnet.server.exchange import Exchange
from bitnet.server.generate import DONE, sse
from bitnet.server.messages import chat_messages, tool_choice
from bitnet.values import Delta, Reply, TokenLogprob, ToolCallDelta, Usage

SYSTEM_FINGERPRINT = "bitnet-cpp"


async def chat_completions(exchange: Exchange) -> None:
    body = await exchange.read_json()
    options = parameters.options_of(body, parameters.CHAT)
    if body.get("messages") is None:
        raise invalid("messages is missing", "messages")
    messages = chat_messages(exchange, body["messages"])
    choice = tool_choice(body.get("tool_choice"), has_tools=bool(options.get("tools")))
    if choice is not None:
        options["tool_choice"] = choice
    options["cache_salt"] = generate.salt(exchange, body)
    limits = exchange.service.limits
    limits.apply(options)
    streamed, with_usage = stream_parameters(body)
    with_ids = parameters.flag(body, "return_token_ids")
    served = exchange.service.models.find(body.get("model"))
    exchange.model = served.name
    async with served.use() as model:
        generation = model.astream_chat(messages, **options)
        if streamed:
            n = options.get("n", 1)
            await generate.stream(
                exchange, generation, _ChatWriter(served.name, n, with_usage=with_usage, with_ids=with_ids)
            )
        else:
            reply = await generate.whole(exchange, generation)
            await exchange.send_json(_completion(served.name, reply, with_ids=with_ids))


def stream_parameters(body: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether to stream, and whether to tell the usage at the end of it. Raises ApiError."""
    streamed = parameters.flag(body, "stream")
    options = body.get("stream_options")
    if options is None:
        return streamed, False
    if not streamed:
        raise invalid("stream_options is for requests with stream: true", "stream_options")
    if not isinstance(options, dict):
        raise invalid("stream_options must be an object", "stream_options")
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            raise invalid(f"stream_options has an unknown key {name!r:.100}", "stream_options")
    return streamed, parameters.flag(options, "include_usage")


def _completion(model: str, reply: Reply, *, with_ids: bool) -> dict[str, Any]:
    samples = reply.samples or (reply,)
    return {
        "id": generate.new_id("chatcmpl"),
        "object": "chat.completion",
        "created": generate.now(),
        "model": model,
        "choices": [_choice(index, sample, with_ids) for index, sample in enumerate(samples)],
        "usage": generate.usage_dict(reply.usage),
        "system_fingerprint": SYSTEM_FINGERPRINT,
        "timings": reply.timings.to_dict(),
    }


def _choice(index: int, reply: Reply, with_ids: bool) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if reply.tool_calls and not reply.text else reply.text,
        "refusal": None,
    }
    if reply.tool_calls:
        message["tool_calls"] = [call.to_dict() for call in reply.tool_calls]
    choice: dict[str, Any] = {
        "index": index,
        "message": message,
        "logprobs": None if reply.logprobs is None else _logprobs(reply.logprobs),
        "finish_reason": reply.finish_reason,
        "stop_reason": reply.stop_string,
    }
    if with_ids:
        choice["token_ids"] = list(reply.token_ids)
    return choice


def _logprobs(entries: tuple[TokenLogprob, ...]) -> dict[str, Any]:
    return {"content": [generate.chat_logprob(entry) for entry in entries], "refusal": None}


class _ChatWriter:
    """Chunks of a chat completion. That of plain text, one a token, is put together from bytes."""

    def __init__(self, model: str, n: int, *, with_usage: bool, with_ids: bool) -> None:
        self._n = n
        self._with_usage = with_usage
        self._with_ids = with_ids
        head = strict_json.dump(
            {
                "id": generate.new_id("chatcmpl"),
                "object": "chat.completion.chunk",
                "created": generate.now(),
                "model": model,
                "system_fingerprint": SYSTEM_FINGERPRINT,
            }
        )
        self._head = b"data: " + head[:-1]
        # With usage, every chunk has the key.
        self._tail = b',"usage":null}\n\n' if with_usage else b"}\n\n"
        self._begun = False
        self._before_text = self._head + b',"choices":[{"index":'
        self._after_text = b'},"logprobs":null,"finish_reason":null}]' + self._tail

    def deltas(self, deltas: list[Delta]) -> bytes:
        if len(deltas) == 1:
            chunks = self._chunk(deltas[0].index, deltas)
        else:
            parts = generate.by_index(deltas)
            chunks = b"".join([self._chunk(index, part) for index, part in parts.items()])
        return self._begin() + chunks if chunks and not self._begun else chunks

    def _begin(self) -> bytes:
        self._begun = True
        role = {"role": "assistant", "content": "", "refusal": None}
        return b"".join([self._event([_part(index, role)]) for index in range(self._n)])

    def _chunk(self, index: int, deltas: list[Delta]) -> bytes:
        text = deltas[0].text if len(deltas) == 1 else "".join([delta.text for delta in deltas])
        calls = generate.joined_calls(deltas)
        logprobs = [entry for delta in deltas for entry in delta.logprobs]
        if not calls and not logprobs and not self._with_ids:
            if not text:
                return b""
            return b'%b%d,"delta":{"content":%b%b' % (
                self._before_text,
                index,
                strict_json.quote(text),
                self._after_text,
            )
        delta: dict[str, Any] = {}
        if text or not calls:
            delta["content"] = text
        if calls:
            delta["tool_calls"] = [_call(call) for call in calls]
        part = _part(index, delta)
        if logprobs:
            part["logprobs"] = _logprobs(tuple(logprobs))
        if self._with_ids:
            part["token_ids"] = [token_id for delta in deltas for token_id in delta.token_ids]
        return self._event([part])

    def end(self, reply: Reply) -> bytes:
        events = [b"" if self._begun else self._begin()]
        for index, sample in enumerate(reply.samples or (reply,)):
            part = _part(index, {})
            part["finish_reason"] = sample.finish_reason
            part["stop_reason"] = sample.stop_string
            events.append(self._event([part]))
        if self._with_usage:
            events.append(self._last(reply.usage, reply))
        return b"".join([*events, DONE])

    def _last(self, usage: Usage, reply: Reply) -> bytes:
        rest = {
            "choices": [],
            "usage": generate.usage_dict(usage),
            "timings": reply.timings.to_dict(),
        }
        return self._head + b"," + strict_json.dump(rest)[1:] + b"\n\n"

    def error(self, error: ApiError) -> bytes:
        return sse(error.to_dict())

    def _event(self, choices: list[dict[str, Any]]) -> bytes:
        return self._head + b',"choices":' + strict_json.dump(choices) + self._tail


def _part(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _call(call: ToolCallDelta) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": call.arguments}
    if call.id is None:
        return {"index": call.index, "function": function}
    return {
        "index": call.index,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, **function},
    }
