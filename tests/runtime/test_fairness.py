"""Prompts beside answers and beside each other: nobody waits for a long one, and the long one gets done."""

from __future__ import annotations

from pathlib import Path

from bitnet.runtime.scheduler import PROMPT_TILE
from bitnet.runtime.sequence import LOGITS_CHUNK, LogitsSequence, Sequence
from serving import Serving, some_ids


def steps_with(serving: Serving, *sequences: Sequence) -> list[dict[Sequence, int]]:
    return [
        dict(step)
        for step in serving.scheduler.steps
        if all(sequence in dict(step) for sequence in sequences)
    ]


def test_a_lone_prompt_is_computed_in_the_largest_steps(random_path: Path) -> None:
    with Serving(random_path, n_blocks=16, max_batch_tokens=200) as serving:
        serving.ask(some_ids(1, 500), max_tokens=2).result()
        assert [count for step in serving.scheduler.steps for _, count in step] == [200, 200, 100, 1]


def test_a_long_prompt_comes_in_small_pieces_beside_answers(random_path: Path) -> None:
    with Serving(random_path, n_blocks=64, max_batch_tokens=128) as serving:
        answers = [serving.sequence(some_ids(i, 5), max_tokens=20) for i in range(3)]
        prompt = serving.sequence(some_ids(9, 480), max_tokens=1)
        for generation in serving.ask_together([*answers, prompt]):
            generation.result()
        first, *pieces, last = steps_with(serving, prompt)
        assert sum(first.values()) == 128  # nobody answers yet
        assert len(pieces) == 6
        for step in pieces:
            # Every answer goes on at every step, and the step is whole tiles.
            assert all(step[answer] == 1 for answer in answers)
            assert step[prompt] == 2 * PROMPT_TILE - 3
        assert last[prompt] == 1


def test_many_answers_still_leave_a_tile_for_a_prompt(random_path: Path) -> None:
    for max_batch_tokens, expected in ((64, 24), (512, 56)):  # max_batch_tokens has the last word
        with Serving(random_path, n_blocks=128, n_batch=42, max_batch_tokens=max_batch_tokens) as serving:
            answers = [serving.sequence(some_ids(i, 1), max_tokens=3) for i in range(40)]
            prompt = serving.sequence(some_ids(99, 70), max_tokens=1)
            for generation in serving.ask_together([*answers, prompt]):
                generation.result()
            first = steps_with(serving, prompt)[0]
            assert len(first) == 41
            assert first[prompt] == expected


def test_a_short_prompt_does_not_wait_for_a_long_one(random_path: Path) -> None:
    with Serving(random_path, n_blocks=64, max_batch_tokens=64) as serving:
        long = serving.sequence(some_ids(1, 480), max_tokens=1)
        middle = serving.sequence(some_ids(2, 200), max_tokens=1)
        short = serving.sequence(some_ids(3, 40), max_tokens=1)
        for generation in serving.ask_together([long, middle, short]):
            generation.result()
        steps = [dict(step) for step in serving.scheduler.steps]
        assert steps[0] == {short: 32, long: 32}
        assert steps[1][short] == 8
        assert steps[1][middle] == 24
        # The long one never got less than its half, and everything when it was alone.
        assert all(step[long] >= 30 for step in steps[:-1])
        assert steps[-2][long] >= 60
        assert sum(step.get(middle, 0) for step in steps) == 200


def test_a_long_prompt_gets_done_in_a_stream_of_short_ones(random_path: Path) -> None:
    with Serving(random_path, n_blocks=64, max_batch_tokens=64) as serving:
        long = serving.sequence(some_ids(1, 480), max_tokens=1)
        shorts = [serving.sequence(some_ids(2 + i, 30), max_tokens=1) for i in range(60)]
        for generation in serving.ask_together([shorts[0], long, *shorts[1:]]):
            generation.result()
        pieces = steps_with(serving, long)
        assert len(pieces) <= 480 // 32 + 1
        # While it was computed, the short ones had the other half of each step.
        assert sum(sum(step.values()) - step[long] for step in pieces) > 300


def test_equal_prompts_are_answered_in_the_order_they_came(random_path: Path) -> None:
    with Serving(random_path, n_blocks=64, max_batch_tokens=64) as serving:
        sequences = [serving.sequence(some_ids(i, 200), max_tokens=1) for i in range(4)]
        for generation in serving.ask_together(sequences):
            generation.result()
        steps = [[sequence for sequence, _ in step] for step in serving.scheduler.steps]
        last = [max(i for i, step in enumerate(steps) if s in step) for s in sequences]
        assert last == sorted(last)
        assert last[0] <= 7


def test_logits_take_small_pieces(random_path: Path) -> None:
    with Serving(random_path, n_blocks=32) as serving:
        sequence = LogitsSequence(some_ids(1, 200), serving.vocab_size)
        answer = serving.sequence(some_ids(2, 300), max_tokens=3)
        with serving.scheduler._changed:
            serving.scheduler.submit(sequence)
            generation = serving.start(answer)
        sequence.outlet.result(10)
        generation.result()
        assert all(step[sequence] <= LOGITS_CHUNK for step in steps_with(serving, sequence))
