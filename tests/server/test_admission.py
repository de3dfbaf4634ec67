"""Who gets in: keys, hosts, origins, full queues; and what one key's requests learn of another's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hosting import QUESTION, Hosted

from bitnet import BitNet, OverloadedError, ValidationError
from bitnet.server import Limits
from bitnet.server.gate import is_loopback
from bitnet.server.keys import ApiKeys
from bitnet.testing import FakeEngine, FakeReply

CHAT = "/v1/chat/completions"
LONG: list[Any] = [{"role": "user", "content": "Tell me a story about a brave fox and a lazy dog. " * 3}]


def test_keys(serve: Callable[..., Hosted]) -> None:
    running = serve(lambda request: "ok", api_keys=["first-key", "second-key"])
    body = {"messages": QUESTION}
    with running.client() as http:
        for authorization in (
            None,
            "",
            "Bearer",
            "Bearer wrong",
            "first-key",
            "Basic first-key",
            "Bearer firs",
        ):
            headers = {} if authorization is None else {"authorization": authorization}
            for method, path in (
                ("POST", CHAT),
                ("GET", "/v1/models"),
                ("GET", "/metrics"),
                ("GET", "/nothing"),
            ):
                answer = http.request(method, path, json=body, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["code"] == "invalid_api_key"
        for key in ("first-key", "second-key"):
            headers = {"authorization": f"Bearer {key}"}
            assert http.post(CHAT, json=body, headers=headers).status_code == 200
            assert http.get("/metrics", headers=headers).status_code == 200
        # Who only asks whether there is a server, needs none.
        for path in ("/", "/health", "/health/live", "/health/ready"):
            assert http.get(path).status_code == 200
    wrong = openai.OpenAI(base_url=f"{running.url}/v1", api_key="wrong", max_retries=0)
    with wrong as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="second-key", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["m"]


def test_key_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# comment\n\n  one  \r\ntwo\n")
    keys = ApiKeys.from_file(path)
    assert len(keys) == 2
    tenants = {keys.tenant(f"Bearer {key}") for key in ("one", "two")}
    assert len(tenants) == 2
    assert None not in tenants
    assert keys.tenant("Bearer # comment") is None
    assert "one" not in repr(vars(keys))
    # The same key is another tenant in another process: it cannot be guessed from what is seen elsewhere.
    assert ApiKeys.from_file(path).tenant("Bearer one") not in tenants
    for text in ("", "# nothing\n"):
        path.write_text(text)
        with pytest.raises(ValidationError, match="holds no key"):
            ApiKeys.from_file(path)
    with pytest.raises(ValidationError, match="cannot read"):
        ApiKeys.from_file(tmp_path / "nowhere")


def test_prompts_are_not_shared_between_keys(serve: Callable[..., Hosted]) -> None:
    with BitNet() as model:
        running = serve(model, api_keys=["a", "b"])

        def cached(key: str, **more: Any) -> int:
            headers = {"authorization": f"Bearer {key}"}
            body = {"messages": LONG, "max_tokens": 1, **more}
            answer = httpx.post(
                running.url + CHAT, json=body, headers=headers, timeout=30, verify=False, trust_env=False
            )
            details: dict[str, int] = answer.json()["usage"]["prompt_tokens_details"]
            return details["cached_tokens"]

        assert cached("a") == 0
        assert cached("a") > 0
        assert cached("b") == 0
        assert cached("b") > 0
        assert cached("a", cache_salt="x") == 0
        assert cached("a", cache_salt="x") > 0
        assert cached("b", cache_salt="x") == 0


def test_hosts(serve: Callable[..., Hosted]) -> None:
    running = serve(lambda request: "ok", allowed_hosts=["localhost", "127.0.0.1", "::1"])
    with running.client() as http:
        for host in ("localhost", f"localhost:{running.port}", "127.0.0.1:1", "[::1]:80", "LOCALHOST"):
            assert http.get("/v1/models", headers={"host": host}).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:8080", "[::2]", ""):
            for path in ("/v1/models", "/", "/health"):
                answer = http.get(path, headers={"host": host})
                assert answer.status_code == 403, (host, path)
                assert answer.json()["error"]["code"] == "host_not_allowed"


def test_origins(serve: Callable[..., Hosted]) -> None:
    open_to_all = serve(lambda request: "ok")
    with open_to_all.client() as http:
        for origin in (
            "http://evil.example",
            "null",
            "https://127.0.0.1",
            f"http://localhost:{open_to_all.port}",
        ):
            answer = http.post(CHAT, json={"messages": QUESTION}, headers={"origin": origin})
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "origin_not_allowed"
            assert not [name for name in answer.headers if name.startswith("access-control")]
        answer = http.post(CHAT, json={"messages": QUESTION}, headers={"origin": open_to_all.url})
        assert answer.status_code == 200
    with_keys = serve(lambda request: "ok", api_keys=["k"])  # no page knows it
    with with_keys.client(headers={"authorization": "Bearer k"}) as http:
        answer = http.post(CHAT, json={"messages": QUESTION}, headers={"origin": "http://other.example"})
        assert answer.status_code == 200


def test_full_queue(serve: Callable[..., Hosted]) -> None:
    engine = FakeEngine(lambda request: FakeReply(["a"] * 200, delay=0.01), n_batch=1, max_waiting=1)
    running = serve(engine)

    def occupy() -> None:
        with running.client() as http:
            http.post(CHAT, json={"messages": QUESTION})

    threads = [threading.Thread(target=occupy) for _ in range(2)]
    for thread in threads:
        thread.start()
    while engine.health().running < 2:
        time.sleep(0.005)
    with running.client() as http:
        for body in ({"messages": QUESTION}, {"messages": QUESTION, "stream": True}):
            answer = http.post(CHAT, json=body)
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "rate_limit_error"
    for thread in threads:
        thread.join()


def test_too_many_requests_in_all(serve: Callable[..., Hosted]) -> None:
    running = serve(lambda request: FakeReply(["a"] * 100, delay=0.01), limits=Limits(max_requests=1))
    first = threading.Thread(
        target=lambda: httpx.post(
            running.url + CHAT, json={"messages": QUESTION}, timeout=30, verify=False, trust_env=False
        )
    )
    first.start()
    while running.service.n_requests < 1:
        time.sleep(0.005)
    with running.client() as http:
        assert http.post(CHAT, json={"messages": QUESTION}).status_code == 429
        assert http.get("/health").status_code == 200  # whoever watches the server still can
    first.join()


def test_the_official_client_retries_when_told(serve: Callable[..., Hosted]) -> None:
    engine = FakeEngine([FakeReply(refuse=OverloadedError("full")), "now"])
    with openai.OpenAI(base_url=f"{serve(engine).url}/v1", api_key="none", max_retries=1) as client:
        answer = client.chat.completions.create(model="m", messages=QUESTION)
    assert answer.choices[0].message.content == "now"


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.1", "example.org", "")))


def test_page(serve: Callable[..., Hosted]) -> None:
    with serve(lambda request: "ok").client() as http:
        answer = http.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_policy_names_the_scripts_of_the_page() -> None:
    from bitnet.server.page import content_security_policy

    page = b"<style>a{}</style><script>alert(1)\r\n</script><script type='module'>2</script>"
    policy = content_security_policy(page).decode()
    script = policy.partition("script-src ")[2].partition(";")[0]
    assert script.split() == [
        "'sha256-MaeD7tQk/YNyd6Pm9J12ROmv0Z93QwNN4VH7v3gI+RI='",
        "'sha256-1HNeOiZeFu7gP1lxi5tdAwGcB9i2xR+Q2jpmbuwTqzU='",
    ]
