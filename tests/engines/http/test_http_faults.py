"""Servers that refuse, break off, are slow, or are not there: what is tried again, and what users see."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import json
import logging
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from scripted_server import KEY, Asked, Talk, chat_chunk, say, send, speak

from bitnet import (
    AuthenticationError,
    BitNetError,
    CapabilityError,
    ContextOverflowError,
    DeadlineError,
    ModelNotFoundError,
    OverloadedError,
    ServerError,
    ServerUnreachableError,
    StreamInterruptedError,
    ValidationError,
)
from conftest import Connect, Scripted

CHAT = "POST /v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]


def n_chats(server: Any) -> int:
    return len(server.asked("/v1/chat/completions"))


async def hang_up(asked: Asked, talk: Talk) -> None:
    talk.hang_up()


async def hang_up_after_the_head(asked: Asked, talk: Talk) -> None:
    await talk.head()
    talk.hang_up()


async def hang_up_after_the_role(asked: Asked, talk: Talk) -> None:
    await talk.head()
    await talk.event(chat_chunk(delta={"role": "assistant", "content": ""}))
    talk.hang_up()


async def end_after_the_head(asked: Asked, talk: Talk) -> None:
    await talk.head()


async def overloaded_in_the_stream(asked: Asked, talk: Talk) -> None:
    await talk.head()
    await talk.event({"error": {"message": "full", "code": 503}})


@pytest.mark.parametrize(
    "fault",
    [
        say(429),
        say(502),
        say(503),
        say(504),
        hang_up,
        hang_up_after_the_head,
        hang_up_after_the_role,
        end_after_the_head,
        overloaded_in_the_stream,
    ],
)
def test_tried_again(scripted: Scripted, connect: Connect, fault: Any) -> None:
    server = scripted()
    server.on(CHAT, fault, fault)
    model = connect(server)
    deltas = list(model.stream_chat(HI))
    assert [delta.text for delta in deltas] == ["Hel", "lo", "!"]
    assert n_chats(server) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 413, 422, 500, 501, 529])
def test_not_tried_again(scripted: Scripted, connect: Connect, status: int) -> None:
    server = scripted(**{CHAT: say(status)})
    with pytest.raises(BitNetError, match=f"{status}"):
        connect(server).chat(HI)
    assert n_chats(server) == 1


def test_given_up(scripted: Scripted, connect: Connect) -> None:
    for retry, attempts in (({"max_retries": 2}, 3), ({"max_retries": 0}, 1), ({"enabled": False}, 1)):
        server = scripted(**{CHAT: say(503, "come back later")})
        with pytest.raises(OverloadedError, match="come back later"):
            connect(server, retry={"initial_wait_ms": 1, **retry}).chat(HI)
        assert n_chats(server) == attempts
    server = scripted(**{CHAT: hang_up})
    with pytest.raises(ServerUnreachableError, match="connection was lost"):
        connect(server, retry=False).chat(HI)
    assert n_chats(server) == 2  # the first was on a connection that had been kept


def test_waits_as_long_as_the_server_says(scripted: Scripted, connect: Connect) -> None:
    def seconds(retry_after: str, **retry: Any) -> float:
        server = scripted()
        model = connect(server, retry={"initial_wait_ms": 1, "jitter": False, **retry})
        model.chat(HI)
        server.on(CHAT, say(429, retry_after=retry_after))
        began = time.monotonic()
        assert model.chat(HI).text == "Hello!"
        return time.monotonic() - began

    assert seconds("0.4") >= 0.4
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=2)
    assert seconds(email.utils.format_datetime(soon, usegmt=True)) >= 0.5
    assert 0.05 <= seconds("3600", max_wait_ms=50) < 10
    assert seconds("soon") < 10
    assert seconds("-5") < 10


def test_does_not_wait_for_a_timeout(scripted: Scripted, connect: Connect) -> None:
    """The server's own words are worth more than a timeout after a wait that was in vain."""
    server = scripted(**{CHAT: say(429, "come back later", retry_after="20")})
    began = time.monotonic()
    with pytest.raises(OverloadedError, match="come back later"):
        connect(server, timeout={"total": 10_000}, retry=None).chat(HI)
    assert time.monotonic() - began < 8
    assert n_chats(server) == 1


def test_no_quota_left_is_not_busy(scripted: Scripted, connect: Connect) -> None:
    async def broke(asked: Asked, talk: Talk) -> None:
        error = {"message": "no money", "type": "insufficient_quota", "code": "insufficient_quota"}
        await talk.json({"error": error}, 429)

    server = scripted(**{CHAT: broke})
    with pytest.raises(OverloadedError, match="no money"):
        connect(server).chat(HI)
    assert n_chats(server) == 1


