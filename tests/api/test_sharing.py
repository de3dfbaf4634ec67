"""Models are shared: objects for one file and the same options load it once, and free it together."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bitnet
from bitnet import BitNet, EngineClosedError, ModelFileError, ModelNotFoundError, ValidationError
from bitnet.engines import registry
from bitnet.testing import FakeEngine

Wait = Callable[[Callable[[], bool]], None]


@pytest.fixture
def path(random_path: Path, tmp_path: Path) -> Iterator[Path]:
    """A file that no other test has loaded, and nobody uses afterwards."""
    yield Path(shutil.copy(random_path, tmp_path / "shared.gguf"))
    gc.collect()


def generate(model: BitNet) -> tuple[int, ...]:
    return model.generate("Hello", max_tokens=5, temperature=0, ignore_eos=True).token_ids


def is_loaded(path: Path) -> bool:
    """Whether the registry has this file."""
    return any(key[1] == os.path.realpath(path) for key in registry._entries)


def n_threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def test_two_objects_share_one_engine(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link.gguf").symlink_to(path)
    with BitNet(path) as first, BitNet(str(path)) as second, BitNet(tmp_path / "link.gguf") as linked:
        assert first._engine is second._engine is linked._engine
        with BitNet(path, n_ctx=64) as other:
            assert other._engine is not first._engine
            assert generate(other) == generate(first) == generate(second)
    assert not is_loaded(path)


def test_a_changed_file_is_another_model(path: Path) -> None:
    with BitNet(path) as first:
        os.utime(path, ns=(1, 1))
        with BitNet(path) as second:
            assert first._engine is not second._engine


def test_the_last_close_frees(path: Path) -> None:
    first, second = BitNet(path), BitNet(path)
    engine = first._engine
    first.close()
    first.close()
    with pytest.raises(EngineClosedError):
        first.generate("Hello")
    with pytest.raises(EngineClosedError):
        first.embed(["Hello"])
    with pytest.raises(EngineClosedError):
        first.logits([1])
    assert repr(first).endswith("closed)")
    assert not engine.health().closed
    assert not repr(second).endswith("closed)")
    generate(second)
    second.close()
    assert engine.health().closed
    assert not is_loaded(path)


def test_close_ends_own_generations_only(path: Path, eventually: Wait) -> None:
    first, second = BitNet(path), BitNet(path)
    mine, other = (
        model.stream("Hello", max_tokens=400, temperature=0, ignore_eos=True) for model in (first, second)
    )
    next(mine)
    next(other)
    steps = first._engine.health().n_steps
    first.close()
    with pytest.raises(EngineClosedError, match="before the answer was complete"):
        mine.result()
    eventually(lambda: first._engine.health().running <= 1)
    assert first._engine.health().n_steps >= steps
    assert len(other.result().token_ids) == 400
    second.close()


def test_garbage_collection_frees(path: Path) -> None:
    first, second = BitNet(path), BitNet(path)
    engine = first._engine
    generation = first.stream("Hello", max_tokens=30, temperature=0, ignore_eos=True)
    del first
    gc.collect()
    del second
    gc.collect()
    assert len(generation.result().token_ids) == 30  # it holds the model
    assert not engine.health().closed
    del generation
    gc.collect()
    assert engine.health().closed
    assert not is_loaded(path)


def test_a_lost_lease_never_waits_for_the_lock(path: Path) -> None:
    """A garbage collection may happen in a thread that holds the registry's lock."""
    lost = BitNet(path)
    with registry._locked():
        del lost
        gc.collect()
        assert is_loaded(path)
    assert not is_loaded(path)


