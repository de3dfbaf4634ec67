"""A real model behind a scheduler with as many KV blocks as a test wants, and a record of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as TokenIds
from pathlib import Path
from typing import Any

from bitnet import _native
from bitnet.engines.generation import Generation
from bitnet.runtime.scheduler import Scheduler
from bitnet.runtime.sequence import GenerationSequence, Sequence
from bitnet.text.tokenizer import Tokenizer
from bitnet.values import Health, Request

BLOCK = 32


class RecordingScheduler(Scheduler):
    """Remembers which sequences each step computed how many tokens of, and who had to make way."""

    steps: list[list[tuple[Sequence, int]]]
    preempted: list[Sequence]
    when_preempted: Callable[[Any], None]

    def _compute(self, parts: Any) -> None:
        self.steps.append([(part.sequence, part.n_tokens) for part in parts])
        super()._compute(parts)

    def _preempt(self, sequence: Sequence) -> None:
        self.preempted.append(sequence)
        super()._preempt(sequence)
        self.when_preempted(sequence)


class Serving:
    """Asks are made of token ids, and go on to their max_tokens unless they are told otherwise."""

    def __init__(
        self,
        path: Path,
        *,
        n_blocks: int,
        n_batch: int = 4,
        max_batch_tokens: int = 512,
        kv_type: str = "f16",
        speculate: bool = False,
    ) -> None:
        self._speculate = speculate
        file = _native.ModelFile(str(path))
        model = _native.Model(file, use_mmap=False)
        self.tokenizer = Tokenizer.from_metadata(file.metadata)
        self.vocab_size = model.vocab_size
        self.n_ctx = min(n_blocks * BLOCK, model.context_length)
        # One thread: these models are small, and threads that wait for each other suffer on a busy machine.
        runner = _native.Runner(
            model, n_blocks=n_blocks, max_batch_tokens=max_batch_tokens, n_threads=1, kv_type=kv_type
        )
        self.scheduler = RecordingScheduler(runner, n_batch=n_batch, max_waiting=10_000)
        self.scheduler.steps, self.scheduler.preempted = [], []
        self.scheduler.when_preempted = lambda sequence: None

    def sequence(self, token_ids: TokenIds[int], salt: str = "", **options: Any) -> GenerationSequence:
        request = Request.build(
            prompt=token_ids, options={"ignore_eos": True, "temperature": 0, "cache_salt": salt, **options}
        )
        return GenerationSequence(token_ids, request, self.tokenizer, self.n_ctx, speculate=self._speculate)

    def start(self, sequence: GenerationSequence) -> Generation:
        self.scheduler.submit(sequence)
        return Generation(sequence.outlet, self.scheduler.notice_cancel)

    def ask(self, token_ids: TokenIds[int], salt: str = "", **options: Any) -> Generation:
        return self.start(self.sequence(token_ids, salt, **options))

    def ask_together(self, sequences: list[GenerationSequence]) -> list[Generation]:
        """All of them are waiting when the next step begins."""
        with self.scheduler._changed:
            return [self.start(sequence) for sequence in sequences]

    @property
    def health(self) -> Health:
        return self.scheduler.health()

    def wait_until_idle(self) -> Health:
        """Nothing runs or waits, and all blocks are back."""
        deadline = time.monotonic() + 10
        while (health := self.health).running or health.waiting or health.free_blocks < health.n_blocks:
            assert time.monotonic() < deadline, health
            time.sleep(0.001)
        return health

    def close(self) -> None:
        self.scheduler.close()

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def some_ids(seed: int, count: int, vocab_size: int = 256) -> list[int]:
    """Token ids that look like nothing else; the same seed gives the same ones."""
    state, ids = seed * 2654435761 + 12345, []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        ids.append((state >> 33) % vocab_size)
    return ids
