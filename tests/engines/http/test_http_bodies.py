"""What a request becomes for each kind of server, and what is refused there by name."""

from __future__ import annotations

from typing import Any

import pytest

from bitnet import ContextOverflowError, Request, ValidationError
from bitnet.engines.http.bodies import calls_for, embedding_body
from bitnet.engines.http.servers import Server, identify
from bitnet.errors import CapabilityError
from bitnet.values import EmbeddingRequest

ROOT = "http://host"
OURS = Server("bitnet", ROOT, f"{ROOT}/v1", "m", n_ctx=64, vocab_size=100)
LLAMA = Server("llama-server", ROOT, f"{ROOT}/v1", "m")
OLD_LLAMA = Server("llama-server", ROOT, f"{ROOT}/v1", "m", modern=False)
VLLM = Server("vllm", ROOT, f"{ROOT}/v1", "m")
OPENAI = Server("openai", ROOT, f"{ROOT}/v1", "m")
ALL = (OURS, LLAMA, OLD_LLAMA, VLLM, OPENAI)

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def request(prompt: Any = None, **options: Any) -> Request:
    messages = [{"role": "user", "content": "Hi"}] if prompt is None else None
    return Request.build(messages=messages, prompt=prompt, options=options)


def body(server: Server, prompt: Any = None, **options: Any) -> dict[str, Any]:
    (call,) = calls_for(server, request(prompt, **options))
    return dict(call.body)


def test_what_every_server_is_told() -> None:
    for server in ALL:
        (call,) = calls_for(server, request(temperature=0.5, max_tokens=7, seed=3, stop=["x"]))
        assert call.url == "http://host/v1/chat/completions"
        expected = {
            "model": "m",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 7,
            "seed": 3,
            "stop": ["x"],
        }
        assert expected.items() <= call.body.items()


def test_exactly_what_openai_knows() -> None:
    assert body(OPENAI) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 1024,
    }


def test_names_of_llama_server() -> None:
    got = body(LLAMA, top_k=5, min_p=0.1, repetition_penalty=1.2, logit_bias={7: -1.5}, ignore_eos=True)
    expected = {
        "top_k": 5,
        "min_p": 0.1,
        "repeat_penalty": 1.2,
        "logit_bias": [[7, -1.5]],
        "ignore_eos": True,
    }
    assert expected.items() <= got.items()
    # Its own defaults are others.
    expected = {
        "top_k": 40,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "repeat_last_n": -1,
    }
    assert expected.items() <= body(OLD_LLAMA).items()
    (call,) = calls_for(LLAMA, request("Once", max_tokens=None, seed=2**64 - 1))
    assert call.url == "http://host/completion"
    assert (call.body["prompt"], call.body["n_predict"], call.body["return_tokens"]) == ("Once", -1, True)
    assert 0 <= call.body["seed"] < 2**32 - 1
    assert body(LLAMA, [1, 2])["prompt"] == [1, 2]


def test_several_answers_of_llama_server_have_their_own_seeds() -> None:
    calls = calls_for(LLAMA, request(n=3, seed=2**64 - 1))
    assert [(call.indices, "n" in call.body) for call in calls] == [
        (range(0, 1), False),
        (range(1, 2), False),
        (range(2, 3), False),
    ]
    assert [call.body["seed"] for call in calls][1:] == [0, 1]
    assert body(OPENAI, n=3)["n"] == 3


def test_names_of_ours() -> None:
    got = body(
        OURS,
        top_k=5,
        min_p=0.1,
        repetition_penalty=1.2,
        ignore_eos=True,
        cache_salt="s",
        seed=2**64 - 1,
        template_args={"enable_thinking": False},
        logit_bias={7: 2},
    )
    expected = {
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "ignore_eos": True,
        "cache_salt": "s",
        "seed": 2**64 - 1,
        "chat_template_kwargs": {"enable_thinking": False},
        "logit_bias": {"7": 2.0},
        "return_token_ids": True,
    }
    assert expected.items() <= got.items()
    assert body(OURS, max_tokens=None)["max_tokens"] == 64
    for response_format in ({"type": "regex", "pattern": "a+"}, {"type": "grammar", "grammar": "start: 'a'"}):
        assert body(OURS, response_format=response_format)["response_format"] == response_format