def test_threads_that_load_at_once_load_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    load = bitnet.engines.native.NativeEngine.__init__

    def counted(self: object, *args: object, **options: object) -> None:
        loads.append(threading.get_ident())
        time.sleep(0.05)
        load(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bitnet.engines.native.NativeEngine, "__init__", counted)
    barrier = threading.Barrier(8)
    loaded: list[BitNet] = []

    def construct() -> None:
        barrier.wait()
        loaded.append(BitNet(path))
        generate(loaded[-1])

    threads = [threading.Thread(target=construct) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len({id(model._engine) for model in loaded}) == 1
    for model in loaded:
        assert is_loaded(path)
        model.close()
    assert not is_loaded(path)


def test_threads_that_open_and_close_at_random(path: Path) -> None:
    expected = None
    with BitNet(path) as model:
        expected = generate(model)
    answers = []

    def work(seed: int) -> None:
        for i in range(12):
            model = BitNet(path, lazy=i % 2 == 0, keep_alive=0.001 * (i % 3))
            answers.append(generate(model))
            if (i + seed) % 3:
                model.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) == {expected}
    assert len(answers) == 48
    gc.collect()
    time.sleep(0.05)
    assert not is_loaded(path)


def test_keep_alive(path: Path, eventually: Wait) -> None:
    timers = n_threads("bitnet-keep-alive")
    model = BitNet(path, keep_alive=0.3)
    engine = model._engine
    model.close()
    with pytest.raises(EngineClosedError):
        model.generate("Hello")
    assert is_loaded(path)
    again = BitNet(path)
    assert again._engine is engine
    time.sleep(0.35)
    assert not engine.health().closed  # in use again
    again.close()  # and what was promised first is over
    assert engine.health().closed
    BitNet(path, keep_alive=0.1).close()
    assert is_loaded(path)
    eventually(lambda: not is_loaded(path))
    eventually(lambda: n_threads("bitnet-keep-alive") == timers)
    with pytest.raises(ValidationError, match="keep_alive"):
        BitNet(path, keep_alive="5m")  # type: ignore[arg-type]


def test_kept_until_unloaded(path: Path) -> None:
    BitNet(path, keep_alive=-1).close()
    with BitNet(path) as model:
        engine = model._engine
    assert is_loaded(path)
    assert not engine.health().closed
    bitnet.unload_all()
    assert engine.health().closed
    assert not is_loaded(path)


