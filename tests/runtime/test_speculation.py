"""Guessing tokens ahead: which guesses, how many, and that no answer changes by a bit because of them.

`eager` has as many guesses computed as there can be, many of them wrong: what is left of those would show.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from serving import Serving, some_ids

from bitnet import BitNet, Reply, ValidationError
from bitnet.runtime import scheduler as scheduler_module
from bitnet.runtime.prefix_cache import MIN_COPIED
from bitnet.runtime.speculation import MAX_STEP_TOKENS, TOKEN_COST, PromptLookup, worthwhile

# Repeats itself with small differences: much to guess, and some of it wrong.
PHRASE = some_ids(1, 30)
PROMPT = [*PHRASE, *some_ids(2, 7), *PHRASE, *some_ids(3, 5), *PHRASE[:20]]
LOGPROBS = {"logprobs": True, "top_logprobs": 5}


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_many_as_possible(odds: Sequence[Sequence[float]], limit: int) -> list[int]:
        counts, left = [], limit - len(odds)
        for own in odds:
            counts.append(min(len(own), left))
            left -= counts[-1]
        return counts

    monkeypatch.setattr(scheduler_module, "worthwhile", as_many_as_possible)


def same(reply: Reply, other: Reply) -> bool:
    def facts(r: Reply) -> tuple[Any, ...]:
        return r.token_ids, r.logprobs, r.text, r.finish_reason, r.stop_string, r.usage.completion_tokens

    return facts(reply) == facts(other)


# ---- which tokens are guessed, and how sure that is ----


def lookup(token_ids: list[int]) -> PromptLookup:
    return PromptLookup(list(token_ids))


def append(found: PromptLookup, token_id: int) -> None:
    found._token_ids.append(token_id)
    found.appended()


def test_guesses_are_what_followed_the_same_tokens() -> None:
    found = lookup([1, 2, 3, 4, 5, 6, 9, 1, 2, 3])
    assert found.guesses(3) == [4, 5, 6]
    assert lookup([1, 2, 3]).odds(5) == []
    assert lookup([7]).odds(5) == lookup([7, 8]).odds(5) == []


def test_three_tokens_in_a_row_decide_before_two_and_later_ones_before_earlier() -> None:
    assert lookup([1, 2, 3, 50, 9, 2, 3, 60, 1, 2, 3]).guesses(1) == [50]
    assert lookup([1, 2, 3, 50, 1, 2, 3, 60, 1, 2, 3]).guesses(1) == [60]
    assert lookup([2, 3, 50, 2, 3, 60, 1, 2, 3]).guesses(1) == [60]


def test_what_repeats_itself_goes_on_so() -> None:
    assert lookup([5, 1, 2, 3, 1, 2, 3]).guesses(7) == [1, 2, 3, 1, 2, 3, 1]
    assert lookup([4, 4, 4, 4]).guesses(3) == [4, 4, 4]


def test_a_source_is_followed_until_it_is_wrong() -> None:
    found = lookup([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3])
    for expected in (4, 5, 6):
        assert found.guesses(1) == [expected]
        append(found, expected)
    append(found, 2)  # not 7: look again, for 6, 2 in vain
    assert found.odds(1) == []
    append(found, 3)  # after 2, 3 came 4, a while ago and lately
    assert found.guesses(2) == [4, 5]


def test_guesses_are_the_earlier_text_whatever_came_in_between() -> None:
    """Against a search through everything, over random texts of few different tokens."""
    rng = random.Random(0)
    for _ in range(300):
        text = [rng.randrange(4) for _ in range(rng.randrange(1, 12))]
        found = lookup(text)
        for _ in range(30):
            tokens = found._token_ids
            earlier = [
                at
                for n in (3, 2)
                for at in range(len(tokens) - 1, n - 1, -1)
                if tokens[at - n : at] == tokens[-n:]
            ]
            assert (found.odds(1) != []) == bool(earlier)
            if earlier:
                assert found._source in earlier
                assert found.guesses(1) == [tokens[found._source]]
            append(found, rng.randrange(4))


def test_odds_follow_experience() -> None:
    found = lookup([*range(100), 0, 1, 2])
    before = found.odds(8)
    assert before == sorted(before, reverse=True)
    for token_id in range(3, 60):
        append(found, token_id)
    assert found.odds(8)[7] > 0.9  # everything was right
    for wrong in range(1000, 1040):  # pairs that occurred before, and lead somewhere else each time
        for token_id in (5, 6, wrong):
            append(found, token_id)
    append(found, 5)
    append(found, 6)
    assert 0 < found.odds(1)[0] < 0.1


def test_as_many_guesses_are_computed_as_pay() -> None:
    def speed(counts: Sequence[int], odds: Sequence[Sequence[float]]) -> float:
        tokens = len(odds) + sum(sum(own[:count]) for own, count in zip(odds, counts, strict=True))
        return tokens / (1 + TOKEN_COST * (len(odds) + sum(counts) - 1))

    rng = random.Random(1)
    for _ in range(200):
        odds = [
            list(itertools.accumulate((rng.random() ** 0.3 for _ in range(rng.randrange(5))), float.__mul__))
            for _ in range(rng.randrange(1, 5))
        ]
        counts = worthwhile(odds, 100)
        best = max(itertools.product(*(range(len(own) + 1) for own in odds)), key=lambda c: speed(c, odds))
        assert speed(counts, odds) == pytest.approx(speed(best, odds))


def test_a_full_step_takes_no_guesses() -> None:
    sure = [0.999] * MAX_STEP_TOKENS
    assert worthwhile([sure], MAX_STEP_TOKENS) == [MAX_STEP_TOKENS - 1]
    assert sum(worthwhile([sure] * 4, MAX_STEP_TOKENS)) == MAX_STEP_TOKENS - 4
    assert worthwhile([sure] * MAX_STEP_TOKENS, MAX_STEP_TOKENS) == [0] * MAX_STEP_TOKENS
    # The more there are, the surer a guess must be: others could use the time.
    assert worthwhile([[0.6]], MAX_STEP_TOKENS) == [1]
    assert worthwhile([[0.6]] + [[]] * 7, MAX_STEP_TOKENS) == [0] * 8
    assert worthwhile([[], []], MAX_STEP_TOKENS) == [0, 0]


# ---- answers ----

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "logprobs": LOGPROBS,
    "random": {"temperature": 0.8, "seed": 5, **LOGPROBS},
    "wild": {"temperature": 3, "top_k": 0, "top_p": 1, "seed": 6},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2, **LOGPROBS},
    "bias": {"logit_bias": {7: 3.0, 9: -100}},
    "one token": {"max_tokens": 1},
    "two tokens": {"max_tokens": 2},
    "whole context": {"max_tokens": None},
}


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("name", OPTIONS)
def test_answers_are_the_same(name: str, kv_type: str, random_path: Path) -> None:
    options = {"max_tokens": 90, **OPTIONS[name]}
    with Serving(random_path, n_blocks=8, kv_type=kv_type) as plain:
        expected = plain.ask(PROMPT, **options).result()
    with Serving(random_path, n_blocks=8, kv_type=kv_type, speculate=True) as serving:
        generation = serving.ask(PROMPT, **options)
        deltas = list(generation)
        reply = generation.result()
        health = serving.wait_until_idle()
    assert same(reply, expected)
    assert [token_id for delta in deltas for token_id in delta.token_ids] == list(expected.token_ids)
    assert "".join(delta.text for delta in deltas) == expected.text
    timings = reply.timings
    assert expected.timings.drafted_tokens == expected.timings.accepted_tokens == 0
    assert 0 <= timings.accepted_tokens <= timings.drafted_tokens
    # One step for the prompt, which gives the first token, and then one for each token that was not guessed.
    assert health.n_steps == len(reply.token_ids) - timings.accepted_tokens
    assert health.n_tokens == len(PROMPT) + health.n_steps - 1 + timings.drafted_tokens
    if len(reply.token_ids) > 10:
        assert timings.drafted_tokens > timings.accepted_tokens


def test_the_look_up_decides_without_being_told(random_path: Path) -> None:
    """The real policy: an answer that runs in circles is guessed, one at random is not."""
    with Serving(random_path, n_blocks=16) as plain:
        expected = plain.ask(PHRASE, max_tokens=300).result()
    assert len(set(expected.token_ids[-100:])) < 50  # it does
    with Serving(random_path, n_blocks=16, speculate=True) as serving:
        circles = serving.ask(PHRASE, max_tokens=300).result()
        chaos = serving.ask(PROMPT, max_tokens=300, temperature=50, top_k=0, top_p=1, seed=1).result()
    assert same(circles, expected)
    assert circles.timings.accepted_tokens > 100
    assert circles.timings.accepted_tokens > 0.7 * circles.timings.drafted_tokens
    assert chaos.timings.drafted_tokens < 10


@pytest.mark.usefixtures("eager")
def test_any_end_within_guesses_is_found(random_path: Path) -> None:
    with Serving(random_path, n_blocks=8, speculate=True) as serving:
        whole = serving.ask(PHRASE, "whole", max_tokens=120).result()
        assert whole.timings.accepted_tokens > 10
        for max_tokens in range(60, 75):
            cut = serving.ask(PHRASE, str(max_tokens), max_tokens=max_tokens).result()
            assert cut.token_ids == whole.token_ids[:max_tokens]
            assert cut.finish_reason == "length"
        for begin in range(60, 75):
            stop = whole.text[begin : begin + 5]
            stopped = serving.ask(PHRASE, stop, max_tokens=120, stop=[stop]).result()
            assert (stopped.finish_reason, stopped.stop_string) == ("stop", stop)
            assert stopped.text == whole.text[: whole.text.index(stop)]
            assert stopped.token_ids == whole.token_ids[: len(stopped.token_ids)]


@pytest.mark.usefixtures("eager")
def test_what_was_guessed_wrong_is_never_found_again(random_path: Path) -> None:
    """Prompts that go on with each part of an answer, from blocks that wrong guesses were written to."""
    with Serving(random_path, n_blocks=64, speculate=True) as serving:
        first = serving.ask(PROMPT, max_tokens=100, frequency_penalty=2).result()
        assert first.timings.drafted_tokens > first.timings.accepted_tokens + 50
        assert first.timings.accepted_tokens > 0
        answer = [*PROMPT, *first.token_ids]
        for length in range(len(PROMPT) + 1, len(answer), 3):
            # Another token behind it, which may be one that was guessed there.
            for following in (answer[length], some_ids(length, 1)[0]):
                prompt = [*answer[:length], following]
                warm = serving.ask(prompt, max_tokens=4, **LOGPROBS).result()
                cold = serving.ask(prompt, f"{length}, {following}", max_tokens=4, **LOGPROBS).result()
                assert warm.usage.cached_tokens >= length - MIN_COPIED
                assert cold.usage.cached_tokens == 0
                assert same(warm, cold)
        serving.wait_until_idle()


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("n_blocks", [9, 64])
def test_crowds_and_preempted_ones_answer_as_alone(n_blocks: int, random_path: Path) -> None:
    def ask(serving: Serving, i: int) -> Any:
        own = some_ids(i, 9)
        prompt = own * 3 + some_ids(i + 50, i)
        options = list(OPTIONS.values())[i % 6]
        return serving.ask(prompt, **{"max_tokens": 100, "seed": i, **options})

    with Serving(random_path, n_blocks=64) as plain:
        expected = [ask(plain, i).result() for i in range(8)]
    with Serving(random_path, n_blocks=n_blocks, n_batch=6, speculate=True) as serving:
        replies = [generation.result() for generation in [ask(serving, i) for i in range(8)]]
        assert (len(serving.scheduler.preempted) > 0) == (n_blocks == 9)
        assert all(
            len(step) <= MAX_STEP_TOKENS for step in serving.scheduler.steps if all(n == 1 for _, n in step)
        )
        serving.wait_until_idle()
    for reply, expect in zip(replies, expected, strict=True):
        assert same(reply, expect)
    assert sum(reply.timings.accepted_tokens for reply in replies) > 0


@pytest.mark.usefixtures("eager")
def test_a_cancelled_answer_is_the_beginning_of_the_whole(random_path: Path) -> None:
    with Serving(random_path, n_blocks=16, speculate=True) as serving:
        whole = serving.ask(PHRASE, max_tokens=400).result()
        for i in range(10):
            generation = serving.ask(PHRASE, str(i), max_tokens=400)
            for _ in range(1 + 7 * i):
                next(generation)
            generation.cancel()
            reply = generation.result()
            assert reply.token_ids == whole.token_ids[: len(reply.token_ids)]
            assert reply.finish_reason in ("cancelled", "length")
        serving.wait_until_idle()


def test_an_interrupted_step_is_computed_again(random_path: Path) -> None:
    """Another one's cancellation may stop the forward pass under way."""
    with Serving(random_path, n_blocks=16, speculate=True) as serving:
        expected = serving.ask(PHRASE, "other", max_tokens=200).result()
        generation = serving.ask(PHRASE, max_tokens=200)
        while not generation.done:
            serving.scheduler._runner.cancel()
            time.sleep(0.0005)
        assert same(generation.result(), expected)


