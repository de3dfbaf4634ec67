"""Texts as vectors: the same bits alone and in a crowd, from the model's own hidden states, or an error."""

from __future__ import annotations

import asyncio
import math
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet import BitNet, ContextOverflowError, EmbeddingRequest, ModelFileError, ValidationError, _native
from bitnet.runtime.embedding import POOLING_TYPES, EmbeddingSequence
from reference.model_factory import ModelSpec, make_model, random_model, write_gguf

Wait = Callable[[Callable[[], bool]], None]

TEXTS = [
    "The cat sat on the mat.",
    "x",
    "Paris is the capital of France. " * 12,
    "A dog lay on the rug.",
    "ünïcödé 日本語 🙂",
    "The cat sat on the mat.",
]


@pytest.fixture(scope="module")
def hidden_states(random_path: Path) -> Callable[[list[int]], np.ndarray[Any, np.dtype[np.float32]]]:
    """[n_tokens, hidden_size] after the final norm, straight from the native runner."""
    model = _native.Model(_native.ModelFile(str(random_path)))
    runner = _native.Runner(model, n_blocks=16)

    def compute(ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        runner.forward(np.array(ids, np.int32), [list(range(16))], [0], [len(ids)], list(range(len(ids))))
        return runner.hidden()

    return compute


def is_idle(model: BitNet) -> bool:
    health = model._engine.health()
    return health.running == health.waiting == 0 and health.free_blocks == health.n_blocks


def test_the_vectors_are_the_pooled_hidden_states(random_path: Path, hidden_states: Any) -> None:
    with BitNet(random_path) as model:
        for text in TEXTS:
            states = hidden_states(model.tokenize(text)).astype(np.float64)
            mean, last = states.mean(axis=0), states[-1]
            np.testing.assert_allclose(model.embed([text], normalize=False)[0], mean, rtol=1e-6, atol=1e-6)
            np.testing.assert_array_equal(
                model.embed([text], pooling="last", normalize=False)[0], last.astype(np.float32)
            )
            unit = mean / np.linalg.norm(mean)
            np.testing.assert_allclose(model.embed([text])[0], unit, rtol=1e-6, atol=1e-7)


def test_shape_and_length(model: BitNet) -> None:
    vectors = model.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), model.info.hidden_size)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.array_equal(vectors[0], vectors[5])
    assert not np.array_equal(vectors[0], vectors[3])
    assert np.array_equal(model.embed(TEXTS[0]), vectors[:1])  # one text
    assert np.array_equal(model.embed(iter(TEXTS)), vectors)
    assert np.array_equal(model.embed(TEXTS, kind="query"), model.embed(TEXTS, kind="document"))
    assert model.embed([]).shape == (0, model.info.hidden_size)
    assert not np.array_equal(model.embed(TEXTS, pooling="last"), vectors)
    assert is_idle(model)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_alone_and_in_a_crowd(model: BitNet, pooling: Any) -> None:
    texts = [f"{'word ' * (i * 7 % 50)}number {i}" for i in range(40)]
    alone = np.concatenate([model.embed([text], pooling=pooling) for text in texts])
    streams = [model.stream(f"Tell me {i}", max_tokens=60, seed=i, ignore_eos=True) for i in range(3)]
    steps = model._engine.health().n_steps
    together = model.embed(texts, pooling=pooling)
    assert alone.tobytes() == together.tobytes()
    for stream in streams:
        stream.cancel()
    assert model._engine.health().n_steps > steps
    assert model.embed(texts[::-1], pooling=pooling)[::-1].tobytes() == alone.tobytes()


def test_several_texts_are_computed_in_one_step(random_path: Path) -> None:
    with BitNet(random_path, n_batch=8) as model:
        model.embed(["warm up"])
        before = model._engine.health().n_steps
        model.embed([f"text {i}" for i in range(64)])
        assert model._engine.health().n_steps - before <= 40


