"""Loading a model: from where, how fast, with which options, and what is known of it afterwards."""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet import (
    BitNet,
    ChatTemplateError,
    EngineClosedError,
    ModelFileError,
    ModelNotFoundError,
    ValidationError,
    _native,
)
from bitnet.testing import FakeEngine


def n_scheduler_threads() -> int:
    return sum(thread.name == "bitnet-scheduler" for thread in threading.enumerate())


def test_the_bundled_model_loads_fast() -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        BitNet().close()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.2, times


def test_n_ctx_is_known_before_the_model_is_loaded(random_path: Path, tmp_path: Path) -> None:
    for n_ctx in (None, 0, 64):
        with BitNet(random_path, n_ctx=n_ctx, lazy=True) as model:
            before = model.n_ctx
            assert "not loaded" in repr(model)
            assert before == model.info.n_ctx == model.n_ctx
    with (
        BitNet(random_path, n_ctx=10**6, lazy=True) as model,
        pytest.raises(ValidationError, match="n_ctx=1000000"),
    ):
        model.n_ctx  # noqa: B018  # raises
    (tmp_path / "no-model.gguf").write_bytes(b"GGUF")
    with BitNet(tmp_path / "no-model.gguf", lazy=True) as model, pytest.raises(ModelFileError):
        model.n_ctx  # noqa: B018  # raises
    with BitNet.from_engine(FakeEngine(n_ctx=77)) as model:
        assert model.n_ctx == 77


def test_info(model: BitNet) -> None:
    info = model.info
    assert info.architecture == "bitnet-b1.58"
    assert info.activation == "relu2"
    assert info.tied_head
    assert info.n_batch == 4
    assert info.has_chat_template
    assert info.n_ctx == min(2048, info.context_length)
    assert info.vocab_size == model.logits([1]).shape[1]
    assert info.kernels == _native.cpu_kernels()[0]
    assert info.n_threads >= 1
    assert info.memory_bytes == info.ternary_bytes + info.head_bytes + info.kv_bytes
    # Two bits a weight, and f16 keys and values.
    per_position = 2 * 2 * info.n_layers * info.n_kv_heads * info.head_dim
    assert info.kv_bytes == info.n_batch * info.n_ctx * per_position
    assert info.ternary_bytes < info.n_parameters / 3
    assert Path(info.path).name == "bitnet-tiny.gguf"
    assert (info.repairs, info.warnings) == ((), ())
    with pytest.raises(AttributeError):
        info.n_ctx = 5  # type: ignore[misc]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def test_keys_and_values_in_8_bits(model: BitNet) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    with BitNet(n_batch=4, kv_type="q8_0") as small:
        assert (model.info.kv_type, small.info.kv_type) == ("f16", "q8_0")
        # For each 32 elements 32 bytes and a scale of 2, instead of 64.
        assert small.info.head_dim % 32 == 0
        assert small.info.kv_bytes == model.info.kv_bytes * 34 // 64
        assert "Paris" in small.chat(messages, temperature=0).text
        ids = model.tokenize("What is the opposite of hot? The opposite of hot is cold. " * 2)
        expected, found = log_softmax(model.logits(ids)), log_softmax(small.logits(ids))
        # The Kullback-Leibler divergence; 0.001 to 0.004 on such texts.
        assert 0 < (np.exp(expected) * (expected - found)).sum(axis=-1).mean() < 0.02
        copy = pickle.loads(pickle.dumps(small))
        assert copy.info.kv_type == "q8_0"
        copy.close()


def test_context(random_path: Path, slow_path: Path) -> None:
    def n_ctx(path: Path, **options: Any) -> int:
        with BitNet(path, **options) as loaded:
            return loaded.info.n_ctx

    assert n_ctx(random_path) == 512
    assert n_ctx(slow_path) == 2048
    assert n_ctx(slow_path, n_ctx=0) == 4096
    assert n_ctx(slow_path, n_ctx=33) == 33
    with pytest.raises(
        ValidationError, match="n_ctx=513 is more than the 512 this model was made for"
    ) as caught:
        BitNet(random_path, n_ctx=513)
    assert caught.value.field == "n_ctx"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_ctx", -1),
        ("n_ctx", "2048"),
        ("n_threads", -1),
        ("n_batch", 0),
        ("n_batch", 257),
        ("kv_type", "q4_0"),
        ("kv_type", None),
        ("use_mmap", 1),
        ("use_mlock", None),
        ("max_waiting", -1),
    ],
)
def test_bad_option_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field) as caught:
        BitNet(**{field: value})
    assert caught.value.field == field


