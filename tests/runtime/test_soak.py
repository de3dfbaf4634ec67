"""Several hundred requests of every kind at once, in few blocks: nothing is lost, nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import random
import sys
import threading
from pathlib import Path

import pytest

import bitnet
from bitnet import Generation, Reply, ValidationError
from bitnet.errors import ContextOverflowError
from bitnet.runtime.sequence import LogitsSequence
from serving import Serving, some_ids

BUNDLED = Path(bitnet.__file__).parent / "models" / "bundled" / "bitnet-tiny.gguf"
N_KINDS = 24


def prompt(kind: int) -> list[int]:
    """Some begin alike, for one, two or four blocks; some are longer than a step."""
    shared = some_ids(kind % 3, (40, 70, 128)[kind % 3])
    return shared + some_ids(100 + kind, 1 + kind * 37 % 200)


def ask(serving: Serving, kind: int) -> Generation:
    salt = "tenant" if kind % 8 == 7 else ""
    logprobs = {"logprobs": True, "top_logprobs": 2} if kind % 4 == 0 else {}
    return serving.ask(
        prompt(kind),
        salt,
        max_tokens=90 if kind % 6 == 0 else 1 + kind * 7 % 40,
        seed=kind,
        temperature=(0, 1.5)[kind % 2],
        **logprobs,
    )


class Client(threading.Thread):
    """One after the other, mostly impatient."""

    def __init__(self, serving: Serving, seed: int, expected: list[Reply], count: int) -> None:
        super().__init__(name=f"client {seed}")
        self.serving, self.expected, self.count = serving, expected, count
        self.draw = random.Random(seed)
        self.n_compared = 0
        self.problems: list[object] = []

    def run(self) -> None:
        for _ in range(self.count):
            try:
                self.request(self.draw.randrange(N_KINDS))
            except Exception as error:
                self.problems.append(error)

    def request(self, kind: int) -> None:
        action = self.draw.random()
        if action < 0.07:
            self.refused()
            return
        generation = ask(self.serving, kind)
        if action < 0.15:
            generation.cancel()
        elif action < 0.25:
            for _ in range(self.draw.randrange(4)):
                next(generation, None)
            generation.cancel()
        elif action < 0.35:
            with contextlib.suppress(TimeoutError):
                generation.result(timeout=self.draw.random() * 0.02)
        elif action < 0.4:
            next(generation, None)
            return  # dropped
        self.compare(generation.result(timeout=60), self.expected[kind])

    def refused(self) -> None:
        bad = LogitsSequence([*some_ids(1, 50), 10**6], self.serving.vocab_size)
        long = LogitsSequence([1] * (self.serving.n_ctx + 1), self.serving.vocab_size)
        for sequence, error in ((bad, ValidationError), (long, ContextOverflowError)):
            self.serving.scheduler.submit(sequence)
            with pytest.raises(error):
                sequence.outlet.result(60)

    def compare(self, reply: Reply, expect: Reply) -> None:
        n = len(reply.token_ids)
        complete = reply.finish_reason == expect.finish_reason and reply.text == expect.text
        if reply.finish_reason != "cancelled" and not complete:
            self.problems.append((reply, expect))
        if reply.token_ids != expect.token_ids[:n]:
            self.problems.append((reply.token_ids, expect.token_ids))
        if expect.logprobs is not None and reply.logprobs != expect.logprobs[:n]:
            self.problems.append((reply.logprobs, expect.logprobs))
        self.n_compared += 1


def test_hundreds_of_requests_of_every_kind() -> None:
    n_threads = threading.active_count()
    with Serving(BUNDLED, n_blocks=400) as roomy:
        expected = [ask(roomy, kind).result() for kind in range(N_KINDS)]
    with Serving(BUNDLED, n_blocks=14, max_batch_tokens=128) as serving:
        n_objects, n_preempted = [], 0
        for round_ in range(3):
            clients = [Client(serving, 10 * round_ + i, expected, 24) for i in range(8)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            assert [client.problems for client in clients if client.problems] == []
            assert sum(client.n_compared for client in clients) > 120
            health = serving.wait_until_idle()
            assert (health.free_blocks, health.n_blocks) == (14, 14)
            assert health.cached_blocks > 0
            n_preempted += len(serving.scheduler.preempted)
            serving.scheduler.steps.clear()
            serving.scheduler.preempted.clear()
            del clients, client
            gc.collect()
            n_objects.append(sys.getallocatedblocks())
        assert n_preempted > 0
        # Two hundred requests that each left a sequence behind would be thousands.
        assert n_objects[2] - n_objects[1] < 1000
    assert threading.active_count() == n_threads
