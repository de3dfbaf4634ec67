"""What servers answer, in every shape it comes in, and what becomes of what makes no sense."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scripted_server import USAGE, Asked, Talk, chat_chunk, llama_routes, openai_routes, say, send, speak

from bitnet import (
    BitNet,
    CapabilityError,
    Delta,
    ServerError,
    StreamInterruptedError,
    ToolCall,
    ToolCallDelta,
    Usage,
    ValidationError,
)
from conftest import Connect, Scripted

CHAT = "POST /v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def events(*chunks: Any, done: bool = True) -> bytes:
    data = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
    return data + (b"data: [DONE]\n\n" if done else b"")


def chat(model: BitNet, **options: Any) -> tuple[list[Delta], Any]:
    generation = model.stream_chat(HI, **options)
    return list(generation), generation.result()


def test_an_answer(scripted: Scripted, connect: Connect) -> None:
    server = scripted()
    deltas, reply = chat(connect(server))
    assert deltas == [Delta("Hel"), Delta("lo"), Delta("!")]
    assert (reply.text, reply.finish_reason, reply.usage) == ("Hello!", "stop", Usage(5, 3, 2))
    assert (reply.token_ids, reply.logprobs, reply.samples) == ((), None, ())
    assert reply.timings.time_to_first_token > 0
    assert server.asked("/v1/chat/completions")[0].headers["authorization"].startswith("Bearer sk-")


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_base_url_with_and_without_v1(scripted: Scripted, connect: Connect, suffix: str) -> None:
    server = scripted()
    assert connect(server.url + suffix).chat(HI).text == "Hello!"
    assert [request.path for request in server.requests if request.method == "POST"] == [
        "/v1/chat/completions"
    ]


def test_a_server_without_v1(scripted: Scripted, connect: Connect) -> None:
    routes = {name.replace("/v1", ""): value for name, value in openai_routes().items()}
    assert connect(scripted(routes)).chat(HI).text == "Hello!"


def test_which_model(scripted: Scripted, connect: Connect) -> None:
    server = scripted(openai_routes(["a", "b"]))
    with pytest.raises(ValidationError, match="several models"):
        connect(server).chat(HI)
    assert connect(server, model="b").chat(HI).text == "Hello!"
    assert server.asked("/v1/chat/completions")[-1].body["model"] == "b"
    assert connect(server, model="b").info.name == "b"


def test_a_server_without_a_list_of_models(scripted: Scripted, connect: Connect) -> None:
    server = scripted({CHAT: speak("Hi")})
    with pytest.raises(ValidationError, match="does not list its models"):
        connect(server).chat(HI)
    assert connect(server, model="x").chat(HI).text == "Hi"


def test_usage_that_is_missing(scripted: Scripted, connect: Connect) -> None:
    server = scripted(**{CHAT: speak("Hel", "lo", usage=False)})
    assert chat(connect(server))[1].usage == Usage(0, 0)


def test_bytes_cut_anywhere(scripted: Scripted, connect: Connect) -> None:
    stream = b": hello\r\n\r\n" + events(chat_chunk("wö"), chat_chunk("rld 🙂"), chat_chunk(reason="stop"))
    pieces = [stream[at : at + 5] for at in range(0, len(stream), 5)]
    server = scripted(**{CHAT: send(*pieces)})
    assert connect(server).chat(HI).text == "wörld 🙂"


@pytest.mark.parametrize(
    "kind", ["text/event-stream", "text/plain", "application/json", "application/x-ndjson"]
)
def test_content_types_are_not_believed(scripted: Scripted, connect: Connect, kind: str) -> None:
    server = scripted(**{CHAT: send(events(chat_chunk("Hi", "stop")), kind=kind)})
    assert connect(server).chat(HI).text == "Hi"


def test_a_server_that_does_not_stream(scripted: Scripted, connect: Connect) -> None:
    message = {"role": "assistant", "content": "Hi", "tool_calls": None}
    whole = {
        "choices": [{"index": 0, "message": message, "finish_reason": "length"}],
        **{"usage": USAGE["usage"]},
    }
    server = scripted(**{CHAT: whole})
    deltas, reply = chat(connect(server))
    assert (deltas, reply.finish_reason, reply.usage) == ([Delta("Hi")], "length", Usage(5, 3, 2))


def test_an_end_without_done(scripted: Scripted, connect: Connect) -> None:
    server = scripted(**{CHAT: send(events(chat_chunk("Hi", "stop"), USAGE, done=False))})
    assert connect(server).chat(HI).usage == Usage(5, 3, 2)


def test_a_last_event_without_an_empty_line(scripted: Scripted, connect: Connect) -> None:
    server = scripted(**{CHAT: send(events(chat_chunk("Hi", "stop"))[:-2])})
    assert connect(server).chat(HI).text == "Hi"


def test_a_server_that_refuses_stream_options(scripted: Scripted, connect: Connect) -> None:
    async def script(asked: Asked, talk: Talk) -> None:
        refuse = say(400, "unknown field: stream_options") if "stream_options" in asked.body else speak("Hi")
        await refuse(asked, talk)

    server = scripted(**{CHAT: script})
    model = connect(server)
    assert [model.chat(HI).text, model.chat(HI).text] == ["Hi", "Hi"]
    assert ["stream_options" in asked.body for asked in server.asked("/v1/chat/completions")] == [
        True,
        False,
        False,
    ]


def test_stop_strings_looked_for_here(scripted: Scripted, connect: Connect) -> None:
    server = scripted(**{CHAT: speak("one tw", "o thr", "ee four")})
    stops = ["a", "b", "c", "d", "three"]
    deltas, reply = chat(connect(server), stop=stops)
    assert server.asked("/v1/chat/completions")[0].body["stop"] == stops[:4]
    assert (reply.text, reply.finish_reason, reply.stop_string) == ("one two ", "stop", "three")
    assert "".join(delta.text for delta in deltas) == reply.text


def test_text_that_was_held_back_for_a_stop_string(scripted: Scripted, connect: Connect) -> None:
    server = scripted(**{CHAT: speak("one t", "h", "r")})
    deltas, reply = chat(connect(server), stop=["three"])
    assert reply.text == "one thr" == "".join(delta.text for delta in deltas)
    assert (reply.finish_reason, reply.stop_string) == ("stop", None)


def test_several_answers(scripted: Scripted, connect: Connect) -> None:
    stream = events(
        chat_chunk("a", index=1),
        chat_chunk("b", index=0),
        chat_chunk("c", index=1),
        chat_chunk(reason="length", index=1),
        chat_chunk(reason="stop", index=0),
        USAGE,
    )
    deltas, reply = chat(connect(scripted(**{CHAT: send(stream)})), n=2)
    assert [(delta.index, delta.text) for delta in deltas] == [(1, "a"), (0, "b"), (1, "c")]
    assert [(sample.text, sample.finish_reason) for sample in reply.samples] == [
        ("b", "stop"),
        ("ac", "length"),
    ]
    assert (reply.text, reply.usage) == ("b", Usage(5, 3, 2))


def test_tool_calls(scripted: Scripted, connect: Connect) -> None:
    def part(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        call = {"index": index, "function": {"arguments": arguments, **more.pop("function", {})}, **more}
        return chat_chunk(delta={"tool_calls": [call]})

    stream = events(
        chat_chunk("Wait."),
        part(0, "", id="call_a", type="function", function={"name": "f"}),
        part(0, '{"x": '),
        part(0, "1}"),
        part(1, "{}", id="call_b", type="function", function={"name": "g"}),
        chat_chunk(reason="tool_calls"),
    )
    deltas, reply = chat(connect(scripted(**{CHAT: send(stream)})), tools=[TOOL])
    assert reply.tool_calls == (ToolCall("call_a", "f", '{"x": 1}'), ToolCall("call_b", "g", "{}"))
    assert (reply.text, reply.finish_reason) == ("Wait.", "tool_calls")
    assert [call for delta in deltas for call in delta.tool_calls] == [
        ToolCallDelta(0, "call_a", "f"),
        ToolCallDelta(0, arguments='{"x": '),
        ToolCallDelta(0, arguments="1}"),
        ToolCallDelta(1, "call_b", "g"),
        ToolCallDelta(1, arguments="{}"),
    ]


def test_careless_tool_calls(scripted: Scripted, connect: Connect) -> None:
    """No index, no id, arguments as an object, "stop" as the reason."""
    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}, {"function": {"name": "g"}}]
    server = scripted(
        **{CHAT: send(events(chat_chunk(delta={"tool_calls": calls}), chat_chunk(reason="stop")))}
    )
    reply = chat(connect(server), tools=[TOOL])[1]
    assert [(call.name, call.parsed) for call in reply.tool_calls] == [("f", {"x": 1}), ("g", {})]
    assert all(call.id for call in reply.tool_calls)
    assert reply.finish_reason == "tool_calls"


def test_a_tool_call_that_was_cut(scripted: Scripted, connect: Connect) -> None:
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x": '}}
    script = send(events(chat_chunk(delta={"tool_calls": [call]}), chat_chunk(reason="length")))
    reply = chat(connect(scripted(**{CHAT: script})), tools=[TOOL])[1]
    assert (reply.tool_calls, reply.finish_reason) == ((), "length")
    script = send(events(chat_chunk(delta={"tool_calls": [call]}), chat_chunk(reason="tool_calls")))
    with pytest.raises(ServerError, match="the call of 'f' must be a JSON object"):
        chat(connect(scripted(**{CHAT: script})), tools=[TOOL])


def test_logprobs(scripted: Scripted, connect: Connect) -> None:
    top = [{"token": "a", "bytes": [97], "logprob": -0.1}, {"token": "b", "bytes": None, "logprob": -2.5}]
    content = [{"token": "a", "bytes": [97], "logprob": -0.1, "top_logprobs": top}]
    stream = events(chat_chunk("a", "stop", logprobs={"content": content}))
    reply = chat(connect(scripted(**{CHAT: send(stream)})), logprobs=True, top_logprobs=1)[1]
    (entry,) = reply.logprobs
    assert (entry.token, entry.token_id, entry.logprob) == ("a", -1, -0.1)
    assert [(other.token, other.logprob) for other in entry.top] == [("a", -0.1)]
    assert reply.usage == Usage(0, 1)


def test_completions(scripted: Scripted, connect: Connect) -> None:
    logprobs = {
        "tokens": ["a", "bytes:\\xe2\\x80"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"b": -0.7, "a": -0.5}, None],
    }
    stream = events(
        {"choices": [{"index": 0, "text": "a", "finish_reason": None}]},
        {"choices": [{"index": 0, "text": "…", "finish_reason": "stop", "logprobs": logprobs}]},
        USAGE,
    )
    server = scripted(**{"POST /v1/completions": send(stream)})
    reply = connect(server).generate("Once", logprobs=True, top_logprobs=2)
    assert (reply.text, reply.usage) == ("a…", Usage(5, 3, 2))
    assert reply.logprobs is not None
    assert [entry.token_bytes for entry in reply.logprobs] == [b"a", b"\xe2\x80"]
    assert [other.token for other in reply.logprobs[0].top] == ["a", "b"]
    assert server.asked("/v1/completions")[0].body["prompt"] == "Once"


@pytest.mark.parametrize("modern", [True, False])
def test_llama_server(scripted: Scripted, connect: Connect, modern: bool) -> None:
    server = scripted(llama_routes(modern=modern))
    model = connect(server)
    reply = model.generate("Once", n=2, seed=4, max_tokens=6)
    assert [sample.text for sample in reply.samples] == ["seed 4", "seed 5"]
    assert reply.token_ids == (tuple(b"seed 4") if modern else ())
    assert (reply.finish_reason, reply.usage) == ("length", Usage(7, 12, 3))
    assert reply.timings.decode_tokens_per_second == 50.0
    assert model.chat(HI).text == "Hello!"
    info = model.info
    assert (info.n_ctx, info.context_length, info.vocab_size, info.hidden_size) == (128, 512, 300, 4)
    assert model.tokenize("ab") == [1, 97, 98]
    assert model.detokenize([97, 98], skip_special=False) == "ab"
    with pytest.raises(CapabilityError):
        model.detokenize([97])
    if modern:
        assert model.render(HI) == "user: Hi\nassistant: "
        assert model.count_tokens(HI) == 1 + len("user: Hi\nassistant: ")
        logprobs = model.generate("Once", logprobs=True).logprobs
        assert logprobs is not None
        assert [(entry.token_id, entry.top) for entry in logprobs] == [(number, ()) for number in b"abc"]
    else:
        with pytest.raises(CapabilityError, match="older version"):
            model.render(HI)
        with pytest.raises(CapabilityError, match="older version"):
            model.chat(HI, tools=[TOOL])
    assert model.count_tokens("Once") == 5


def test_a_prompt_that_llama_server_cut(scripted: Scripted, connect: Connect) -> None:
    stream = events(
        {"content": "a", "stop": False}, {"content": "", "stop": True, "truncated": True}, done=False
    )
    server = scripted({**llama_routes(), "POST /completion": send(stream)})
    with pytest.raises(StreamInterruptedError, match="truncated") as caught:
        connect(server).generate("Once")
    assert caught.value.text == "a"


def test_an_error_of_an_older_llama_server_in_the_stream(scripted: Scripted, connect: Connect) -> None:
    error = b'error: {"error": {"code": 500, "message": "out of slots", "type": "server_error"}}\n\n'
    server = scripted({**llama_routes(modern=False), "POST /completion": send(error)})
    with pytest.raises(ServerError, match=r"the server failed \(500\): out of slots"):
        connect(server).generate("Once")


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": 5},
        {"choices": [{"index": 7, "delta": {"content": "a"}}]},
        {"choices": [{"index": 0, "delta": {"content": 5}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {}}]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": 3}]},
        {"choices": [{"index": 0, "delta": {}, "logprobs": {"content": [{"token": "a"}]}}]},
        {"choices": [None]},
        [1, 2],
        "text",
    ],
)
def test_nonsense(scripted: Scripted, connect: Connect, chunk: Any) -> None:
    server = scripted(**{CHAT: send(events(chunk))})
    with pytest.raises(ServerError) as caught:
        connect(server).chat(HI)
    assert len(server.asked("/v1/chat/completions")) == 1
    assert not isinstance(caught.value, StreamInterruptedError)


def test_what_is_no_json(scripted: Scripted, connect: Connect) -> None:
    with pytest.raises(ServerError, match="not JSON"):
        connect(scripted(**{CHAT: send(b"data: {oops\n\n")})).chat(HI)
    page = b"\n<!DOCTYPE html><html><title>Welcome</title></html>"
    with pytest.raises(ServerError, match="page of HTML"):
        connect(scripted(**{CHAT: send(page, kind="text/html")})).chat(HI)


def test_an_answer_that_the_server_filtered(scripted: Scripted, connect: Connect) -> None:
    server = scripted(**{CHAT: speak("Well", reason="content_filter")})
    with pytest.raises(StreamInterruptedError, match="content_filter") as caught:
        connect(server).chat(HI)
    assert (caught.value.text, caught.value.reply.finish_reason) == ("Well", "cancelled")


def test_embeddings(scripted: Scripted, connect: Connect) -> None:
    async def script(asked: Asked, talk: Talk) -> None:
        data = [
            {"object": "embedding", "index": index, "embedding": [float(len(text)), 0.0, 1.0]}
            for index, text in enumerate(asked.body["input"])
        ]
        await talk.json({"object": "list", "data": data[::-1]})

    server = scripted(**{"POST /v1/embeddings": script})
    model = connect(server)
    texts = ["x" * (1 + index) for index in range(70)]
    vectors = model.embed(texts)
    lengths = np.arange(1, 71, dtype=np.float64)
    np.testing.assert_allclose(vectors[:, 0], lengths / np.sqrt(lengths**2 + 1), 1e-6)
    assert vectors.dtype == np.float32
    assert [len(asked.body["input"]) for asked in server.asked("/v1/embeddings")] == [64, 6]
    assert model.embed([]).shape == (0, 0)
    with pytest.raises(CapabilityError, match="normalize"):
        model.embed("x", normalize=False)


@pytest.mark.parametrize(
    "data",
    [
        [],
        [{"index": 1, "embedding": [1.0]}],
        [{"index": 0, "embedding": []}],
        [{"index": 0, "embedding": [float("nan")]}],
        [{"index": 0, "embedding": [0.0, 0.0]}],
        [{"index": 0, "embedding": "%%%"}],
        [{"index": 0}],
        5,
    ],
)
def test_embeddings_that_are_none(scripted: Scripted, connect: Connect, data: Any) -> None:
    server = scripted(**{"POST /v1/embeddings": {"data": data}})
    with pytest.raises(ServerError):
        connect(server).embed("x")


def test_what_openai_servers_do_not_have(scripted: Scripted, connect: Connect) -> None:
    model = connect(scripted())
    for use in (
        lambda: model.tokenize("a"),
        lambda: model.detokenize([1]),
        lambda: model.count_tokens("a"),
        lambda: model.render(HI),
        lambda: model.logits([1]),
        lambda: model.chat(HI, top_k=5),
    ):
        with pytest.raises(CapabilityError, match=r"OpenAI-compatible server at http://127\.0\.0\.1"):
            use()
    assert model.info.n_ctx == 0
