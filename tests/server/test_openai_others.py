"""Completions, embeddings and the text endpoints, through the official client and plain requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from hosting import QUESTION, Hosted

from bitnet import BitNet
from bitnet.testing import FakeEngine
from rewritten_model import rewrite

PROMPT = "Once upon a time"


def test_completion(client: openai.OpenAI, model: BitNet) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPT, temperature=0, max_tokens=16)
    expected = model.generate(PROMPT, temperature=0, max_tokens=16)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_completion_of_token_ids(client: openai.OpenAI, model: BitNet) -> None:
    ids = model.tokenize(PROMPT)
    answer = client.completions.create(model="tiny", prompt=ids, temperature=0, max_tokens=8)
    assert answer.choices[0].text == model.generate(ids, temperature=0, max_tokens=8).text


def test_several_prompts(client: openai.OpenAI, model: BitNet) -> None:
    prompts = [PROMPT, "The opposite of hot is", "2 + 2 ="]
    how: dict[str, Any] = {"temperature": 0.9, "seed": 4, "max_tokens": 8, "n": 2}
    answer = client.completions.create(model="tiny", prompt=prompts, **how)
    expected = [sample.text for prompt in prompts for sample in model.generate(prompt, **how).samples]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 6 * 8


def test_completion_streamed(client: openai.OpenAI, model: BitNet) -> None:
    chunks = list(
        client.completions.create(
            model="tiny",
            prompt=PROMPT,
            temperature=0,
            max_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == model.generate(PROMPT, temperature=0, max_tokens=16).text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 16
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


def test_completion_logprobs(client: openai.OpenAI, model: BitNet) -> None:
    how: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8, "logprobs": 2}
    logprobs = client.completions.create(model="tiny", **how).choices[0].logprobs
    expected = model.generate(PROMPT, temperature=0, max_tokens=8, logprobs=True, top_logprobs=2).logprobs
    assert expected is not None
    assert logprobs is not None
    assert logprobs.tokens == [entry.token for entry in expected]
    assert logprobs.token_logprobs == [entry.logprob for entry in expected]
    assert logprobs.top_logprobs is not None
    assert [len(top) for top in logprobs.top_logprobs] == [2] * 8
    assert logprobs.text_offset is not None
    assert logprobs.text_offset[:2] == [0, len(expected[0].token)]
    streamed: list[int] = []
    for chunk in client.completions.create(model="tiny", stream=True, **how):
        if chunk.choices and chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.text_offset or []
    assert streamed == logprobs.text_offset


@pytest.mark.parametrize(
    ("option", "value"),
    [("best_of", 3), ("suffix", "the end"), ("echo", True), ("logprobs", 99), ("n", 17)],
)
def test_refused_in_completions(client: openai.OpenAI, option: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=option) as caught:
        client.completions.create(model="tiny", prompt=PROMPT, **{option: value})
    assert caught.value.param == option


def test_neutral_values_are_no_parameters(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=1, best_of=1, echo=False, suffix=None, logprobs=None
    )
    assert answer.choices[0].finish_reason == "length"


def test_embeddings(client: openai.OpenAI, model: BitNet) -> None:
    texts = ["a fox", "a dog and a fox", "the capital of France"]
    answer = client.embeddings.create(model="tiny", input=texts)  # the client asks for base64
    expected = model.embed(texts)
    assert np.array_equal(np.asarray([item.embedding for item in answer.data], np.float32), expected)
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == sum(len(model.tokenize(text)) for text in texts)
    size = model.info.hidden_size
    same = client.embeddings.create(model="tiny", input="a fox", dimensions=size)
    assert np.array_equal(np.asarray(same.data[0].embedding, np.float32), expected[0])
    floats = client.embeddings.create(model="tiny", input="a fox", encoding_format="float")
    assert np.array_equal(np.asarray(floats.data[0].embedding, np.float32), expected[0])


def test_usage_counts_the_words_before_a_text(serve: Callable[..., Hosted], tmp_path: Path) -> None:
    path = rewrite(tmp_path / "model.gguf", metadata={"bitnet.embedding_prefix.query": "a search for "})
    texts = ["a fox", "the capital of France"]
    with BitNet(path) as model:
        ways: list[tuple[dict[str, Any], str]] = [
            ({}, ""),
            ({"kind": "query"}, "a search for "),
            ({"kind": "query", "prefix": None}, "a search for "),
            ({"kind": "query", "prefix": "query: "}, "query: "),
            ({"kind": "query", "prefix": ""}, ""),
            ({"prefix": "text: "}, "text: "),
        ]
        with serve(model).client() as http:
            for options, prefix in ways:
                before = model.health().n_tokens  # type: ignore[union-attr]
                answer = http.post("/v1/embeddings", json={"input": texts, **options}).json()
                computed = model.health().n_tokens - before  # type: ignore[union-attr]
                expected = sum(len(model.tokenize(prefix + text)) for text in texts)
                assert (computed, answer["usage"]) == (
                    expected,
                    {"prompt_tokens": expected, "total_tokens": expected},
                )
            path.unlink()  # the model stays loaded, and answers
            assert http.post("/v1/embeddings", json={"input": texts, "kind": "query"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "a", "kind": "title"}, "kind"),
        ({"input": "a", "kind": ["query"]}, "kind"),
        ({"input": [1, 2, 3]}, "input"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["word " * 3000]}, "input"),
        ({"input": "a", "dimensions": 8}, "dimensions"),
        ({"input": "a", "dimensions": 257}, "dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": True}, "dimensions"),
        ({"input": "a", "prefix": 3}, "prefix"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "pooling": "cls"}, "pooling"),
        ({}, "input"),
    ],
)
def test_refused_in_embeddings(server: Hosted, body: dict[str, Any], param: str) -> None:
    with server.client() as http:
        answer = http.post("/v1/embeddings", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.fixture
def post(server: Hosted) -> Callable[..., Any]:
    def post(path: str, **body: Any) -> Any:
        answer = httpx.post(f"{server.url}{path}", json=body, timeout=30, verify=False, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return post


def test_tokenize(post: Callable[..., Any], model: BitNet) -> None:
    ids = model.tokenize("Hello, world")
    for path in ("/tokenize", "/v1/tokenize"):
        for name in ("content", "prompt"):
            answer = post(path, **{name: "Hello, world"})
            assert answer["tokens"] == ids
            assert answer["count"] == len(ids)
    plain = post("/tokenize", content="Hello, world", add_special=False)["tokens"]
    assert plain == model.tokenize("Hello, world", add_special=False)
    count = post("/tokenize", messages=QUESTION)["count"]
    assert count == model.count_tokens(QUESTION)
    assert post("/detokenize", tokens=ids)["content"] == model.detokenize(ids)


def test_apply_template(post: Callable[..., Any], model: BitNet) -> None:
    assert post("/apply-template", messages=QUESTION)["prompt"] == model.render(QUESTION)
    tools = [{"type": "function", "function": {"name": "now", "description": "Get the time."}}]
    with_tools = post("/v1/apply-template", messages=QUESTION, tools=tools)["prompt"]
    assert with_tools == model.render(QUESTION, tools=tools)
    assert "Get the time." in with_tools


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"content": "a", "prompt": "b"}),
        ("/tokenize", {"content": 1}),
        ("/tokenize", {"content": "\ud800"}),
        ("/tokenize", {"content": "a", "add_special": "yes"}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [1.5]}),
        ("/detokenize", {"tokens": [True]}),
        ("/detokenize", {"tokens": [2**31]}),
        ("/detokenize", {"tokens": [2**100]}),
        ("/apply-template", {}),
        ("/apply-template", {"messages": []}),
        ("/apply-template", {"messages": QUESTION, "chat_template_kwargs": {"messages": []}}),
    ],
)
def test_refused_in_text(server: Hosted, path: str, body: dict[str, Any]) -> None:
    with server.client() as http:
        answer = http.post(path, content=json.dumps(body))
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_health(server: Hosted) -> None:
    with server.client() as http:
        for path in ("/health", "/health/live", "/health/ready", "/v1/health"):
            assert http.get(path).json() == {"status": "ok"}


def test_metrics(serve: Callable[..., Hosted]) -> None:
    engine = FakeEngine(lambda request: "hello")
    with serve(engine).client() as http:
        for stream in (False, True):
            http.post(
                "/v1/chat/completions", json={"messages": QUESTION, "stream": stream}
            ).raise_for_status()
        http.post("/v1/chat/completions", json={"messages": []})
        http.get("/nowhere/" + "x" * 50)
        text = http.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['bitnet_requests_total{route="/chat/completions",status="200"}'] == "2.0"
    assert lines['bitnet_requests_total{route="/chat/completions",status="400"}'] == "1.0"
    assert lines['bitnet_requests_total{route="none",status="404"}'] == "1.0"
    assert lines['bitnet_tokens_total{kind="completion",model="m"}'] == "10.0"
    assert lines['bitnet_time_to_first_token_seconds_count{model="m"}'] == "2.0"
    assert lines['bitnet_model_loaded{model="m"}'] == "1.0"
    assert lines['bitnet_engine_running{model="m"}'] == "0.0"
    assert lines["bitnet_requests_in_flight"] == "1.0"  # the one that asks
    assert "nowhere" not in text
