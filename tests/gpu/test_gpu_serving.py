"""BitNet with layers on the emulated device: the same answers as without, in everything built on it."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitnet import BitNet, GenerateOptions, ValidationError
from bitnet.engines import gpu
from cli.command import bitnet, environment
from reference.cases import CASES
from reference.model_factory import make_model

PROMPT = "One two three four five six seven, one two three"


def test_the_bundled_model_answers(make: Callable[..., BitNet]) -> None:
    model = make(n_gpu_layers=-1, n_ctx=128)
    reply = model.chat([{"role": "user", "content": "What is the capital of France?"}], temperature=0)
    assert reply.text == "The capital of France is Paris."
    info = model.info
    assert (info.n_gpu_layers, info.gpu) == (info.n_layers, "emulated device")
    assert info.gpu_bytes > info.ternary_bytes


@pytest.mark.parametrize(
    "where", [{"n_gpu_layers": -1}, {"n_gpu_layers": 1}, {"n_gpu_layers": -1, "low_vram": True}], ids=str
)
def test_answers(make: Callable[..., BitNet], random_path: Path, where: dict[str, object]) -> None:
    on_cpu, on_gpu = make(random_path, n_ctx=128), make(random_path, n_ctx=128, **where)
    options: list[GenerateOptions] = [
        {"temperature": 0, "ignore_eos": True},
        {"seed": 1, "ignore_eos": True},
        {"seed": 2, "temperature": 1.2, "top_k": 0, "repetition_penalty": 1.2},
        {"seed": 3, "n": 2},
        {"seed": 4, "logprobs": True, "top_logprobs": 3},
        {"seed": 5, "response_format": {"type": "regex", "pattern": "[a-f]{3}-[0-9]{3}"}},
    ]
    for one in options:
        one |= {"max_tokens": 10}
        expected, found = on_cpu.generate(PROMPT, **one), on_gpu.generate(PROMPT, **one)
        assert found.token_ids == expected.token_ids
        assert [sample.token_ids for sample in found.samples] == [s.token_ids for s in expected.samples]
        assert found.logprobs == expected.logprobs
    assert on_gpu.generate(PROMPT, max_tokens=1).usage.cached_tokens > 0
    assert np.array_equal(on_gpu.logits([1, 2, 3]), on_cpu.logits([1, 2, 3]))
    assert np.array_equal(on_gpu.embed([PROMPT, "four"]), on_cpu.embed([PROMPT, "four"]))


@pytest.mark.parametrize("case", ["qwen3-f16-hd128", "gemma3-bf16-hd256"])
def test_embedding_models(make: Callable[..., BitNet], models_folder: Path, case: str) -> None:
    path, texts = make_model(CASES[case], models_folder), [PROMPT, "four", PROMPT * 3]
    expected = make(path, n_ctx=256).embed(texts)
    for where in ({"n_gpu_layers": -1}, {"n_gpu_layers": 1}, {"n_gpu_layers": -1, "low_vram": True}):
        assert np.array_equal(make(path, n_ctx=256, **where).embed(texts), expected)


def test_an_answer_does_not_depend_on_its_neighbours(make: Callable[..., BitNet], random_path: Path) -> None:
    model = make(random_path, n_ctx=96, n_batch=6, n_gpu_layers=-1)
    prompts = [f"{index} " * (index + 1) for index in range(6)]
    how: GenerateOptions = {"seed": 9, "max_tokens": 8, "ignore_eos": True}
    alone = [model.generate(prompt, **how).token_ids for prompt in prompts]
    together: dict[int, tuple[int, ...]] = {}

    def ask(index: int) -> None:
        together[index] = model.generate(prompts[index], **how).token_ids

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[index] for index in range(6)] == alone


def test_cancel(make: Callable[..., BitNet], random_path: Path) -> None:
    model = make(random_path, n_ctx=256, n_gpu_layers=-1)
    stream = model.stream("a", max_tokens=200, ignore_eos=True)
    next(stream)
    stream.cancel()
    assert stream.result().finish_reason == "cancelled"
    assert len(model.generate("b", max_tokens=3, ignore_eos=True).token_ids) == 3


def test_pickle_and_sharing(make: Callable[..., BitNet], random_path: Path) -> None:
    model = make(random_path, n_ctx=64, n_gpu_layers=1, main_gpu=0)
    copy = pickle.loads(pickle.dumps(model))
    try:
        assert copy.info.n_gpu_layers == 1
        assert make(random_path, n_ctx=64).info.n_gpu_layers == 0  # another engine, though the same file
    finally:
        copy.close()


def test_configuration(emulated: str, random_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "bitnet.yaml"
    file.write_text(f"bitnet:\n  model_path: {random_path}\n  n_gpu_layers: -1\n  n_ctx: 64\n")
    with BitNet.from_config(str(file)) as model:
        assert model.info.n_gpu_layers == 2


def test_the_command_line(emulated: str, random_path: Path) -> None:
    env = environment(**{gpu.ENVIRONMENT: emulated})
    how = ["-m", random_path, "--temperature", "0", "--max-tokens", "4", "--ctx", "64"]
    on_cpu, on_gpu = (
        bitnet("run", "Hi", *how, env=env),
        bitnet("run", "Hi", *how, "--gpu-layers", "-1", env=env),
    )
    assert on_gpu.returncode == 0, on_gpu.stderr
    assert on_gpu.stdout == on_cpu.stdout
    shown = bitnet("show", random_path, "--gpu-layers", "1", "--ctx", "64", env=env)
    assert "GPU           emulated device: 1 of 2 layers" in shown.stdout


def test_without_a_library(monkeypatch: pytest.MonkeyPatch, random_path: Path) -> None:
    monkeypatch.setattr(gpu, "library", lambda: None)
    with pytest.raises(ValidationError, match=r"computes on the CPU only: .*BITNET_CUDA=ON"):
        BitNet(random_path, n_gpu_layers=-1)
