"""BitNetInference in the hands of Orbit's bundled provider."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from orbit_host import LOADING, Host

from bitnet import BitNet, BitNetInference, ConfigError, EngineClosedError, ValidationError, inference, models
from bitnet.model import BitNet as Model
from bitnet.orbit_text import OrbitText
from bitnet.testing import FakeEngine, FakeReply

QUESTION = "What is the capital of France?"
TEXT = "def f(a):\n    return a < b\n\n<b>two  spaces</b>\t| x |\n"


@pytest.fixture
def host() -> Host:
    return Host({"model_path": str(models.find(None)), "temperature": 0})


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Host]:
    """Hosts whose model answers from a script."""
    path = str(models.find(None))

    def make(*pieces: str, delay: float = 0, **config: Any) -> Host:
        def fake(cls: type[Model], settings: Any, **options: Any) -> Model:
            return Model.from_engine(FakeEngine(FakeReply(pieces, delay=delay)))

        monkeypatch.setattr(Model, "from_config", classmethod(fake))
        return Host({"model_path": path, **config})

    return make


async def collect(host: Host, prompt: str, **options: Any) -> list[str]:
    return [text async for text in host.generate_stream(prompt, **options)]


def test_the_constructor_has_exactly_the_keywords_orbit_gives() -> None:
    parameters = inspect.signature(BitNetInference).parameters
    assert set(parameters) == {"model_path", "verbose", *LOADING}
    assert len(parameters) == 14
    defaults = {name: parameter.default for name, parameter in parameters.items() if name in LOADING}
    assert defaults == {**LOADING, "kernel_params": None}


def test_it_answers(host: Host) -> None:
    async def main() -> None:
        await host.initialize()
        assert await host.generate(QUESTION) == "The capital of France is Paris."
        assert "".join(await collect(host, QUESTION)) == "The capital of France is Paris."
        messages = [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": QUESTION},
        ]
        assert "Paris" in await host.generate("", messages=messages)
        assert len(await collect(host, QUESTION, max_tokens=2)) <= 2
        await host.close()

    asyncio.run(main())


def test_text_survives_the_clean_up(scripted: Callable[..., Host]) -> None:
    pieces = [TEXT[i : i + 3] for i in range(0, len(TEXT), 3)]

    async def main() -> None:
        host = scripted(*pieces)
        await host.initialize()
        assert await host.generate("x") == TEXT
        assert "".join(await collect(host, "x")) == TEXT
        host.stop = [" ", "two"]  # the clean-up would delete these wherever they are
        answer = await asyncio.to_thread(host.model.generate, prompt="x")
        assert host.clean(answer["text"]) == TEXT
        await host.close()

    asyncio.run(main())


def test_the_clean_up_would_destroy_plain_text(host: Host) -> None:
    assert host.clean(TEXT) == "def f(a): return a"
    assert host.clean(OrbitText(TEXT)) == TEXT


def test_stop_strings_end_the_text() -> None:
    host = Host({"model_path": str(models.find(None)), "temperature": 0, "stop": [" is"]})

    async def main() -> None:
        await host.initialize()
        assert await host.generate(QUESTION) == "The capital of France"
        assert "".join(await collect(host, QUESTION)) == "The capital of France"
        await host.close()

    asyncio.run(main())


def test_strings_of_the_environment_are_understood(host: Host) -> None:
    host.config = {**host.config, "n_ctx": "512", "use_mmap": "true", "n_batch": "1", "n_threads": "1"}

    async def main() -> Any:
        await host.initialize()
        return host.model._model.info

    info = asyncio.run(main())
    assert (info.n_ctx, info.n_batch, info.n_threads) == (512, 1, 1)


def test_orbits_default_context_fits_every_model() -> None:
    path = str(models.find(None))
    with BitNetInference(path, **LOADING) as model:
        longest = model._model.info.context_length
        assert model._model.info.n_ctx == min(2048, longest)
    with pytest.raises(ValidationError, match=f"n_ctx=4096 is more than the {longest}"):
        BitNetInference(path, n_ctx=4096)


def test_wrong_arguments_are_named() -> None:
    path = str(models.find(None))
    with pytest.raises(
        ConfigError, match=r"bitnet\.kernel_params\.strem: unknown key; did you mean 'stream'"
    ):
        BitNetInference(path, kernel_params={"strem": "eager"})
    with pytest.raises(ConfigError, match=r"bitnet\.n_batch: must be less than or equal to 256, not 512"):
        BitNetInference(path, n_batch=512)
    with pytest.raises(ValidationError, match="n_gpu_layers"):
        BitNetInference(path, n_gpu_layers=-1)
    with BitNetInference(path) as model, pytest.raises(ValidationError, match="did you mean 'max_tokens'"):
        model.generate("x", max_token=5)  # type: ignore[call-arg]


def test_close_may_be_awaited_or_not(host: Host) -> None:
    path = str(models.find(None))
    model = BitNetInference(path)
    assert model
    model.close()
    assert model
    with pytest.raises(EngineClosedError):
        model.generate("x")

    async def main() -> None:
        assert await model.close() is None
        await host.initialize()
        await host.close()
        await host.initialize()
        assert "Paris" in await host.generate(QUESTION)
        await host.close()

    asyncio.run(main())


def test_models_are_shared(host: Host) -> None:
    path = str(models.find(None))
    with BitNetInference(path, n_batch=3) as first, BitNetInference(path, n_batch="3") as second:  # type: ignore[arg-type]
        assert first._model._engine is second._model._engine
        first.close()
        assert second.generate(QUESTION, temperature=0)["text"] == "The capital of France is Paris."
        with BitNet(n_batch=3, n_threads=8) as third:
            assert third._engine is second._model._engine


def test_many_threads_use_one_object() -> None:
    with BitNetInference(str(models.find(None))) as model:
        texts: list[str] = []

        def ask() -> None:
            texts.append("".join(chunk["text"] for chunk in model.generate_stream(QUESTION, temperature=0)))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == ["The capital of France is Paris."] * 8


def test_the_loop_waits_for_tokens_but_not_for_the_prompt(scripted: Callable[..., Host]) -> None:
    host = scripted("a", "b", "c", delay=0.15)

    async def main() -> None:
        await host.initialize()
        start = asyncio.get_running_loop().time()
        stream = await asyncio.to_thread(host.model.generate_stream, prompt="x")
        first = asyncio.get_running_loop().time()
        assert next(stream) == {"text": "a"}
        assert first - start > 0.14  # waited for on the thread ...
        assert asyncio.get_running_loop().time() - first < 0.05  # ... and there at once on the loop
        await host.close()

    asyncio.run(main())


def test_eager_streams_never_block_the_loop(scripted: Callable[..., Host]) -> None:
    host = scripted(*"abcdef", delay=0.05, kernel_params={"stream": "eager"})

    async def main() -> float:
        await host.initialize()
        late = 0.0

        async def tick() -> None:
            nonlocal late
            while True:
                start = time.monotonic()
                await asyncio.sleep(0.005)
                late = max(late, time.monotonic() - start - 0.005)

        ticker = asyncio.create_task(tick())
        assert "".join(await collect(host, "x")) == "abcdef"
        ticker.cancel()
        await host.close()
        return late

    assert asyncio.run(main()) < 0.05


def test_kernel_params_seed(host: Host) -> None:
    path = str(models.find(None))
    with BitNetInference(path, kernel_params={"seed": 5}) as model:
        answers = {model.generate("Tell me a story.", temperature=1.5)["text"] for _ in range(3)}
    assert len(answers) == 1


def test_an_abandoned_stream_stops_the_computation(
    slow_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with BitNetInference(str(slow_path), n_ctx=4096) as model:

        def running() -> int:
            return model._model._engine.health().running

        for end in ("close", "drop"):
            stream = iter(model.generate_stream("Hello", max_tokens=4000, ignore_eos=True))
            assert running() == 1
            if end == "close":
                stream.close()  # type: ignore[attr-defined]
            else:
                del stream
                gc.collect()
            eventually(lambda: running() == 0)


def test_usage_is_told() -> None:
    with BitNetInference(str(models.find(None))) as model:
        answer = model.generate(QUESTION, temperature=0, max_tokens=3)
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3


def test_a_model_without_chat_format_continues_the_text(base_path: Path) -> None:
    with BitNetInference(str(base_path)) as model, BitNet(base_path) as plain:
        expected = plain.generate("Hello there", temperature=0, max_tokens=8).text
        options: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
        messages = [{"role": "user", "content": "Hello there"}]
        assert model.generate("Hello there", messages, **options)["text"] == expected
        assert model.generate(messages=messages, **options)["text"] == expected


def test_an_unrelated_distribution_of_the_same_name_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inference._warn_of_namesake.cache_clear()
    monkeypatch.setattr(metadata, "version", lambda name: "0.2.5")
    with caplog.at_level(logging.WARNING, "bitnet"):
        BitNetInference(str(models.find(None))).close()
        BitNetInference(str(models.find(None))).close()
    assert sum("the unrelated distribution 'bitnet' 0.2.5" in message for message in caplog.messages) == 1
    inference._warn_of_namesake.cache_clear()