@pytest.mark.parametrize(
    ("option", "value", "servers"),
    [
        ("top_k", 5, (OPENAI,)),
        ("min_p", 0.1, (OPENAI,)),
        ("repetition_penalty", 1.1, (OPENAI,)),
        ("ignore_eos", True, (OPENAI,)),
        ("cache_salt", "s", (OPENAI, LLAMA, OLD_LLAMA)),
        ("template_args", {"a": 1}, (OPENAI, OLD_LLAMA)),
        ("tools", [TOOL], (OLD_LLAMA,)),
        ("logprobs", True, (OLD_LLAMA,)),
        ("response_format", {"type": "regex", "pattern": "a"}, (OPENAI, LLAMA, OLD_LLAMA)),
        ("response_format", {"type": "choice", "choices": ["a"]}, (OPENAI,)),
        ("response_format", {"type": "grammar", "grammar": "start: 'a'"}, (OPENAI, LLAMA, OLD_LLAMA, VLLM)),
    ],
)
def test_refused_by_name(option: str, value: Any, servers: tuple[Server, ...]) -> None:
    for server in ALL:
        if server in servers:
            with pytest.raises(CapabilityError, match=f"does not have {option}") as caught:
                calls_for(server, request(**{option: value}))
            assert caught.value.field == option
        else:
            assert calls_for(server, request(**{option: value}))


def test_a_top_k_that_changes_nothing() -> None:
    for options in ({}, {"top_k": 0}, {"top_k": 7, "temperature": 0}):
        assert "top_k" not in body(OPENAI, **options)


def test_formats() -> None:
    wrapped = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    flat = {"type": "json_schema", "schema": SCHEMA}
    for given in (wrapped, flat):
        assert body(OPENAI, response_format=given)["response_format"] == wrapped
        assert body(LLAMA, response_format=given)["json_schema"] == SCHEMA
        assert body(LLAMA, "Once", response_format=given)["json_schema"] == SCHEMA
        assert body(OURS, response_format=given)["response_format"] == given
    assert body(OPENAI, response_format={"type": "json_object"})["response_format"] == {"type": "json_object"}
    assert body(LLAMA, response_format={"type": "json_object"})["json_schema"] == {"type": "object"}
    assert "response_format" not in body(OPENAI, response_format={"type": "text"})
    choice = {"type": "choice", "choices": ['say "hi"', "a\\b\nc"]}
    assert body(LLAMA, response_format=choice)["grammar"] == r'root ::= "say \"hi\"" | "a\\b\nc"'
    assert body(VLLM, response_format=choice)["structured_outputs"] == {"choice": choice["choices"]}
    with pytest.raises(CapabilityError, match="for a prompt"):
        body(OPENAI, "Once", response_format=flat)


def test_tools() -> None:
    for server in (OURS, LLAMA, VLLM, OPENAI):
        got = body(server, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "f"}})
        assert [tool["function"]["name"] for tool in got["tools"]] == ["f"]
        assert got["tool_choice"] == {"type": "function", "function": {"name": "f"}}
        assert got["parallel_tool_calls"] is True
        assert "tools" not in body(server, tools=[TOOL], tool_choice="none")


def test_stop_strings_that_are_looked_for_here() -> None:
    stops = [f"stop {index}" for index in range(30)]
    assert body(OPENAI, stop=stops)["stop"] == stops[:4]
    assert body(OURS, stop=["x" * 300, *stops])["stop"] == stops[:16]
    assert body(LLAMA, stop=stops)["stop"] == stops


def test_log_probabilities() -> None:
    assert {"logprobs": True, "top_logprobs": 0}.items() <= body(OPENAI, logprobs=True).items()
    assert body(LLAMA, logprobs=True)["top_logprobs"] == 1
    assert body(LLAMA, "Once", logprobs=True, top_logprobs=4)["n_probs"] == 4
    assert body(OPENAI, "Once", logprobs=True, top_logprobs=2)["logprobs"] == 2