def test_missing_model_is_an_error_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"no model file '.*nowhere.gguf'; give the path of a .gguf file"
    ):
        BitNet(tmp_path / "nowhere.gguf")
    with pytest.raises(ModelNotFoundError, match=r"is a directory .it holds no .gguf file"):
        BitNet(tmp_path)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match=r"is a directory .it holds a.gguf"):
        BitNet(str(tmp_path))


def test_a_file_that_is_no_model_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("hello, this is not a model")
    with pytest.raises(ModelFileError, match=r"text\.gguf"):
        BitNet(path)


def test_thread_counts_do_not_change_the_answer(random_path: Path) -> None:
    answers = []
    for n_threads in (1, 2):
        with BitNet(random_path, n_threads=n_threads) as loaded:
            assert loaded.info.n_threads == n_threads
            answers.append(loaded.generate("Hello", max_tokens=20, seed=1).token_ids)
    assert answers[0] == answers[1]


def test_mapped_and_private_weights_give_the_same_answer(random_path: Path) -> None:
    answers = []
    for use_mmap in (True, False):
        with BitNet(random_path, use_mmap=use_mmap) as loaded:
            answers.append(loaded.logits([1, 2, 3]).tobytes())
    assert answers[0] == answers[1]


def test_repairs_are_told_once(random_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / random_path.name  # of which nothing was told in this process
    path.write_bytes(random_path.read_bytes())
    BitNet(path).close()
    caplog.clear()
    BitNet(path).close()
    assert caplog.messages == []
    path.touch()
    random_path = path
    with caplog.at_level(logging.WARNING, "bitnet"), BitNet(random_path) as loaded:
        loaded.chat([{"role": "user", "content": "Hi"}], max_tokens=1)
        assert len(loaded.info.repairs) >= 1
        assert any("chat template" in repair for repair in loaded.info.repairs)
    assert [record.getMessage() for record in caplog.records] == [
        f"{random_path.name}: {repair}" for repair in loaded.info.repairs
    ]
    assert {record.name for record in caplog.records} == {"bitnet"}


def test_a_base_model_continues_text_but_does_not_chat(base_path: Path) -> None:
    with BitNet(base_path) as loaded:
        assert not loaded.info.has_chat_template
        assert len(loaded.generate("Hello", max_tokens=2, ignore_eos=True).token_ids) == 2
        with pytest.raises(ChatTemplateError, match="no chat template"):
            loaded.chat([{"role": "user", "content": "Hi"}])


def test_repr(random_path: Path) -> None:
    loaded = BitNet(random_path)
    assert repr(loaded) == f"BitNet({str(random_path)!r}, 1.2 M parameters, n_ctx=512)"
    loaded.close()
    assert repr(loaded).endswith("n_ctx=512, closed)")


def test_close_may_be_repeated_and_is_final(random_path: Path) -> None:
    loaded = BitNet(random_path)
    loaded.generate("Hello", max_tokens=1)
    for _ in range(3):
        loaded.close()
    with pytest.raises(EngineClosedError):
        loaded.generate("Hello")
    with pytest.raises(EngineClosedError):
        loaded.logits([1])
    with pytest.raises(EngineClosedError):
        asyncio.run(loaded.agenerate("Hello"))
    assert loaded.info.vocab_size == 288


def test_context_managers_close(random_path: Path) -> None:
    with BitNet(random_path) as first:
        first.generate("Hello", max_tokens=1)

    async def use() -> BitNet:
        async with BitNet(random_path) as loaded:
            await loaded.agenerate("Hello", max_tokens=1)
        return loaded

    for loaded in (first, asyncio.run(use())):
        with pytest.raises(EngineClosedError):
            loaded.generate("Hello")


def test_the_thread_starts_with_the_first_request_and_ends_with_the_model(
    random_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    before = n_scheduler_threads()
    loaded = BitNet(random_path)
    assert n_scheduler_threads() == before
    loaded.generate("Hello", max_tokens=1)
    assert n_scheduler_threads() == before + 1
    loaded.close()
    assert n_scheduler_threads() == before
    dropped = BitNet(random_path)
    dropped.generate("Hello", max_tokens=1)
    assert n_scheduler_threads() == before + 1
    del dropped
    gc.collect()
    eventually(lambda: n_scheduler_threads() == before)


def test_a_stream_keeps_its_model_alive(random_path: Path) -> None:
    generation = BitNet(random_path).stream("Hello", max_tokens=50, temperature=0, ignore_eos=True)
    gc.collect()
    assert sum(len(delta.token_ids) for delta in generation) == 50
