"""Requests are checked when they are built, and errors name the field."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from bitnet import (
    BitNet,
    ContextOverflowError,
    Delta,
    Message,
    Reply,
    Request,
    Sampling,
    Timings,
    TokenLogprob,
    Usage,
    ValidationError,
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "0.7"),
        ("temperature", True),
        ("temperature", 10**400),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("seed", 2**64),
        ("seed", 0.5),
        ("max_tokens", 0),
        ("max_tokens", "5"),
        ("stop", ["a", ""]),
        ("stop", [1]),
        ("stop", ["x"] * 65),
        ("stop", 3),
        ("ignore_eos", 1),
        ("logprobs", 5),
        ("top_logprobs", 21),
        ("top_logprobs", 1),
        ("logit_bias", [1]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {-1: 1}),
        ("sampling", {"temperature": 0}),
    ],
)
def test_bad_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field) as caught:
        Request.build(prompt="x", options={field: value})
    assert caught.value.field == field
    assert caught.value.status == 400


def test_bad_logit_bias_names_the_token() -> None:
    with pytest.raises(
        ValidationError, match=r"logit_bias\[7\] must be at least -100 and at most 100, not 101"
    ):
        Sampling(logit_bias={7: 101})


def test_unknown_option_is_refused_with_the_nearest_name(model: BitNet) -> None:
    with pytest.raises(ValidationError, match=r"unknown option 'temprature'; did you mean 'temperature'?"):
        model.generate("x", temprature=0)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match=r"unknown option 'max_token'; did you mean 'max_tokens'?"):
        model.chat([{"role": "user", "content": "x"}], max_token=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match=r"unknown option 'qqq'; known: max_tokens, n, stop, "):
        model.stream("x", qqq=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "messages must be a list"),
        ({"role": "user", "content": "x"}, "messages must be a list"),
        ([], "messages is empty"),
        (["hi"], r"messages\[0\]: a message must be"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], r"messages\[1\]: there is no 'content'"),
        ([{"role": "user", "contents": "x"}], r"unknown key 'contents'; did you mean 'content'"),
        (
            [{"role": "bot", "content": "x"}],
            r"messages\[0\]: role must be one of system, user, assistant, tool",
        ),
        ([{"role": "user", "content": None}], r"messages\[0\]: there is no 'content'"),
        ([{"role": "user", "content": 5}], r"messages\[0\]: content must be a string or a list of parts"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            r"messages\[0\]: content has a part of type 'image_url'",
        ),
        (
            [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}],
            "tool_calls belong to messages of the role assistant, not user",
        ),
        ([{"role": "user", "content": "x", "tool_call_id": "1"}], "tool_call_id belongs to"),
        ([{"role": "assistant", "tool_calls": [{"name": "f"}]}], r"messages\[0\]: tool_calls\[0\] must be"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}],
            "the arguments of the call of 'f' must be a JSON object",
        ),
        ([{"role": "user", "content": "a\udcff"}], "lone surrogate U\\+DCFF at character 1"),
    ],
)
def test_bad_messages_are_refused_with_their_place(messages: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Request.build(messages=messages, options={})


@pytest.mark.parametrize("prompt", [[], [1.5], [-1], [True], [2**31], ["a"], b"bytes", {1: 2}, 5, "\ud800"])
def test_bad_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(ValidationError, match="prompt"):
        Request.build(prompt=prompt, options={})


def test_a_request_has_exactly_one_prompt() -> None:
    with pytest.raises(ValidationError, match="not none"):
        Request()
    with pytest.raises(ValidationError, match="not prompt and token_ids"):
        Request(prompt="x", token_ids=(1,))


def test_values_are_normalised_and_immutable() -> None:
    request = Request.build(
        prompt=np.arange(3),
        options={
            "temperature": np.float32(0.5),
            "top_k": np.int64(3),
            "stop": "END",
            "seed": -1,
            "logit_bias": {"5": 1},
        },
    )
    assert request.token_ids == (0, 1, 2)
    assert request.stop == ("END",)
    assert request.sampling == Sampling(temperature=0.5, top_k=3, seed=2**64 - 1, logit_bias={5: 1.0})
    assert type(request.sampling.top_k) is int
    with pytest.raises(AttributeError):
        request.max_tokens = 5  # type: ignore[misc]


def test_sampling_object_gives_defaults_that_options_replace() -> None:
    base = Sampling(temperature=0, top_k=7)
    sampling = Request.build(prompt="x", options={"sampling": base, "top_k": 9}).sampling
    assert sampling == Sampling(temperature=0, top_k=9)


def test_requests_and_errors_survive_pickling() -> None:
    request = Request.build(messages=[Message("user", "Hi")], options={"logit_bias": {1: 2}})
    assert pickle.loads(pickle.dumps(request)) == request
    error = pickle.loads(pickle.dumps(ContextOverflowError(30, 20)))
    assert (error.n_prompt_tokens, error.n_ctx, error.field) == (30, 20, "prompt")
    assert pickle.loads(pickle.dumps(ValidationError("bad", field="top_k"))).field == "top_k"


def test_reply_as_plain_values() -> None:
    token = TokenLogprob(3, b"\xc3", -0.5, top=(TokenLogprob(4, b"b", -1.5),))
    reply = Reply(
        "x", (3,), "stop", Usage(5, 1), Timings(0.25, 0.5, 0, 10, 0), logprobs=(token,), stop_string="END"
    )
    assert str(reply) == "x"
    assert reply.to_dict() == {
        "text": "x",
        "token_ids": [3],
        "finish_reason": "stop",
        "stop_string": "END",
        "tool_calls": [],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6, "cached_tokens": 0},
        "timings": {
            "queue": 0.25,
            "prefill": 0.5,
            "decode": 0,
            "prefill_tokens_per_second": 10,
            "decode_tokens_per_second": 0,
            "drafted_tokens": 0,
            "accepted_tokens": 0,
            "time_to_first_token": 0.75,
        },
        "logprobs": [
            {
                "token_id": 3,
                "token": "\ufffd",
                "bytes": [0xC3],
                "logprob": -0.5,
                "top": [{"token_id": 4, "token": "b", "bytes": [98], "logprob": -1.5, "top": []}],
            }
        ],
    }
    assert Delta("a").token_ids == ()
