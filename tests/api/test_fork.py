"""After os.fork() a child process uses the models of its parent, with threads of its own, and never hangs."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet import BitNet, EngineClosedError

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
    # Python 3.12 and newer warn about what is tested here: a fork beside threads.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def in_child(work: Callable[[], None]) -> None:
    """Run `work` in a forked process, which must succeed within 30 seconds."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + 30
    while (waited := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGABRT)  # pytest's faulthandler shows where it hangs
            os.waitpid(pid, 0)
            pytest.fail("the child process hangs")
        time.sleep(0.005)
    assert waited[1] == 0


def generate(model: BitNet) -> tuple[int, ...]:
    return model.generate("Hello", max_tokens=8, temperature=0, ignore_eos=True).token_ids


def test_a_child_uses_the_model_of_its_parent(random_path: Path) -> None:
    with BitNet(random_path, n_ctx=256) as model:
        expected = generate(model)
        logits = model.logits([1, 2, 3]).tobytes()
        vector = model.embed(["Hello"]).tobytes()

        def work() -> None:
            assert generate(model) == expected
            assert model.logits([1, 2, 3]).tobytes() == logits
            assert model.embed(["Hello"]).tobytes() == vector
            assert asyncio.run(model.agenerate("Hello", max_tokens=3, ignore_eos=True)).token_ids
            assert model.info.n_ctx == 256
            with BitNet(random_path, n_ctx=256) as again:
                assert again._engine is model._engine
                assert generate(again) == expected
            with pickle.loads(pickle.dumps(model)) as copy:
                assert generate(copy) == expected
            with BitNet(random_path, n_ctx=128) as other:
                assert generate(other) == expected
            model.close()
            with pytest.raises(EngineClosedError):
                generate(model)
            with BitNet(random_path, n_ctx=256) as fresh:
                assert generate(fresh) == expected
            assert not [thread for thread in threading.enumerate() if thread.name.startswith("bitnet")]

        for _ in range(3):
            in_child(work)
        assert generate(model) == expected
        in_child(lambda: in_child(work))  # a grandchild


def test_a_fork_in_the_middle_of_everything() -> None:
    """The child has none of the parent's threads, but whatever they were about to do.

    The bundled model, because it loads without a warning: a lock of pytest's log does not survive a fork.
    """
    with BitNet(n_batch=4) as model:
        expected = generate(model)
        stop = threading.Event()

        def load(seed: int) -> None:
            while not stop.is_set():
                model.generate("Hello", max_tokens=3, seed=seed)
                BitNet(n_ctx=64 + seed).close()

        threads = [threading.Thread(target=load, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()

        def work() -> None:
            for generation in generations:
                with pytest.raises(EngineClosedError, match="parent"):
                    generation.result()
                with pytest.raises(EngineClosedError, match="parent"):
                    list(generation)
                generation.cancel()
            assert generate(model) == expected
            with BitNet(n_ctx=65) as other:
                assert generate(other) == expected

        try:
            for _ in range(15):
                generations = [
                    model.stream("Hello", max_tokens=400, temperature=0, ignore_eos=True) for _ in range(2)
                ]
                in_child(work)
                for generation in generations:
                    assert not generation.done or len(generation.result().token_ids) == 400
                    generation.cancel()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert generate(model) == expected


def test_finished_generations_stay_finished(random_path: Path) -> None:
    with BitNet(random_path) as model:
        generation = model.stream("Hello", max_tokens=5, ignore_eos=True)
        reply = generation.result()

        def work() -> None:
            assert generation.result() == reply
            assert sum(len(delta.token_ids) for delta in generation) == 5

        in_child(work)


def test_closed_and_kept_models_in_a_child(random_path: Path) -> None:
    closed = BitNet(random_path, n_ctx=96)
    generate(closed)
    closed.close()
    kept = BitNet(random_path, n_ctx=97, keep_alive=0.5)
    expected = generate(kept)
    kept.close()
    lazy = BitNet(random_path, n_ctx=98, lazy=True)

    def work() -> None:
        for model in (closed, kept):
            with pytest.raises(EngineClosedError):
                generate(model)
            assert "closed" in repr(model)
            model.close()
            assert model._engine.health().closed
        with BitNet(random_path, n_ctx=97) as again:
            assert generate(again) == expected
        assert generate(lazy) == expected

    in_child(work)


LEAVE_AS_A_CHILD = """
import os, sys, threading, bitnet
model = bitnet.BitNet(sys.argv[1])
model.generate("Hello", max_tokens=1)
generations = [model.stream("Hello", max_tokens=None, ignore_eos=True) for _ in range(3)]
next(generations[0])
pid = os.fork()
if pid == 0:
    if sys.argv[2] == "used":
        generations.append(model.stream("Hello", max_tokens=None, ignore_eos=True))
        next(generations[-1])
    sys.exit(7)  # with all that the interpreter does at its end
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize("how", ["used", "unused"])
def test_a_child_may_end_like_any_program(slow_path: Path, how: str) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LEAVE_AS_A_CHILD, str(slow_path), how],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "7\n", "")


def ask(model: BitNet) -> tuple[int, ...]:
    return generate(model)


INHERITED: list[BitNet] = []


def ask_inherited(prompt: str) -> tuple[int, ...]:
    return INHERITED[0].generate(prompt, max_tokens=8, temperature=0, ignore_eos=True).token_ids


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(random_path: Path, method: str) -> None:
    with BitNet(random_path, n_ctx=128) as model:
        expected = generate(model)
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(ask, [model] * 3) == [expected] * 3


def test_multiprocessing_with_an_inherited_model(random_path: Path) -> None:
    with BitNet(random_path, n_ctx=128) as model:
        expected = generate(model)
        INHERITED.append(model)
        try:
            with multiprocessing.get_context("fork").Pool(2) as pool:
                assert pool.map(ask_inherited, ["Hello"] * 4) == [expected] * 4
                pool.close()
                pool.join()
        finally:
            INHERITED.clear()
        start = time.monotonic()
        assert generate(model) == expected
        assert time.monotonic() - start < 10
