"""The bundled model through `bitnet serve` answers as it does in this process, bit for bit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitnet import BitNet, ContextOverflowError, ModelNotFoundError, Reply, ValidationError
from bitnet.errors import AuthenticationError
from bitnet.server import create_app
from server.hosting import ANSWER, QUESTION, Hosted, hosted

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.fixture(scope="module")
def server(model: BitNet) -> Iterator[Hosted]:
    with hosted(create_app({"tiny": model})) as running:
        yield running


@pytest.fixture(scope="module")
def remote(server: Hosted) -> Iterator[BitNet]:
    with BitNet(base_url=server.url, proxy="") as connected:
        yield connected


def comparable(reply: Reply) -> Reply:
    """Without what depends on when and where it was computed, or is made up anew each time."""
    none = replace(reply.timings, queue=0, prefill=0, decode=0)
    none = replace(none, prefill_tokens_per_second=0, decode_tokens_per_second=0)
    calls = tuple(replace(call, id="") for call in reply.tool_calls)
    usage = replace(reply.usage, cached_tokens=0)
    samples = tuple(comparable(sample) for sample in reply.samples)
    return replace(reply, timings=none, tool_calls=calls, usage=usage, samples=samples)


CHATS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.0, "seed": 7, "max_tokens": 20},
    {
        "temperature": 1.0,
        "seed": 2**64 - 1,
        "top_k": 5,
        "min_p": 0.05,
        "repetition_penalty": 1.2,
        "max_tokens": 20,
    },
    {"temperature": 0, "stop": [" Paris"]},
    {"temperature": 0, "stop": [f"never {i}" for i in range(20)] + ["Paris"]},
    {"temperature": 0, "max_tokens": 3},
    {"temperature": 0, "ignore_eos": True, "max_tokens": 24},
    {"temperature": 0, "logit_bias": {5: -100}, "presence_penalty": 0.5, "frequency_penalty": 0.25},
    {"temperature": 0, "response_format": {"type": "json_schema", "schema": SCHEMA}, "max_tokens": 40},
    {"temperature": 0, "response_format": {"type": "choice", "choices": ["red", "green"]}},
    {"temperature": 0, "response_format": {"type": "regex", "pattern": "[0-9]{4}"}},
    {"temperature": 0, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 80},
]


@pytest.mark.parametrize("options", CHATS, ids=lambda options: "+".join(options))
def test_the_same_as_here(model: BitNet, remote: BitNet, options: dict[str, Any]) -> None:
    here = comparable(model.chat(QUESTION, **options))
    there = comparable(remote.chat(QUESTION, **options))
    if len(options.get("stop", ())) > 16:  # found here, one token after it was computed
        here, there = (replace(each, token_ids=(), usage=here.usage) for each in (here, there))
    assert there == here


def test_the_answer(remote: BitNet) -> None:
    reply = remote.chat(QUESTION, temperature=0)
    assert (reply.text, reply.finish_reason) == (ANSWER, "stop")


def test_several_samples(model: BitNet, remote: BitNet) -> None:
    options: Any = {"n": 3, "seed": 5, "temperature": 1.0, "max_tokens": 12}
    here, there = model.chat(QUESTION, **options), remote.chat(QUESTION, **options)
    assert [sample.text for sample in there.samples] == [sample.text for sample in here.samples]
    assert [sample.token_ids for sample in there.samples] == [sample.token_ids for sample in here.samples]
    assert there.usage.completion_tokens == here.usage.completion_tokens


def test_prompts_and_token_ids(model: BitNet, remote: BitNet) -> None:
    for prompt in ("Once upon a time", model.tokenize("Once upon a time")):
        here = comparable(model.generate(prompt, temperature=0, max_tokens=8))
        assert comparable(remote.generate(prompt, temperature=0, max_tokens=8)) == here
    unlimited = remote.generate("Once upon a time", temperature=0, max_tokens=None, ignore_eos=True)
    assert unlimited.finish_reason == "length"
    assert unlimited.usage.total_tokens == remote.info.n_ctx


def test_logprobs(model: BitNet, remote: BitNet) -> None:
    options: Any = {"temperature": 0, "max_tokens": 5, "logprobs": True, "top_logprobs": 3}
    here, there = model.chat(QUESTION, **options).logprobs, remote.chat(QUESTION, **options).logprobs
    assert here is not None
    assert there is not None
    assert [(entry.token_id, entry.token_bytes, entry.logprob) for entry in there] == [
        (entry.token_id, entry.token_bytes, entry.logprob) for entry in here
    ]
    assert [[top.token_bytes for top in entry.top] for entry in there] == [
        [top.token_bytes for top in entry.top] for entry in here
    ]


def test_text_and_tokens(model: BitNet, remote: BitNet) -> None:
    text = "Hello, wörld <|eot_id|> 🙂"
    assert remote.tokenize(text) == model.tokenize(text)
    assert remote.tokenize(text, add_special=False, parse_special=True) == model.tokenize(
        text, add_special=False, parse_special=True
    )
    ids = model.tokenize(text)
    assert remote.detokenize(ids) == model.detokenize(ids)
    assert remote.detokenize(ids, skip_special=False) == model.detokenize(ids, skip_special=False)
    assert remote.render(QUESTION, tools=[WEATHER]) == model.render(QUESTION, tools=[WEATHER])
    assert remote.count_tokens(QUESTION, tools=[WEATHER]) == model.count_tokens(QUESTION, tools=[WEATHER])
    assert remote.count_tokens(text) == model.count_tokens(text)


def test_embeddings(model: BitNet, remote: BitNet) -> None:
    texts = ["one", "two words", "one"]
    assert np.array_equal(remote.embed(texts), model.embed(texts))
    assert np.array_equal(remote.embed("x", normalize=False), model.embed("x", normalize=False))
    assert np.array_equal(asyncio.run(remote.aembed("x", pooling="last")), model.embed("x", pooling="last"))


def test_what_it_is(model: BitNet, remote: BitNet) -> None:
    here, there = model.info, remote.info
    for name in ("architecture", "n_parameters", "hidden_size", "vocab_size", "context_length", "n_ctx"):
        assert getattr(there, name) == getattr(here, name), name
    assert there.name == "tiny"


def test_errors(server: Hosted, remote: BitNet) -> None:
    with pytest.raises(ContextOverflowError) as caught:
        remote.generate("word " * 5000, temperature=0)
    assert caught.value.n_prompt_tokens > caught.value.n_ctx == remote.info.n_ctx
    with pytest.raises(ValidationError, match=r"template_args|chat_template_kwargs"):
        remote.chat(QUESTION, template_args={"nonsense": 1})
    with (
        BitNet("other", base_url=server.url, proxy="", lazy=True) as other,
        pytest.raises(ModelNotFoundError, match="other"),
    ):
        other.chat(QUESTION)


def test_disconnecting_stops_the_computation(
    model: BitNet, remote: BitNet, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    def is_idle() -> bool:
        health = model.health()
        return health is not None and health.running == health.waiting == 0

    for _ in remote.stream_chat(QUESTION, max_tokens=None, ignore_eos=True):
        break
    eventually(is_idle)


def test_a_key(model: BitNet, eventually: Callable[[Callable[[], bool]], None]) -> None:
    with hosted(create_app({"tiny": model}, api_keys=["sk-right"])) as server:
        with BitNet(base_url=server.url, api_key="sk-right", proxy="") as right:
            assert right.chat(QUESTION, temperature=0).text == ANSWER
        for wrong, hint in (("sk-wrong", "check api_key"), (None, "it wants an api_key")):
            with pytest.raises(AuthenticationError, match=hint) as caught:
                BitNet(base_url=server.url, api_key=wrong, proxy="")
            assert "sk-wrong" not in str(caught.value)


def test_from_a_configuration(server: Hosted) -> None:
    config = {
        "mode": "api",
        "base_url": server.url,
        "model": "tiny",
        "temperature": 0,
        "timeout": {"total": 60000},
    }
    with BitNet.from_config(config) as configured:
        assert configured.chat(QUESTION).text == ANSWER