def test_more_texts_than_the_queue_holds(random_path: Path) -> None:
    texts = [f"text {i}" for i in range(50)]
    with BitNet(random_path, max_waiting=0) as model, BitNet(random_path) as roomy:
        assert np.array_equal(model.embed(texts), roomy.embed(texts))


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pieces_and_repetitions_do_not_change_the_bits(pooling: Any) -> None:
    """However the scheduler cuts a text, and also if it computes a part of it again."""
    rng = np.random.default_rng(1)
    states = rng.normal(size=(60, 32)).astype(np.float32) * np.float32(10) ** rng.integers(-6, 6, (60, 1))

    class Rows:
        def __init__(self, begin: int, end: int, padding: int) -> None:
            self.rows = np.vstack([np.full((padding, 32), 7, np.float32), states[begin:end]])

        def hidden(self) -> Any:
            return self.rows

    def compute(cuts: list[int], restart_at: int | None = None) -> bytes:
        sequence = EmbeddingSequence(list(range(60)), 32, pooling=pooling, normalize=True)
        for count in cuts:
            if sequence.n_computed == restart_at:
                sequence.n_computed, restart_at = 0, None
            outputs = sequence.outputs(count)
            begin = sequence.n_computed + outputs.start if len(outputs) else 0
            runner: Any = Rows(begin, begin + len(outputs), padding=2)
            done = sequence.advance(runner, 2, count)
        assert done
        sequence.finish()
        return sequence.outlet.result().tobytes()

    whole = compute([60])
    assert compute([1] * 60) == compute([7, 13, 1, 39]) == compute([59, 1]) == whole
    assert compute([20, 10, 17, 13, 30], restart_at=30) == whole


def test_states_that_were_never_seen_are_an_error() -> None:
    class Nothing:
        def hidden(self) -> Any:
            return np.zeros((10, 8), np.float32)

    sequence = EmbeddingSequence(list(range(20)), 8, pooling="mean", normalize=True)
    sequence.n_computed = 10
    runner: Any = Nothing()
    with pytest.raises(RuntimeError, match="never seen"):
        sequence.advance(runner, 0, 10)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_vector_that_is_none_is_an_error(value: float) -> None:
    class Bad:
        def hidden(self) -> Any:
            return np.full((1, 8), value, np.float32)

    runner: Any = Bad()
    for pooling in ("mean", "last"):
        sequence = EmbeddingSequence([1], 8, pooling=pooling, normalize=True)  # type: ignore[arg-type]
        with pytest.raises(ModelFileError, match="damaged"):
            sequence.advance(runner, 0, 1)


def test_a_damaged_model_gives_an_error(tmp_path: Path) -> None:
    damaged = random_model(ModelSpec())
    damaged.norms["output_norm"][:] = 3e38
    with BitNet(write_gguf(damaged, tmp_path / "damaged.gguf")) as model:
        for pooling in ("mean", "last", None):
            with pytest.raises(ModelFileError, match="not finite"):
                model.embed(["Hello"], pooling=pooling)
        assert is_idle(model)


def test_bad_texts(model: BitNet) -> None:
    bad: list[tuple[Any, str]] = [
        ([""], r"texts\[0\] is empty"),
        (["fine", ""], r"texts\[1\] is empty"),
        ("", r"texts\[0\] is empty"),
        (["fine", 3], r"texts\[1\] must be a string"),
        (["fine", None], r"texts\[1\] must be a string"),
        (["\ud800"], r"texts\[0\] is not valid Unicode"),
        (b"bytes", "list of strings"),
        (5, "list of strings"),
        ({"a": 1}, "list of strings"),
    ]
    for texts, message in bad:
        with pytest.raises(ValidationError, match=message) as caught:
            model.embed(texts)
        assert caught.value.field == "texts"
    for option, value in (("kind", "passage"), ("pooling", "cls"), ("normalize", 1), ("kind", None)):
        with pytest.raises(ValidationError, match=option) as caught:
            model.embed(["fine"], **{option: value})
        assert caught.value.field == option
    assert is_idle(model)


