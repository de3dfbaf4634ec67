"""The engine mlx as users meet it: the CPU engine's answers, and what happens where it cannot compute."""

from __future__ import annotations

import itertools
import logging
import math
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet import BitNet, DeviceError, EngineClosedError, ValidationError
from bitnet.engines import mlx, selection
from reference.cases import CASES
from reference.model_factory import ModelSpec, make_model

pytest.importorskip("mlx.core", reason="the package mlx is not installed")
from bitnet.engines import mlx_check, mlx_runner

pytestmark = [pytest.mark.mlx, pytest.mark.usefixtures("own_cache")]

PROMPTS = ["What is the capital of France?", "Once upon a time", "The cat sat on the mat. The cat sat"]
OPTIONS = {"temperature": 0, "max_tokens": 32, "ignore_eos": True}
# What mlx.load takes beside the path.
LOAD: dict[str, Any] = {
    "n_gpu_layers": -1,
    "main_gpu": 0,
    "low_vram": False,
    "n_ctx": 256,
    "n_threads": 1,
    "n_batch": 1,
    "kv_type": "f16",
    "use_mmap": True,
    "use_mlock": False,
    "kv_tokens": None,
    "max_waiting": 8,
}


@pytest.fixture(scope="module")
def on_mlx() -> Iterator[BitNet]:
    with BitNet(engine="mlx", n_batch=4) as loaded:
        yield loaded


def test_what_it_tells(on_mlx: BitNet, model: BitNet) -> None:
    assert (on_mlx.info.engine, model.info.engine) == ("mlx", "native")
    assert on_mlx.info.kernels in ("mlx cpu", "mlx gpu")
    assert on_mlx.info.kv_bytes == 2 * model.info.kv_bytes  # in f32


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_answers_are_those_of_the_cpu(on_mlx: BitNet, model: BitNet, prompt: str) -> None:
    """They may part only where rounding of an activation decides between nearly equal tokens."""
    one = on_mlx.generate(prompt, **OPTIONS).token_ids
    other = model.generate(prompt, **OPTIONS, logprobs=True, top_logprobs=3)
    assert other.logprobs
    pairs = enumerate(zip(one, other.token_ids, strict=True))
    parted = next((i for i, (mine, theirs) in pairs if mine != theirs), None)
    if parted is not None:
        assert parted > 8
        likely = {top.token_id: top.logprob for top in other.logprobs[parted].top}
        assert likely[one[parted]] > likely[other.token_ids[parted]] - 0.1


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_of_every_architecture(name: str, models_folder: Path) -> None:
    path = make_model(CASES[name], models_folder)
    with BitNet(path, engine="mlx", n_ctx=64) as one, BitNet(path, n_ctx=64) as other:
        ids = [1, 5, 9, 2, 40]
        assert one.info.architecture == CASES[name].architecture
        assert one.generate(ids, **OPTIONS).token_ids == other.generate(ids, **OPTIONS).token_ids


def test_sampling_with_a_seed_and_logprobs(on_mlx: BitNet, model: BitNet) -> None:
    """The same seed draws the same tokens, but where a draw falls between two tokens that rounding moves."""
    compared = different = 0
    gaps: list[float] = []  # between probabilities
    for seed, prompt in itertools.product(range(4), PROMPTS):
        how = {"temperature": 0.8, "seed": seed, "max_tokens": 16, "logprobs": True, "top_logprobs": 3}
        one, other = on_mlx.generate(prompt, **how), model.generate(prompt, **how)
        for mine, theirs in zip(one.logprobs or (), other.logprobs or (), strict=False):
            compared += 1
            for before, after in zip(mine.top, theirs.top, strict=True):
                gaps.append(abs(math.exp(before.logprob) - math.exp(after.logprob)))
            if math.exp(theirs.top[0].logprob) - math.exp(theirs.top[1].logprob) > 0.1:
                assert mine.top[0].token_id == theirs.top[0].token_id
            if mine.token_id != theirs.token_id:  # what follows is another text
                different += 1
                break
            gaps.append(abs(math.exp(mine.logprob) - math.exp(theirs.logprob)))
    assert compared > 70
    # One activation that is rounded the other way may move a likely token by some percent.
    assert max(gaps) < 0.1
    assert sum(gaps) / len(gaps) < 0.01
    assert different <= compared / 8