def test_checked_before_anything_is_sent() -> None:
    for bad in (request([100]), request(logit_bias={100: 1})):
        with pytest.raises(ValidationError, match="token id 100 is outside of the vocabulary of 100"):
            calls_for(OURS, bad)
    with pytest.raises(ContextOverflowError) as caught:
        calls_for(OURS, request([1] * 64))
    assert (caught.value.n_prompt_tokens, caught.value.n_ctx) == (64, 64)
    with pytest.raises(ValidationError, match="max_tokens"):
        calls_for(OPENAI, request("Once", max_tokens=None))
    with pytest.raises(ValidationError, match="template_args cannot be sent as JSON"):
        calls_for(OURS, request(template_args={"a": object()}))


def test_embeddings() -> None:
    asked = EmbeddingRequest(texts=("a",), kind="query", pooling="last", normalize=False)
    assert embedding_body(OURS, asked, asked.texts) == {
        "model": "m",
        "input": ["a"],
        "encoding_format": "float",
        "kind": "query",
        "pooling": "last",
        "normalize": False,
    }
    shorter = EmbeddingRequest(texts=("a",), dimensions=64)
    for server in (OURS, LLAMA, OPENAI):
        assert embedding_body(server, shorter, ("a",))["dimensions"] == 64
    short = EmbeddingRequest(texts=("a", "b"), prefix="query: ", dimensions=8)
    ours = embedding_body(OURS, short, short.texts)
    assert (ours["input"], ours["prefix"], ours["dimensions"]) == (["a", "b"], "query: ", 8)
    theirs = embedding_body(OPENAI, short, short.texts)  # which knows no prefix
    assert theirs == {"input": ["query: a", "query: b"], "dimensions": 8, **{
        name: theirs[name] for name in ("model", "encoding_format")
    }}  # fmt: skip
    for server in (LLAMA, OPENAI):
        with pytest.raises(CapabilityError) as caught:
            embedding_body(server, asked, asked.texts)
        assert caught.value.field == "pooling"
    raw = EmbeddingRequest(texts=("a",), normalize=False)
    assert embedding_body(LLAMA, raw, ("a",))["embd_normalize"] == -1
    with pytest.raises(CapabilityError) as caught:
        embedding_body(OPENAI, raw, ("a",))
    assert caught.value.field == "normalize"


def listed(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": list(entries)}


def test_who_it_is() -> None:
    ours = listed({"id": "tiny", "owned_by": "bitnet", "meta": {"n_ctx": 8, "n_vocab": 9, "n_embd": 3}})
    server = identify(ROOT, f"{ROOT}/v1", None, ours, None)
    assert (server.kind, server.model, server.n_ctx, server.vocab_size) == ("bitnet", "tiny", 8, 9)
    props = {"default_generation_settings": {"n_ctx": 16}, "total_slots": 3}
    server = identify(ROOT, ROOT, "label", listed({"id": "x.gguf", "owned_by": "llamacpp"}), props)
    assert (server.kind, server.model, server.n_ctx, server.modern) == ("llama-server", "label", 16, False)
    assert identify(ROOT, ROOT, None, None, {**props, "build_info": "b1"}).modern
    vllm = listed({"id": "a", "owned_by": "vllm", "max_model_len": 32})
    assert (identify(ROOT, ROOT, None, vllm, None).kind, identify(ROOT, ROOT, None, vllm, None).n_ctx) == (
        "vllm",
        32,
    )
    assert identify(ROOT, ROOT, "unlisted", vllm, None).kind == "vllm"
    assert identify(ROOT, ROOT, "x", "nonsense", [1]).kind == "openai"
    with pytest.raises(ValidationError, match=r"several models; choose one with model=\.\.\.: 'a', 'b'"):
        identify(ROOT, ROOT, None, listed({"id": "a"}, {"id": "b"}), None)
    with pytest.raises(ValidationError, match="does not list its models"):
        identify(ROOT, ROOT, None, None, None)


def test_nonsense_in_what_it_tells_is_not_believed() -> None:
    entry = {"id": "tiny", "owned_by": "bitnet", "meta": {"n_ctx": -5, "n_vocab": True, "n_embd": "9"}}
    info = identify(ROOT, ROOT, None, listed(entry), None).info
    assert (info.n_ctx, info.vocab_size, info.hidden_size) == (0, 0, 0)
    assert info.path == ROOT
    assert "0 or empty" in info.warnings[0]