# ---- the bundled model ----

LIST = "Paris, Rome, Tokyo, Berlin, Madrid, "
ITEMS = {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 6}
FORMAT = {"type": "json_schema", "schema": ITEMS}
AGAIN = {"type": "regex", "pattern": f"({LIST})+"}  # whatever the model would say


@pytest.fixture(scope="module")
def plain() -> Any:
    with BitNet(speculate=False) as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("ask", "guessed"),
    [
        (lambda m: m.generate(LIST * 5, max_tokens=60, temperature=0), True),
        (lambda m: m.generate(LIST * 5, max_tokens=60, temperature=0.3, seed=3, **LOGPROBS), True),
        (lambda m: m.generate(LIST * 5, temperature=0, stop="Madrid", response_format=AGAIN), True),
        (lambda m: m.generate("red green " * 9, max_tokens=50, temperature=0, response_format=FORMAT), True),
        (lambda m: m.generate(LIST * 3, max_tokens=9, temperature=1, n=3, seed=1), None),
    ],
    ids=["list", "random", "stop", "schema", "samples"],
)
def test_the_bundled_model_answers_the_same(
    ask: Callable[[BitNet], Reply], guessed: bool | None, plain: BitNet, model: BitNet
) -> None:
    expected, reply = ask(plain), ask(model)
    assert same(reply, expected)
    assert [s.token_ids for s in reply.samples] == [s.token_ids for s in expected.samples]
    assert expected.timings.drafted_tokens == 0
    if guessed:
        assert reply.timings.accepted_tokens > 0
        assert reply.timings.to_dict()["accepted_tokens"] == reply.timings.accepted_tokens


@pytest.mark.usefixtures("eager")
def test_an_end_token_may_be_among_the_guesses(plain: BitNet, model: BitNet) -> None:
    question = {"role": "user", "content": "What is the capital of France?"}
    answer = plain.chat([question], temperature=0)
    messages = [question, answer.message, question, answer.message, question]
    expected, reply = (one.chat(messages, temperature=0, max_tokens=100) for one in (plain, model))
    assert same(reply, expected)
    assert reply.finish_reason == "stop"
    # Most was guessed, the end as well, and what was guessed behind it counts for nothing.
    assert reply.timings.accepted_tokens > len(reply.token_ids) / 2
    assert reply.timings.drafted_tokens > reply.timings.accepted_tokens


def test_the_option(random_path: Path) -> None:
    with pytest.raises(ValidationError, match="speculate must be True or False, not 1") as caught:
        BitNet(random_path, speculate=1)  # type: ignore[arg-type]
    assert caught.value.field == "speculate"