def test_guesses_change_nothing() -> None:
    prompt = "one two three four one two three four one two three four one two"
    with BitNet(engine="mlx", speculate=True) as guessing, BitNet(engine="mlx", speculate=False) as plain:
        options = {
            "response_format": {"type": "regex", "pattern": "( three four one two){4}"},
            "temperature": 0,
            "max_tokens": 64,
        }
        reply = guessing.generate(prompt, **options)
        assert reply.token_ids == plain.generate(prompt, **options).token_ids
        assert reply.timings is not None
        assert reply.timings.accepted_tokens > 0


def test_answers_are_the_same_beside_others(on_mlx: BitNet) -> None:
    alone = [on_mlx.generate(prompt, **OPTIONS).token_ids for prompt in PROMPTS]
    generations = [on_mlx.stream(prompt, **OPTIONS) for prompt in PROMPTS * 2]
    assert [generation.result().token_ids for generation in generations] == alone * 2


def test_a_prompt_that_is_known_is_not_computed_again(on_mlx: BitNet) -> None:
    prompt = "Long ago there lived a king who had three sons, and the youngest of them was called " * 4
    first = on_mlx.generate(prompt, **OPTIONS)
    again = on_mlx.generate(prompt, **OPTIONS)
    assert again.usage.cached_tokens > 32
    assert again.token_ids == first.token_ids


def test_constraints(on_mlx: BitNet) -> None:
    reply = on_mlx.generate(
        "A number:", response_format={"type": "regex", "pattern": "[0-9]{4}"}, temperature=0, max_tokens=16
    )
    assert len(reply.text) == 4
    assert reply.text.isdigit()


def test_embeddings(on_mlx: BitNet, model: BitNet) -> None:
    texts = ["A cat.", "Paris is the capital of France."]
    assert np.abs(on_mlx.embed(texts) - model.embed(texts)).max() < 0.01


def test_cancelling_a_prompt(models_folder: Path, eventually: Callable[[Callable[[], bool]], None]) -> None:
    path = make_model(
        ModelSpec(hidden_size=320, ffn_size=136, n_layers=9, context_length=4096), models_folder
    )
    ids = np.random.default_rng(0).integers(0, 200, 3000).tolist()
    with BitNet(path, engine="mlx", n_ctx=4096) as model:
        generation = model.stream(ids, max_tokens=4)
        eventually(lambda: (health := model.health()) is not None and health.running == 1)
        generation.cancel()
        assert generation.result().finish_reason == "cancelled"
        health = model.health()
        assert health is not None
        assert health.n_tokens < 3000
        assert len(model.generate(ids[:5], **OPTIONS).token_ids) == 32


