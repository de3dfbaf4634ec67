"""Whatever a client sends: a clear error in OpenAI's shape, at once, and the next request is answered."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hosting import ANSWER, QUESTION, Hosted

from bitnet import BitNet
from bitnet.server import Limits
from bitnet.testing import FakeEngine, FakeReply

CHAT = "/v1/chat/completions"


def error_of(answer: Any, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    for secret in ("Traceback", ".py", "/work", "/home", "/usr", "site-packages", ".gguf"):
        assert secret not in error["message"]
    return error


def nested(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def json_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


TOOL = {"type": "function", "function": {"name": "f"}}

BODIES: list[bytes] = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"\xff\xfe",
    b'{"messages": "\xc3\x28"}',
    b'\xef\xbb\xbf{"messages": []}',
    b"[" * 100_000,
    b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b'{"max_tokens": NaN}',
    b'{"temperature": Infinity}',
    b'{"temperature": -Infinity}',
    b'{"temperature": 1e999}',
    b'{"max_tokens": ' + b"9" * 100_000 + b"}",
    b'{"seed": ' + b"9" * 30 + b"}",
    b'{"temperature": 0.' + b"0" * 100_000 + b"1}",
    b"messages=hello",
    b"--x\r\nContent-Disposition: form-data\r\n\r\n",
    b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.",
]


@pytest.mark.parametrize("body", BODIES, ids=[str(body[:30]) for body in BODIES])
def test_malformed_bodies(server: Hosted, body: bytes) -> None:
    with server.client() as http:
        for path in (CHAT, "/completions", "/v1/embeddings", "/v1/responses", "/tokenize"):
            error_of(http.post(path, content=body))


OPTIONS: list[tuple[str, Any]] = [
    ("messages", None),
    ("messages", []),
    ("messages", "Hi"),
    ("messages", {}),
    ("messages", [1]),
    ("messages", [{"role": "user"}]),
    ("messages", [{"role": "wizard", "content": "Hi"}]),
    ("messages", [{"role": ["user"], "content": "Hi"}]),
    ("messages", [{"role": "user", "content": 1}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]),
    ("messages", [{"role": "user", "content": "\ud800"}]),
    ("messages", [{"role": "user", "content": "Hi", "wand": 1}]),
    ("messages", [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": 1}}]}]),
    ("messages", [{"role": "user", "content": "Hi"}] * 1025),
    ("messages", [{"role": "user", "content": "word " * 5000}]),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", 2**31),
    ("max_tokens", 2**70),
    ("max_tokens", 1.5),
    ("max_tokens", "10"),
    ("max_tokens", True),
    ("max_completion_tokens", 0),
    ("temperature", -1),
    ("temperature", 1e308),
    ("temperature", "hot"),
    ("top_p", 0),
    ("top_p", 2),
    ("top_k", -1),
    ("top_k", 2**40),
    ("min_p", 2),
    ("repetition_penalty", 0),
    ("presence_penalty", 3),
    ("frequency_penalty", -3),
    ("seed", 2**64),
    ("seed", 0.5),
    ("n", 0),
    ("n", -1),
    ("n", 17),
    ("n", 2**40),
    ("n", True),
    ("stop", ""),
    ("stop", [""]),
    ("stop", 1),
    ("stop", {"a": 1}),
    ("stop", ["x"] * 17),
    ("stop", "x" * 257),
    ("stop", ["\ud800"]),
    ("logprobs", 1),
    ("top_logprobs", 5),
    ("logit_bias", {"a": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"1": 1e9}),
    ("logit_bias", {"99999999": 1}),
    ("logit_bias", {str(i): 1 for i in range(1025)}),
    ("logit_bias", [1]),
    ("stream", "yes"),
    ("stream", 1),
    ("stream_options", {"include_usage": True}),
    ("model", 5),
    ("model", ["tiny"]),
    ("cache_salt", 5),
    ("cache_salt", "x" * 1000),
    ("return_token_ids", 1),
    ("response_format", "json"),
    ("response_format", []),
    ("response_format", {"type": "xml"}),
    ("response_format", {"type": ["json_object"]}),
    ("response_format", json_schema(nested(40))),
    ("response_format", json_schema({"enum": ["x" * 1000] * 200})),
    ("response_format", json_schema({"enum": list(range(11_000))})),
    ("response_format", json_schema({"$ref": "#/$defs/nothing"})),
    ("response_format", json_schema({"$ref": "http://127.0.0.1/schema"})),
    ("response_format", json_schema({"type": "string", "pattern": "(a+)+$(?=b)"})),
    ("response_format", json_schema({"type": "string", "pattern": "a{1000000}"})),
    ("response_format", json_schema({"type": "array", "minItems": 10**9})),
    ("response_format", json_schema({"type": "wizard"})),
    ("response_format", json_schema(5)),
    ("response_format", {"type": "regex", "pattern": "(" * 1000}),
    ("response_format", {"type": "grammar", "grammar": "start: start start"}),
    ("tools", "f"),
    ("tools", [1]),
    ("tools", [{"type": "function"}]),
    ("tools", [{"type": "function", "function": {"name": "has space"}}]),
    ("tools", [{"type": "function", "function": {"name": "f", "parameters": []}}]),
    ("tools", [{"type": "function", "function": {"name": "f", "parameters": nested(40)}}]),
    ("tools", [{"type": "custom", "custom": {"name": "f"}}]),
    ("tools", [TOOL, TOOL]),
    ("tools", [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]),
    ("tool_choice", "required"),
    ("tool_choice", {"type": "function", "function": {"name": "g"}}),
    ("tool_choice", 7),
    ("parallel_tool_calls", "no"),
    ("chat_template_kwargs", {"messages": []}),
    ("chat_template_kwargs", {"add_generation_prompt": False}),
    ("chat_template_kwargs", {"__class__": 1}),
    ("chat_template_kwargs", {"enable_thinking": {"a": 1}}),
    ("chat_template_kwargs", {"enable_thinking": "x" * 1000}),
    ("chat_template_kwargs", []),
    ("functions", [{"name": "f"}]),
    ("audio", {"voice": "x"}),
    ("modalities", ["text", "audio"]),
    ("reasoning_effort", "high"),
    ("verbosity", "low"),
    ("web_search_options", {}),
    ("prompt_embeds", "gASVCg=="),
    ("n_discard", -1),
    ("x" * 10_000, 1),
]


@pytest.mark.parametrize(("name", "value"), OPTIONS, ids=[f"{n[:20]}={str(v)[:30]}" for n, v in OPTIONS])
def test_parameters_out_of_range(server: Hosted, name: str, value: Any) -> None:
    body = {"messages": QUESTION, "max_tokens": 5, name: value}
    with server.client() as http:
        answer = http.post(CHAT, content=json.dumps(body))
        error = error_of(answer)
        # And streamed: still an ordinary response, because nothing was sent yet.
        if name != "stream_options" and name != "stream":
            streamed = http.post(CHAT, content=json.dumps({**body, "stream": True}))
            assert error_of(streamed)["message"] == error["message"]
    if name.isidentifier() and name not in ("response_format", "top_logprobs") and len(name) < 100:
        assert error["param"] in (name, "max_tokens", "prompt", "messages", "tools", None)


def test_the_server_goes_on(server: Hosted, model: BitNet) -> None:
    """After all of the above: it answers, and nothing is left in the engine."""
    with server.client() as http:
        body = {"messages": QUESTION, "temperature": 0}
        assert http.post(CHAT, json=body).json()["choices"][0]["message"]["content"] == ANSWER
    health = model.health()
    assert health is not None
    assert (health.running, health.waiting) == (0, 0)
    assert health.free_blocks == health.n_blocks


def test_random_bodies(serve: Callable[..., Hosted]) -> None:
    """Valid requests with random values in random places are answered or refused, never an internal error."""
    rng = random.Random(7)
    values: list[Any] = [
        None,
        True,
        0,
        -1,
        1.5,
        2**63,
        "",
        "x",
        "\ud83d",
        [],
        [None],
        {},
        {"type": "text"},
        [[]],
    ]
    base: dict[str, Any] = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "response_format": json_schema({"type": "object", "properties": {"a": {"enum": ["b"]}}}),
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "stop": ["x"],
        "stream_options": {"include_usage": True},
        "stream": True,
        "logit_bias": {"1": 1},
        "max_tokens": 3,
    }

    def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        items = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        return [path, *(place for key, item in items for place in places(item, (*path, key)))]

    statuses = set()
    with serve(lambda request: "ok").client() as http:
        for _ in range(300):
            body = json.loads(json.dumps(base))
            *way, last = rng.choice(places(base)[1:])
            target = body
            for key in way:
                target = target[key]
            target[last] = rng.choice(values)
            answer = http.post(CHAT, content=json.dumps(body))
            statuses.add(answer.status_code)
            if answer.status_code != 200:
                error_of(answer)
    assert statuses == {200, 400}


def test_paths_and_methods(server: Hosted) -> None:
    with server.client() as http:
        for path in (
            "/v2/chat/completions",
            "/v1/v1/models",
            "/..%2f..%2fetc/passwd",
            "/\ufffd",
            "/v1/",
        ):
            error_of(http.get(path), 404)
        for path in ("/v1/responses/resp_1", "/v1/files", "/docs", "/openapi.json"):
            error_of(http.get(path), 404)
        error_of(http.delete("/v1/models/tiny"), 405)
        error_of(http.get(CHAT), 405)
        error_of(http.request("OPTIONS", CHAT, headers={"Access-Control-Request-Method": "POST"}), 405)
        assert "access-control-allow-origin" not in http.options(CHAT).headers


def test_too_large(serve: Callable[..., Hosted]) -> None:
    running = serve(lambda request: "ok", limits=Limits(max_body_bytes=5000))
    with running.client() as http:
        body = json.dumps({"messages": [{"role": "user", "content": "x" * 10_000}]}).encode()
        assert error_of(http.post(CHAT, content=body), 413)["code"] == "too_large"
        # Without saying how long it is.
        assert error_of(http.post(CHAT, content=iter([body[:4000], body[4000:]])), 413)["code"] == "too_large"
        # More than is worth reading: refused without hearing it out.
        with running.connect() as sock:
            sock.sendall(
                b"POST /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 99999999999\r\n\r\n"
            )
            sock.settimeout(10)
            for _ in range(100):
                try:
                    sock.sendall(b"x" * 4096)
                except OSError:
                    break
            assert b"405" in sock.recv(4096)
        assert http.post(CHAT, json={"messages": QUESTION}).status_code == 200


def test_limits_of_the_operator(serve: Callable[..., Hosted]) -> None:
    limits = Limits(max_tokens=10, max_messages=2, max_n=1, max_stop=1, template_args=frozenset({"style"}))
    engine = FakeEngine(lambda request: "ok")
    with serve(engine, limits=limits).client() as http:
        for refused in ({"max_tokens": 11}, {"n": 2}, {"stop": ["a", "b"]}, {"messages": QUESTION * 3}):
            error_of(http.post(CHAT, json={"messages": QUESTION, **refused}))
        allowed = {"max_tokens": 10, "n": 1, "stop": ["a"], "chat_template_kwargs": {"style": "brief"}}
        assert http.post(CHAT, json={"messages": QUESTION, **allowed}).status_code == 200
        error_of(http.post(CHAT, json={"messages": QUESTION, "chat_template_kwargs": {"enable_thinking": 1}}))
        # Not asked for: the server's own limit.
        assert http.post(CHAT, json={"messages": QUESTION}).status_code == 200
    assert [request.max_tokens for request in engine.requests] == [10, 10]
    assert engine.requests[0].template_args == {"style": "brief"}


def test_internal_errors_tell_nothing(serve: Callable[..., Hosted]) -> None:
    def fail(request: Any) -> str:
        raise RuntimeError("cannot read /home/ann/secret.gguf")

    with serve(fail).client() as http:
        answer = http.post(CHAT, json={"messages": QUESTION}, headers={"x-request-id": "abc-1"})
    error = error_of(answer, 500)
    assert error["type"] == "server_error"
    assert "abc-1" in error["message"]
    assert answer.headers["x-request-id"] == "abc-1"


def test_an_error_in_the_middle_of_a_stream(serve: Callable[..., Hosted]) -> None:
    running = serve(lambda request: FakeReply(["Hello", " world"], error=RuntimeError("/secret")))
    with running.client() as http:
        body = {"messages": QUESTION, "stream": True}
        answer = http.post(CHAT, json=body)
        assert answer.status_code == 200
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert "Hello" in answer.text
        assert json.loads(events[-1])["error"]["type"] == "server_error"
        assert "secret" not in answer.text
        assert "[DONE]" not in answer.text
        # Before the first event it is an ordinary error; and the connection goes on.
    with serve(lambda request: FakeReply(error=RuntimeError("/secret"))).client() as http:
        error_of(http.post(CHAT, json=body), 500)


@pytest.mark.parametrize("request_id", ["a b", "x" * 65, "ü", "a;b", ""])
def test_odd_request_ids_are_replaced(server: Hosted, request_id: str) -> None:
    with server.client() as http:
        answer = http.get("/health", headers={"x-request-id": request_id.encode("latin-1")})
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] != request_id
