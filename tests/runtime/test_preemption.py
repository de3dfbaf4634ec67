"""Fewer blocks than all sequences need: some make way, are computed anew later, and answer the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serving import Serving, some_ids

from bitnet import ContextOverflowError, Generation
from bitnet.runtime.sequence import LogitsSequence


def ask(serving: Serving, i: int, max_tokens: int = 120) -> Generation:
    return serving.ask(
        some_ids(i, 20 + 9 * i),
        max_tokens=max_tokens,
        seed=i,
        temperature=2,
        repetition_penalty=1.3,
        frequency_penalty=0.5,
        logprobs=True,
        top_logprobs=3,
    )


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_preempted_answers_equal_their_solo_answers(kv_type: str, random_path: Path) -> None:
    with Serving(random_path, n_blocks=64, kv_type=kv_type) as roomy:
        expected = [ask(roomy, i).result() for i in range(6)]
        assert not roomy.scheduler.preempted
    with Serving(random_path, n_blocks=9, kv_type=kv_type) as serving:
        generations = [ask(serving, i) for i in range(6)]
        replies = [generation.result() for generation in generations]
        assert len(serving.scheduler.preempted) >= 2
        serving.wait_until_idle()
    for generation, reply, expect in zip(generations, replies, expected, strict=True):
        assert reply.token_ids == expect.token_ids
        assert reply.logprobs == expect.logprobs
        assert (reply.text, reply.finish_reason) == (expect.text, expect.finish_reason)
        assert "".join(delta.text for delta in generation) == expect.text
        assert reply.usage.cached_tokens == 0  # what it found of its own is no saving
        assert reply.timings.decode >= 0


def test_the_one_admitted_last_makes_way_and_is_the_next_to_go_on(random_path: Path) -> None:
    with Serving(random_path, n_blocks=8) as serving:
        sequences = [serving.sequence(some_ids(i, 60), max_tokens=100) for i in range(4)]
        generations = serving.ask_together(sequences)
        for generation in generations:
            assert len(generation.result().token_ids) == 100
        # Two blocks each at first, three from the 65th token on: there never was room for the fourth.
        assert serving.scheduler.preempted[0] is sequences[2]
        first_steps = [
            next(i for i, step in enumerate(serving.scheduler.steps) if sequence in dict(step))
            for sequence in sequences
        ]
        last_steps = [
            max(i for i, step in enumerate(serving.scheduler.steps) if sequence in dict(step))
            for sequence in sequences
        ]
        assert first_steps == sorted(first_steps)
        assert last_steps == sorted(last_steps)


def test_what_was_preempted_is_found_again_where_its_blocks_were_not_needed(random_path: Path) -> None:
    with Serving(random_path, n_blocks=8) as serving:
        sequences = [serving.sequence(some_ids(i, 60), max_tokens=100) for i in range(2)]
        for generation in serving.ask_together(sequences):
            generation.result()
        assert serving.scheduler.preempted == [sequences[1]]
        n_computed = sum(count for step in serving.scheduler.steps for _, count in step)
        assert 2 * 159 < n_computed < 2 * 159 + 100


def test_one_sequence_alone_may_have_all_blocks(random_path: Path) -> None:
    with Serving(random_path, n_blocks=4) as serving:
        assert serving.n_ctx == 128
        generations = [serving.ask(some_ids(i, 100 + i), max_tokens=None) for i in range(4)]
        for i, generation in enumerate(generations):
            reply = generation.result()
            assert (len(reply.token_ids), reply.finish_reason) == (28 - i, "length")
        assert serving.wait_until_idle().n_blocks == 4


def test_what_never_fits_is_an_error_and_not_a_wait(random_path: Path) -> None:
    with Serving(random_path, n_blocks=4) as serving:
        serving.n_ctx = 512  # an engine that promises more than it has
        too_long = serving.ask(some_ids(1, 129), max_tokens=1)
        with pytest.raises(ContextOverflowError, match=r"129.*128"):
            too_long.result()
        grows = serving.ask(some_ids(2, 100), max_tokens=100)
        neighbour = serving.ask(some_ids(3, 20), max_tokens=10)
        with pytest.raises(ContextOverflowError, match=r"129.*128"):
            grows.result()
        assert len(neighbour.result().token_ids) == 10
        serving.wait_until_idle()


def test_cancelling_one_that_made_way(random_path: Path) -> None:
    with Serving(random_path, n_blocks=8) as serving:
        expected = serving.ask(some_ids(0, 60), max_tokens=150, salt="other").result()
        sequences = [serving.sequence(some_ids(i, 60), max_tokens=150) for i in range(2)]
        with serving.scheduler._changed:
            generations = serving.ask_together(sequences)
            serving.scheduler.when_preempted = lambda sequence: generations[
                sequences.index(sequence)
            ].cancel()
        cancelled = generations[1].result(10)
        assert generations[0].result().token_ids == expected.token_ids
        assert cancelled.finish_reason == "cancelled"
        assert 0 < len(cancelled.token_ids) < 150
        assert cancelled.token_ids == tuple(sequences[1].token_ids[60:])
        serving.wait_until_idle()


def test_logits_among_sequences_that_make_way(random_path: Path) -> None:
    ids = some_ids(1, 90)

    def logits(serving: Serving) -> LogitsSequence:
        sequence = LogitsSequence(ids, serving.vocab_size)
        serving.scheduler.submit(sequence)
        return sequence

    with Serving(random_path, n_blocks=16) as roomy:
        expected = logits(roomy).outlet.result(10)
    with Serving(random_path, n_blocks=6) as serving:
        generations, matrices = [], []
        for i in range(5):
            generations.append(serving.ask(some_ids(i, 30), max_tokens=90))
            matrices.append(logits(serving))
        for generation in generations:
            assert len(generation.result().token_ids) == 90
        for matrix in matrices:
            assert np.array_equal(matrix.outlet.result(10), expected)
        serving.wait_until_idle()
