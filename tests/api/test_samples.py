"""Several answers to one request (n > 1): each is what its seed gives alone; the prompt is computed once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet import BitNet, OverloadedError, ValidationError
from bitnet.testing import FakeEngine, FakeReply

QUESTION = [{"role": "user", "content": "Tell me a story about a brave fox."}]
Wait = Callable[[Callable[[], bool]], None]


def test_each_sample_is_what_its_seed_gives_alone(model: BitNet) -> None:
    options: dict[str, Any] = {"temperature": 4, "top_k": 0, "top_p": 1, "max_tokens": 20}
    alone = [model.chat(QUESTION, seed=2**64 - 1 + i, **options) for i in (0,)]
    alone += [model.chat(QUESTION, seed=i, **options) for i in range(6)]
    # More of them than are computed together; seeds go round at 2**64.
    reply = model.chat(QUESTION, n=7, seed=2**64 - 1, **options)
    assert [sample.text for sample in reply.samples] == [one.text for one in alone]
    assert len({sample.text for sample in reply.samples}) > 4
    assert reply.text == alone[0].text
    assert reply.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert reply.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    assert reply.to_dict()["samples"][3]["text"] == alone[3].text


def test_one_answer_has_no_samples(model: BitNet) -> None:
    reply = model.chat(QUESTION, temperature=0, max_tokens=3)
    assert reply.samples == ()
    assert "samples" not in reply.to_dict()


def test_the_prompt_is_computed_once(model: BitNet) -> None:
    prompt = model.tokenize("One two three four five six seven. " * 20)
    before = model._engine.health().n_tokens
    reply = model.generate(prompt, n=4, max_tokens=5, ignore_eos=True, cache_salt="samples")
    n_computed = model._engine.health().n_tokens - before
    assert reply.usage.completion_tokens == 20
    # The others compute the last, unfilled block of the prompt again, and their own tokens.
    assert n_computed <= len(prompt) + 3 * 32 + 4 * 5


def test_deltas_say_which_answer_they_belong_to(model: BitNet) -> None:
    texts = ["", "", ""]
    generation = model.stream_chat(QUESTION, n=3, seed=5, temperature=1.2, max_tokens=20)
    for delta in generation:
        texts[delta.index] += delta.text
    assert texts == [sample.text for sample in generation.result().samples]


def test_formats_hold_for_each(model: BitNet) -> None:
    choice = {"type": "choice", "choices": ["red", "green", "blue"]}
    reply = model.chat(QUESTION, n=5, seed=1, temperature=5, top_k=0, response_format=choice)
    assert all(sample.text in choice["choices"] for sample in reply.samples)


def test_cancelling_stops_all(random_path: Path, eventually: Wait) -> None:
    with BitNet(random_path, n_batch=2) as endless:
        generation = endless.stream([1, 2, 3], n=4, max_tokens=None, ignore_eos=True)
        next(generation)
        generation.cancel()
        reply = generation.result()
        assert [sample.finish_reason for sample in reply.samples] == ["cancelled"] * 4
        eventually(lambda: endless._engine.health().running + endless._engine.health().waiting == 0)


def test_all_or_none_are_queued(random_path: Path) -> None:
    with BitNet(random_path, n_batch=1, max_waiting=2) as small:
        with pytest.raises(OverloadedError):
            small.generate([1, 2], n=4, max_tokens=2)
        assert small._engine.health().n_tokens == 0
        assert len(small.generate([1, 2], n=3, max_tokens=2).samples) == 3


def test_in_an_event_loop(model: BitNet) -> None:
    async def ask() -> list[str]:
        reply = await model.achat(QUESTION, n=2, seed=3, max_tokens=8)
        return [sample.text for sample in reply.samples]

    assert asyncio.run(ask()) == [
        sample.text for sample in model.chat(QUESTION, n=2, seed=3, max_tokens=8).samples
    ]


@pytest.mark.parametrize("n", [0, 129, 1.5, True])
def test_bad_numbers_are_refused(model: BitNet, n: object) -> None:
    with pytest.raises(ValidationError, match="n must be"):
        model.chat(QUESTION, n=n)  # type: ignore[arg-type]


def test_an_error_of_one_ends_all() -> None:
    replies = ["one", FakeReply("two", error=RuntimeError("broken")), FakeReply(["x"] * 1000, delay=0.01)]
    with BitNet.from_engine(FakeEngine(replies)) as fake, pytest.raises(RuntimeError, match="broken"):
        fake.generate("?", n=3)