def test_a_text_that_is_too_long_is_an_error_before_anything_is_computed(random_path: Path) -> None:
    with BitNet(random_path, n_ctx=64) as model:
        n_special = len(model.tokenize("x")) - 1
        fits, too_long = "x" * (64 - n_special), "x" * (65 - n_special)
        assert model.embed([fits]).shape == (1, 320)
        n_tokens = model._engine.health().n_tokens
        with pytest.raises(
            ContextOverflowError, match=r"texts\[1\] has 65 tokens; a context of 64"
        ) as caught:
            model.embed(["fine", too_long])
        assert (caught.value.n_prompt_tokens, caught.value.n_ctx) == (65, 64)
        assert model._engine.health().n_tokens == n_tokens


def test_the_declared_pooling(
    random_path: Path, models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reference import model_factory

    assert POOLING_TYPES == {0: "mean", 1: "mean", 3: "last"}
    add_metadata = model_factory._add_metadata
    for declared, pooling in ((1, "mean"), (3, "last"), (2, None)):

        def declare(writer: Any, spec: Any, declared: int = declared) -> None:
            add_metadata(writer, spec)
            writer.add_metadata(f"{spec.architecture}.pooling_type", declared, "u32")

        monkeypatch.setattr(model_factory, "_add_metadata", declare)
        path = make_model(ModelSpec(seed=100 + declared), models_folder)
        with BitNet(path) as model:
            assert model.info.pooling == pooling
            if pooling is None:
                with pytest.raises(ValidationError, match='choose pooling="mean"'):
                    model.embed(TEXTS)
            else:
                other: Any = "mean" if pooling == "last" else "last"
                assert np.array_equal(model.embed(TEXTS), model.embed(TEXTS, pooling=pooling))  # type: ignore[arg-type]
                assert not np.array_equal(model.embed(TEXTS), model.embed(TEXTS, pooling=other))
    with BitNet(random_path) as plain:
        assert plain.info.pooling == "mean"


def test_async(model: BitNet) -> None:
    expected = model.embed(TEXTS)

    async def together() -> None:
        results = await asyncio.gather(*(model.aembed(TEXTS) for _ in range(5)))
        assert all(np.array_equal(result, expected) for result in results)
        assert np.array_equal(await model.aembed(TEXTS[0], pooling="mean"), expected[:1])
        assert (await model.aembed([])).shape == (0, model.info.hidden_size)
        with pytest.raises(ValidationError):
            await model.aembed([""])
        with pytest.raises(ContextOverflowError):
            await model.aembed(["x " * 5000])

    for _ in range(2):
        asyncio.run(together())


def test_many_threads_embed_at_once(model: BitNet) -> None:
    expected = model.embed(TEXTS)
    results = []
    threads = [threading.Thread(target=lambda: results.append(model.embed(TEXTS))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(np.array_equal(result, expected) for result in results)


def test_cancelling_the_task_stops_the_computation(slow_path: Path, eventually: Wait) -> None:
    texts = ["word " * 300] * 40
    with BitNet(slow_path) as slow:

        async def give_up() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(slow.aembed(texts), 0.3)

        asyncio.run(give_up())
        eventually(lambda: is_idle(slow))
        n_tokens = slow._engine.health().n_tokens
        time.sleep(0.05)
        assert slow._engine.health().n_tokens == n_tokens < len(slow.tokenize(texts[0])) * len(texts) / 2


def test_requests_are_plain_values() -> None:
    request = EmbeddingRequest(texts=("a", "b"), kind="query", pooling="last", normalize=False)
    assert pickle.loads(pickle.dumps(request)) == request
    assert hash(request) == hash(
        EmbeddingRequest(texts=("a", "b"), kind="query", pooling="last", normalize=False)
    )
    with pytest.raises(AttributeError):
        request.kind = "document"  # type: ignore[misc]