@pytest.mark.parametrize("how", ["hang up", "end", "nonsense", "error"])
def test_broken_off(scripted: Scripted, connect: Connect, how: str) -> None:
    async def script(asked: Asked, talk: Talk) -> None:
        await talk.head()
        await talk.event(chat_chunk("one "))
        await talk.event(chat_chunk("two"))
        if how == "nonsense":
            await talk.send(b"data: {\n\n")
        if how == "error":
            await talk.event({"error": {"message": "out of memory", "code": 503}})
        if how == "hang up":
            await asyncio.sleep(0.05)
            talk.hang_up()

    server = scripted(**{CHAT: script})
    generation = connect(server).stream_chat(HI)
    seen = []
    with pytest.raises(StreamInterruptedError, match="the answer broke off") as caught:
        seen.extend(generation)
    # Handed out one by one before the error.
    assert n_chats(server) == 1
    error = caught.value
    assert (error.text, error.reply.text, error.reply.finish_reason) == ("one two", "one two", "cancelled")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.text) == (str(error), "one two")
    with pytest.raises(StreamInterruptedError):
        generation.result()


def test_deltas_before_the_break_are_handed_out(scripted: Scripted, connect: Connect) -> None:
    server = scripted(**{CHAT: send(b'data: {"choices":[{"delta":{"content":"one"}}]}\n\n', hang_up=True)})
    generation = connect(server).stream_chat(HI)
    assert next(generation).text == "one"
    with pytest.raises(StreamInterruptedError):
        next(generation)


def error(message: str, **more: Any) -> dict[str, Any]:
    return {
        "error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **more}
    }


CASES: list[tuple[int, Any, type[BitNetError], str | None, str]] = [
    (400, error("bad top_p", param="top_p"), ValidationError, "top_p", "bad top_p"),
    (400, error("no such thing", param="n", code="unsupported_value"), CapabilityError, "n", "no such thing"),
    (401, error("who are you"), AuthenticationError, None, "check api_key"),
    (403, {"detail": "forbidden"}, AuthenticationError, None, "forbidden"),
    (404, error("no model 'x'", code="model_not_found"), ModelNotFoundError, None, "no model 'x'"),
    (404, {"detail": "Not Found"}, ServerError, None, "is there an OpenAI-compatible server"),
    (
        422,
        {"detail": [{"loc": ["body", "stop"], "msg": "too long"}]},
        ValidationError,
        "stop",
        "stop: too long",
    ),
    (400, {"object": "error", "message": "flat", "code": 400}, ValidationError, None, "flat"),
    (400, {"error": "only a text"}, ValidationError, None, "only a text"),
    (500, {"error": {"message": "Unsupported param: tools"}}, CapabilityError, "tools", "Unsupported"),
    (500, error("tools param requires --jinja flag"), CapabilityError, "tools", "--jinja"),
    (500, "<html><head><title>Bad\n Day</title></head>", ServerError, None, "a page of HTML, 'Bad Day'"),
    (500, "", ServerError, None, "it did not say why"),
    (500, "x" * 9000, ServerError, None, "xxx"),
]


@pytest.mark.parametrize(("status", "said", "kind", "field", "words"), CASES)
def test_errors(
    scripted: Scripted,
    connect: Connect,
    status: int,
    said: Any,
    kind: type[BitNetError],
    field: str | None,
    words: str,
) -> None:
    async def script(asked: Asked, talk: Talk) -> None:
        body = said if isinstance(said, str) else json.dumps(said)
        await talk.whole(body.encode(), status)

    with pytest.raises(kind) as caught:
        connect(scripted(**{CHAT: script})).chat(HI)
    assert type(caught.value) is kind or (kind is ServerError and status == 404)
    assert words in str(caught.value)
    assert getattr(caught.value, "field", None) == field
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "said",
    [
        error("the prompt has 900 tokens; a context of 512 has room for 511", code="context_length_exceeded"),
        {
            "error": {
                "message": "too long",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 900,
                "n_ctx": 512,
            }
        },
        error(
            "This model's maximum context length is 512 tokens. However, your messages resulted in "
            "900 tokens. Please reduce the length of the messages."
        ),
        error(
            "This model's maximum context length is 512 tokens. However, you requested 950 tokens "
            "(900 in the messages, 50 in the completion)."
        ),
    ],
)
def test_context_overflow(scripted: Scripted, connect: Connect, said: Any) -> None:
    async def script(asked: Asked, talk: Talk) -> None:
        await talk.json(said, 400)

    with pytest.raises(ContextOverflowError) as caught:
        connect(scripted(**{CHAT: script})).chat(HI)
    assert (caught.value.n_prompt_tokens, caught.value.n_ctx) == (900, 512)


def test_context_overflow_without_numbers(scripted: Scripted, connect: Connect) -> None:
    script = say(400, "the request exceeds the available context size")
    with pytest.raises(ValidationError) as caught:
        connect(scripted(**{CHAT: script})).chat(HI)
    assert caught.value.field == "prompt"


