"""Prompts that begin like earlier ones: not computed again, counted, and answered as if they had been."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serving import BLOCK, Serving, some_ids

from bitnet import BitNet, Reply
from bitnet.runtime.sequence import LogitsSequence

PROMPT = some_ids(1, 150)
LOGPROBS = {"logprobs": True, "top_logprobs": 20}


def same(reply: Reply, other: Reply) -> bool:
    """Bit-equal numbers, not only the same tokens."""
    return (reply.token_ids, reply.logprobs, reply.text) == (other.token_ids, other.logprobs, other.text)


def test_a_repeated_prompt_is_not_computed_again(random_path: Path) -> None:
    with Serving(random_path, n_blocks=16) as serving:
        cold = serving.ask(PROMPT, max_tokens=10, **LOGPROBS).result()
        before = serving.health.n_tokens
        warm = serving.ask(PROMPT, max_tokens=10, **LOGPROBS).result()
        n_computed = serving.health.n_tokens - before
    assert same(warm, cold)
    assert (cold.usage.cached_tokens, warm.usage.cached_tokens) == (0, 149)
    assert n_computed == 1 + 9  # the last token of the prompt, and all but the last one of the answer
    assert warm.usage.prompt_tokens == 150
    assert warm.timings.prefill_tokens_per_second < 1 / warm.timings.prefill * 1.01


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_results_are_bit_equal_wherever_the_prefix_ends(kv_type: str, random_path: Path) -> None:
    with Serving(random_path, n_blocks=64, kv_type=kv_type) as serving:
        prompts = [PROMPT[:length] + some_ids(length, 20) for length in (7, 31, 32, 45, 50, 64, 95, 149)]
        solo = [serving.ask(ids, salt=str(i), **LOGPROBS, max_tokens=6) for i, ids in enumerate(prompts)]
        expected = [generation.result() for generation in solo]
        assert [reply.usage.cached_tokens for reply in expected] == [0] * 8
        serving.ask(PROMPT, max_tokens=1).result()
        replies = [serving.ask(ids, **LOGPROBS, max_tokens=6).result() for ids in prompts]
        assert [reply.usage.cached_tokens for reply in replies] == [0, 31, 32, 45, 50, 64, 95, 149]
        # And every length of one prompt, up to the last token of a block and of the prompt.
        for length in (9, 32, 33, 63, 64, 65, 96, 97, 128, 149):
            expect = serving.ask(PROMPT[:length], salt="other", max_tokens=2, **LOGPROBS).result()
            found = serving.ask(PROMPT[:length], max_tokens=2, **LOGPROBS).result()
            assert found.usage.cached_tokens == length - 1
            assert same(found, expect)
    for reply, expect in zip(replies, expected, strict=True):
        assert same(reply, expect)


def test_a_conversation_goes_on_where_it_was(model: BitNet) -> None:
    """What was generated is known as well as what was asked."""
    messages = [{"role": "user", "content": f"What is the capital of France? {'Please. ' * 5}"}]
    first = model.chat(messages, temperature=0)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And of Spain?"}]
    second = model.chat(messages, temperature=0, **LOGPROBS)
    with BitNet(model.info.path) as fresh:
        expected = fresh.chat(messages, temperature=0, **LOGPROBS)
    assert expected.usage.cached_tokens == 0
    assert second.usage.cached_tokens > first.usage.prompt_tokens
    assert same(second, expected)


def test_generated_tokens_are_reused(random_path: Path) -> None:
    with Serving(random_path, n_blocks=16) as serving:
        first = serving.ask(PROMPT[:20], max_tokens=60).result()
        longer = [*PROMPT[:20], *first.token_ids, *some_ids(2, 9)]
        again = serving.ask(longer, max_tokens=5, **LOGPROBS).result()
        expected = serving.ask(longer, salt="other", max_tokens=5, **LOGPROBS).result()
    assert again.usage.cached_tokens == 79  # the last generated token was never computed
    assert same(again, expected)


def test_requests_of_another_salt_share_nothing(random_path: Path) -> None:
    with Serving(random_path, n_blocks=32) as serving:
        replies = [serving.ask(PROMPT, salt, max_tokens=3).result() for salt in ("", "a", "b", "a")]
    assert [reply.usage.cached_tokens for reply in replies] == [0, 0, 0, 149]
    assert len({reply.token_ids for reply in replies}) == 1


def test_prompts_that_arrive_together_are_computed_once(random_path: Path) -> None:
    with Serving(random_path, n_blocks=64) as serving:
        prompts = [PROMPT[:140] + some_ids(i, 10) for i in range(4)]
        expected = [serving.ask(ids, salt=str(i), max_tokens=5).result() for i, ids in enumerate(prompts)]
        before = serving.health.n_tokens
        generations = serving.ask_together([serving.sequence(ids, max_tokens=5) for ids in prompts])
        replies = [generation.result() for generation in generations]
        n_computed = serving.health.n_tokens - before
        assert [reply.token_ids for reply in replies] == [reply.token_ids for reply in expected]
        # Four whole blocks of the prompt once, and the rest of each.
        assert n_computed == 128 + 4 * (22 + 4)
        health = serving.wait_until_idle()
        assert health.cached_blocks == health.n_blocks - len(serving.scheduler._cache._free)


def test_what_was_computed_before_a_cancel_is_reused(slow_path: Path) -> None:
    with Serving(slow_path, n_blocks=64, max_batch_tokens=64) as serving:
        ids = some_ids(1, 1000)
        generation = serving.ask(ids, max_tokens=None)
        while serving.health.n_tokens < 128:
            pass
        generation.cancel()
        assert generation.result().finish_reason == "cancelled"
        serving.wait_until_idle()
        again = serving.ask(ids, max_tokens=1).result()
        assert again.usage.cached_tokens >= 128
        assert again.token_ids == serving.ask(ids, salt="other", max_tokens=1).result().token_ids


def test_eviction_takes_only_what_nobody_uses(random_path: Path) -> None:
    with Serving(random_path, n_blocks=8) as serving:
        expected = serving.ask(PROMPT[:60], max_tokens=100, seed=1, temperature=2).result()
        running = serving.ask(PROMPT[:60], max_tokens=100, seed=1, temperature=2)
        next(running)
        for i in range(10):
            serving.ask(some_ids(i, 70), max_tokens=2).result()
        assert running.result().token_ids == expected.token_ids
        serving.wait_until_idle()


def test_logits_compute_every_token(random_path: Path) -> None:
    with Serving(random_path, n_blocks=16) as serving:

        def logits() -> np.ndarray:
            sequence = LogitsSequence(PROMPT, serving.vocab_size)
            serving.scheduler.submit(sequence)
            return sequence.outlet.result(10)

        cold = logits()
        assert serving.wait_until_idle().cached_blocks == 0  # and leave nothing behind
        serving.ask(PROMPT, max_tokens=1).result()
        before = serving.health.n_tokens
        assert np.array_equal(logits(), cold)
        assert serving.health.n_tokens - before == len(PROMPT)
        assert serving.wait_until_idle().cached_blocks == -(-len(PROMPT) // BLOCK)


def test_health_tells_free_from_cached_blocks(random_path: Path) -> None:
    with Serving(random_path, n_blocks=16) as serving:
        assert (serving.health.free_blocks, serving.health.cached_blocks) == (16, 0)
        generation = serving.ask(PROMPT, max_tokens=300)
        next(generation)
        health = serving.health
        assert (health.free_blocks <= 11, health.cached_blocks) == (True, 0)
        generation.cancel()
        health = serving.wait_until_idle()
        assert (health.free_blocks, health.n_blocks) == (16, 16)
        assert health.cached_blocks >= 5


def test_the_bundled_model_with_and_without_the_cache(model: BitNet) -> None:
    prompt = "The history of the city begins with a harbour. " * 8
    cold = model.generate(prompt, max_tokens=20, seed=3, **LOGPROBS)
    warm = model.generate(prompt, max_tokens=20, seed=3, **LOGPROBS)
    assert same(warm, cold)
    assert warm.usage.cached_tokens == warm.usage.prompt_tokens - 1