def test_unload_all_and_use_again(path: Path) -> None:
    # In a process of its own: it would unload the models of the other tests.
    code = f"""
import bitnet, threading
model, other = bitnet.BitNet({str(path)!r}), bitnet.BitNet({str(path)!r}, n_ctx=64)
generation = model.stream("Hello", max_tokens=None, ignore_eos=True)
next(generation)
expected = model.generate("Hello", max_tokens=5, temperature=0).token_ids
before = model._engine
bitnet.unload_all()
assert before.health().closed and other._engine.health().closed
assert threading.active_count() == 1, threading.enumerate()
assert model.info.n_layers == 2 and model.tokenize("Hello")
assert model._engine is before
try:
    generation.result()
except bitnet.EngineClosedError:
    pass
assert model.generate("Hello", max_tokens=5, temperature=0).token_ids == expected
assert model._engine is not before and other._engine.health().closed
model.close()
assert model._engine.health().closed
print("fine")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.stderr) == ("fine\n", "")


def test_lazy(path: Path, tmp_path: Path) -> None:
    model = BitNet(path, lazy=True)
    assert model._lease.loaded is None
    assert repr(model) == f"BitNet({str(path)!r}, not loaded)"
    assert len(generate(model)) == 5
    model.close()
    closed = BitNet(path, lazy=True)
    closed.close()
    assert repr(closed) == f"BitNet({str(path)!r}, closed)"
    with pytest.raises(EngineClosedError):
        closed.load()
    with pytest.raises(ModelNotFoundError):
        BitNet(tmp_path / "nowhere.gguf", lazy=True)
    with pytest.raises(ValidationError, match="lazy"):
        BitNet(path, lazy=1)  # type: ignore[arg-type]

    async def ask() -> int:
        async with BitNet(path, lazy=True) as loaded:
            return len((await loaded.agenerate("Hello", max_tokens=3, ignore_eos=True)).token_ids)

    assert asyncio.run(ask()) == 3
    assert not is_loaded(path)


def test_an_error_of_loading_is_raised_each_time_and_leaves_nothing(tmp_path: Path, path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF, or so it says")
    for _ in range(2):
        with pytest.raises(ModelFileError):
            BitNet(broken)
    assert not is_loaded(broken)
    lazy = BitNet(broken, lazy=True)
    for _ in range(2):
        with pytest.raises(ModelFileError):
            lazy.generate("Hello")
    shutil.copy(path, broken)  # mended
    assert len(generate(lazy)) == 5
    lazy.close()
    with pytest.raises(ValidationError, match="n_ctx"):
        BitNet(path, n_ctx=100_000)
    assert not is_loaded(path)


def test_an_engine_that_stopped_is_loaded_again(path: Path, eventually: Wait) -> None:
    with BitNet(path) as model:
        before = model._engine
        before.close()  # as a defect of the scheduler would
        with BitNet(path) as other:
            assert len(generate(other)) == 5
            assert len(generate(model)) == 5
            assert model._engine is other._engine is not before
    assert not is_loaded(path)


def test_pickle_and_copy(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with BitNet("shared.gguf", n_ctx=128, n_batch=3, keep_alive=0.0) as model:
        expected = generate(model)
        data = pickle.dumps(model)
        monkeypatch.chdir("/")
        for twin in (pickle.loads(data), copy.copy(model), copy.deepcopy({"model": model})["model"]):
            assert twin is not model
            assert generate(twin) == expected
            assert twin._engine is model._engine
            assert twin.info == model.info
            twin.close()
            with pytest.raises(EngineClosedError):
                twin.generate("Hello")
        assert generate(model) == expected
        twin = copy.copy(model)
    # A copy of a closed model, or one that outlives it, is not closed.
    assert generate(twin) == generate(copy.deepcopy(model)) == generate(pickle.loads(data)) == expected
    twin.close()
    gc.collect()
    assert not is_loaded(path)
    path.unlink()
    with pytest.raises(ModelNotFoundError, match=r"shared\.gguf"):
        pickle.loads(data)


def test_the_bundled_model_is_pickled_by_name() -> None:
    data = pickle.dumps(BitNet(lazy=True))
    assert b"gguf" not in data
    with pickle.loads(data) as model:
        assert model.info.architecture == "bitnet-b1.58"


class Subclass(BitNet):
    pass


def test_subclasses_stay_what_they_are(path: Path) -> None:
    model = Subclass(path, lazy=True)
    assert type(pickle.loads(pickle.dumps(model))) is Subclass
    assert type(copy.deepcopy(model)) is Subclass
    assert type(Subclass.from_engine(FakeEngine())) is Subclass


def test_an_engine_of_ones_own_is_closed_with_the_last_copy() -> None:
    engine = FakeEngine("Hello")
    model = BitNet.from_engine(engine)
    twin = copy.deepcopy(model)
    assert twin._engine is engine
    model.close()
    assert twin.generate("Hi").text == "Hello"
    twin.close()
    assert engine.health().closed
    for closed in (model, twin, copy.copy(model)):
        with pytest.raises(EngineClosedError):
            closed.generate("Hi")
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(model)


LEAVE = """
import sys, threading, time, bitnet
path, how = sys.argv[1:]
keep = bitnet.BitNet(path, keep_alive=100)
keep.generate("Hello", max_tokens=1)
if how == "timer":
    keep.close()
elif how == "thread":  # goes on to ask while everything is closed
    def ask():
        while True:
            try:
                keep.generate("Hello", max_tokens=2)
            except bitnet.EngineClosedError:
                pass
    threading.Thread(target=ask, daemon=True).start()
    time.sleep(0.1)
elif how == "cycle":
    cycle = [keep]; cycle.append(cycle); del keep
print("leaving")
"""


@pytest.mark.parametrize("how", ["open", "timer", "thread", "cycle"])
def test_the_interpreter_may_end_at_any_time(path: Path, how: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LEAVE, str(path), how], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "leaving\n", "")