def test_many_threads(on_mlx: BitNet) -> None:
    """MLX's streams belong to threads: only one computes."""
    expected = on_mlx.generate(PROMPTS[0], **OPTIONS).token_ids
    found: list[tuple[int, ...]] = []
    threads = [
        threading.Thread(target=lambda: found.append(on_mlx.generate(PROMPTS[0], **OPTIONS).token_ids))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3


def test_pickled_and_loaded_again() -> None:
    with BitNet(engine="mlx") as one:
        expected = one.generate(PROMPTS[0], **OPTIONS).token_ids
        copy = pickle.loads(pickle.dumps(one))
    with copy:
        assert copy.generate(PROMPTS[0], **OPTIONS).token_ids == expected
        assert copy.info.engine == "mlx"


# ---- the check before the first use ------------------------------------------------------------------------


def test_the_verdict_is_remembered(base_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bitnet")
    for expected in (True, False):
        caplog.clear()
        mlx.load(base_path, fall_back=False, **LOAD).close()
        assert any("checking MLX" in record.message for record in caplog.records) is expected
    verdict = mlx_check.remembered(base_path, LOAD)
    assert verdict is not None
    assert verdict.passed
    assert len(verdict.findings) == 5
    assert all("exact" in finding.detail for finding in verdict.findings[:4])


@pytest.mark.parametrize("part", ["o", "down"])
def test_a_wrong_weight_is_found(base_path: Path, part: str) -> None:
    engine = mlx.MlxEngine(base_path, **{name: LOAD[name] for name in LOAD if name not in GPU})
    try:
        _, weights = engine.model_and_weights
        assert mlx_check.check(engine).passed
        matrix = weights.layers[0][part][0]
        codes = np.array(matrix["codes"])
        codes[0, 0] ^= 1
        weights.layers[0][part] = [{**matrix, "codes": mlx_runner.mx.array(codes)}]
        verdict = mlx_check.check(engine)
        assert not verdict.passed
        assert f"layer 0 {part}" in verdict.summary
        assert "dot products are wrong" in verdict.summary
    finally:
        engine.close()


def test_wrong_tokens_are_found(random_path: Path) -> None:
    engine = mlx.MlxEngine(random_path, **{name: LOAD[name] for name in LOAD if name not in GPU})
    try:
        _, weights = engine.model_and_weights
        weights.layers[1]["ffn_norm"] = mlx_runner.mx.array(-3 * np.array(weights.layers[1]["ffn_norm"]))
        verdict = mlx_check.check(engine)
        assert [finding.name for finding in verdict.findings if not finding.passed] == ["tokens"]
    finally:
        engine.close()


GPU = ("n_gpu_layers", "main_gpu", "low_vram")
FAILED = mlx_check.Verdict((mlx_check.Finding("layer 0 o", False, "3 of 9 dot products are wrong"),))


def test_a_model_that_failed_is_computed_on_the_cpu(
    base_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = mlx_check.remembered(base_path, LOAD)
    mlx_check.remember(base_path, LOAD, FAILED)
    try:
        engine = mlx.load(base_path, fall_back=True, **LOAD)
        assert engine.info.engine == "native"
        engine.close()
        assert "computed on the CPU. MLX" in caplog.text
        assert "3 of 9 dot products are wrong" in caplog.text
        with pytest.raises(DeviceError, match="computes it wrongly here"):
            mlx.load(base_path, fall_back=False, **LOAD)
    finally:
        if before is not None:
            mlx_check.remember(base_path, LOAD, before)


# ---- what it cannot do -------------------------------------------------------------------------------------


def test_some_layers_are_all_layers(base_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with BitNet(base_path, engine="mlx", n_gpu_layers=1, low_vram=True) as model:
        assert model.info.engine == "mlx"
    assert f"n_gpu_layers=1: MLX computes all {model.info.n_layers} layers" in caplog.text
    assert "low_vram has no effect" in caplog.text


def test_what_is_refused(base_path: Path) -> None:
    for keys, message in (
        ({"kv_type": "q8_0"}, "keeps keys and values as f16, not q8_0"),
        ({"main_gpu": 1}, "MLX knows one device"),
    ):
        with pytest.raises(ValidationError, match=message) as e:
            BitNet(base_path, engine="mlx", **keys)  # type: ignore[arg-type]
        assert e.value.field == next(iter(keys))


def test_apple_silicon_selects_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"main_gpu": 0, "low_vram": False}
    monkeypatch.setattr(mlx, "is_apple_silicon", lambda: True)
    monkeypatch.setattr(mlx, "require_gpu", lambda n_gpu_layers: None)
    load, options = selection.choose("auto", n_gpu_layers=-1, **gpu)
    assert load is mlx.load
    assert options["fall_back"] is True
    assert selection.choose("auto", n_gpu_layers=0, **gpu)[0] is not mlx.load
    assert selection.choose("native", n_gpu_layers=0, **gpu)[0] is not mlx.load
    load, options = selection.choose("mlx", n_gpu_layers=0, **gpu)
    assert load is mlx.load
    assert options["fall_back"] is False


def test_a_mac_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if mlx_runner.mx.default_device() == mlx_runner.mx.gpu:
        pytest.skip("MLX has a GPU here")
    monkeypatch.setattr(mlx, "is_apple_silicon", lambda: True)
    with pytest.raises(ValidationError, match="MLX finds none here"):
        BitNet(n_gpu_layers=-1)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    with pytest.raises(ValidationError, match=r"pip install 'bitnet-cpp\[mlx\]'") as e:
        BitNet(engine="mlx")
    assert e.value.field == "engine"


def test_a_device_that_fails(base_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BitNet(base_path, engine="mlx") as model:
        expected = model.generate([1, 2, 3], **OPTIONS).token_ids

        def fail(*arrays: object) -> None:
            raise RuntimeError("[malloc] Unable to allocate 9 bytes")

        with monkeypatch.context() as patch:
            patch.setattr(mlx_runner.mx, "async_eval", fail)
            with pytest.raises(DeviceError, match=r"Unable to allocate 9 bytes.*smaller n_ctx"):
                model.generate([1, 2, 3], **OPTIONS)
        # What was half computed is gone with the engine; the next request loads the model again.
        assert model.generate([1, 2, 3], **OPTIONS).token_ids == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_told(base_path: Path) -> None:
    with BitNet(base_path, engine="mlx") as model:
        model.generate([1, 2, 3], **OPTIONS)
        pid = os.fork()
        if pid == 0:
            try:
                model.generate([1, 2, 3], **OPTIONS)
            except (EngineClosedError, DeviceError) as error:
                os._exit(0 if "spawn" in str(error) else 2)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert len(model.generate([1, 2, 3], **OPTIONS).token_ids) == 32