def test_a_key_that_the_server_repeats(
    scripted: Scripted, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = scripted(**{CHAT: say(401, f"Incorrect API key provided: {KEY}.")})
    with pytest.raises(AuthenticationError, match=r"provided: \*\*\*\.") as caught:
        connect(server).chat(HI)
    server.replace(CHAT, hang_up)
    with pytest.raises(ServerUnreachableError) as lost:
        connect(server, retry={"max_retries": 1, "initial_wait_ms": 1}).chat(HI)
    assert server.asked("/v1/chat/completions")[0].headers["authorization"] == f"Bearer {KEY}"
    for shown in (
        "".join(traceback.format_exception(caught.value)),
        "".join(traceback.format_exception(lost.value)),
        pickle.dumps(caught.value).decode("latin-1"),
        caplog.text,
    ):
        assert KEY not in shown
    assert "trying again" in caplog.text


def test_nobody_there(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    model = connect(f"http://127.0.0.1:{port}")
    with pytest.raises(ServerUnreachableError, match=f"no connection to http://127.0.0.1:{port}") as caught:
        model.chat(HI)
    assert isinstance(caught.value, ConnectionError)
    with pytest.raises(ServerUnreachableError):
        asyncio.run(model.achat(HI))


def test_a_server_that_comes_up_late(scripted: Scripted, connect: Connect) -> None:
    before = scripted()
    before.close()
    model = connect(before.url, retry={"max_retries": 100, "initial_wait_ms": 50, "exponential_base": 1})
    generation = model.astream_chat(HI)

    async def ask() -> str:
        asking = asyncio.ensure_future(generation.aresult())
        await asyncio.sleep(0.2)
        await asyncio.to_thread(scripted, port=before.port)
        return (await asking).text

    assert asyncio.run(ask()) == "Hello!"


def silent_for_ever(asked: Asked, talk: Talk) -> Any:
    return talk.until_gone()


async def one_word_and_silence(asked: Asked, talk: Talk) -> None:
    await talk.head()
    await talk.event(chat_chunk("one"))
    await talk.until_gone()


@pytest.mark.parametrize("script", [silent_for_ever, one_word_and_silence])
def test_total_timeout(
    scripted: Scripted, connect: Connect, eventually: Callable[[Callable[[], bool]], None], script: Any
) -> None:
    server = scripted(**{CHAT: script})
    model = connect(server, timeout={"total": 300})
    model.load()
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"not complete after 0\.3 s"):
        model.chat(HI)
    assert 0.25 < time.monotonic() - began < 8
    eventually(lambda: server.n_gone == 1)
    with pytest.raises(TimeoutError):
        asyncio.run(model.achat(HI))
    server.replace("POST /v1/embeddings", silent_for_ever)
    with pytest.raises(DeadlineError):
        model.embed("x")
    eventually(lambda: server.n_gone == 3)
    assert n_chats(server) == 2


def test_a_slow_first_token_is_no_fault(scripted: Scripted, connect: Connect) -> None:
    async def slow(asked: Asked, talk: Talk) -> None:
        await asyncio.sleep(0.3)
        await speak("Hi")(asked, talk)

    server = scripted(**{CHAT: slow})
    assert connect(server, timeout={"connect": 100, "total": 0}).chat(HI).text == "Hi"
    assert n_chats(server) == 1


def test_redirects(scripted: Scripted, connect: Connect) -> None:
    elsewhere = scripted()

    def to(location: str, status: int = 307) -> Any:
        async def script(asked: Asked, talk: Talk) -> None:
            await talk.whole(b"", status, location=location)

        return script

    server = scripted(**{CHAT: to("/moved"), "POST /moved": speak("Hi")})
    assert connect(server).chat(HI).text == "Hi"
    assert server.asked("/moved")[0].body["messages"] == HI
    for location, status in ((f"{elsewhere.url}/v1/chat/completions", 307), ("/moved", 302)):
        server.replace(CHAT, to(location, status))
        with pytest.raises(ServerError, match="set base_url to where it is"):
            connect(server).chat(HI)
    assert elsewhere.requests == []
    server.replace(CHAT, to("/v1/chat/completions"))
    with pytest.raises(ServerError, match="from one address to the next"):
        connect(server).chat(HI)


def test_connections_are_kept(scripted: Scripted, connect: Connect) -> None:
    async def whole(asked: Asked, talk: Talk) -> None:
        await talk.json({"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]})

    server = scripted(**{CHAT: whole})
    model = connect(server)
    for _ in range(5):
        assert model.chat(HI).text == "Hi"
    assert server.n_connections <= 2  # asking what it is may have taken one more


def test_a_kept_connection_that_was_just_closed(scripted: Scripted, connect: Connect) -> None:
    """Not a fault of the request: sent again at once, even without retries."""
    server = scripted()

    async def whole(asked: Asked, talk: Talk) -> None:
        await talk.json({"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]})

    server.on(CHAT, whole, hang_up, whole)
    model = connect(server, retry=False)
    assert [model.chat(HI).text, model.chat(HI).text] == ["Hi", "Hi"]
    assert n_chats(server) == 3
