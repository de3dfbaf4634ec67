"""BitNetService: the calls of the Orbit guide, from any event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet import BitNetService, ConfigError, OverloadedError, ValidationError
from bitnet.engines import http
from bitnet.testing import FakeEngine, FakeReply

QUESTION = "What is the capital of France?"
GREEDY = {"inference": {"bitnet": {"enabled": True, "temperature": "0"}}}


def test_the_guides_calls() -> None:
    async def main() -> None:
        service = BitNetService(GREEDY)
        assert not service.initialized
        assert await service.initialize() is True
        response = await service.generate(QUESTION)
        assert response == "The capital of France is Paris."
        assert type(response) is str
        pieces = [chunk async for chunk in service.generate_stream(QUESTION)]
        assert "".join(pieces) == response
        assert len(pieces) > 3
        await service.generate("Explain quantum computing", temperature=0.3, max_tokens=5, top_p=0.9)
        messages = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": QUESTION},
        ]
        assert "Paris" in await service.generate("", messages=messages)
        assert await service.verify_connection() is True
        await service.close()
        await service.close()
        assert not service.initialized
        assert "Paris" in await service.generate(QUESTION)  # loads again
        await service.close()

    asyncio.run(main())


def test_configuration_files_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "bitnet.yaml"
    file.write_text("bitnet:\n  max_tokens: 2\n  temperature: 0\n")

    async def ask(service: BitNetService) -> int:
        async with service:
            reply = await service.reply(QUESTION)
            assert reply.finish_reason == "length"
            return reply.usage.completion_tokens

    assert asyncio.run(ask(BitNetService(file))) == 2
    assert asyncio.run(ask(BitNetService(file, max_tokens=3))) == 3
    with pytest.raises(ConfigError, match=r"option max_token: unknown key; did you mean 'max_tokens'"):
        BitNetService(file, max_token=3)


def test_stream_false_answers_in_one_piece() -> None:
    async def main() -> list[str]:
        async with BitNetService(GREEDY, stream=False) as service:
            return [chunk async for chunk in service.generate_stream(QUESTION)]

    assert asyncio.run(main()) == ["The capital of France is Paris."]


def test_any_event_loop_may_use_it() -> None:
    service = BitNetService(GREEDY)
    answers = [asyncio.run(service.generate(QUESTION)) for _ in range(3)]
    assert answers == ["The capital of France is Paris."] * 3
    asyncio.run(service.close())


def test_a_cancelled_initialize_leaves_the_loading_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitnet.model import BitNet

    loads = 0

    def slow(cls: type[BitNet], settings: Any) -> BitNet:
        nonlocal loads
        loads += 1
        time.sleep(0.2)
        return BitNet.from_engine(FakeEngine("loaded"))

    monkeypatch.setattr(BitNet, "from_config", classmethod(slow))

    async def main() -> None:
        service = BitNetService(GREEDY)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(service.initialize(), 0.05)
        results = await asyncio.gather(*[service.generate("x") for _ in range(3)])
        assert results == ["loaded"] * 3
        await service.close()

    asyncio.run(main())
    assert loads == 1


def test_leaving_a_stream_or_cancelling_stops_the_computation(
    slow_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    service = BitNetService({"model_path": str(slow_path), "max_tokens": 2000})

    def idle() -> bool:
        assert service._model is not None
        return service._model._engine.health().running == 0

    async def main() -> None:
        stream = service.generate_stream("Hello", ignore_eos=True)
        async for _ in stream:
            assert not idle()
            break
        await stream.aclose()  # type: ignore[attr-defined]
        eventually(idle)
        task = asyncio.create_task(service.generate("Hello", ignore_eos=True))
        while service._model is None or idle():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        eventually(idle)

    asyncio.run(main())
    asyncio.run(service.close())


def test_errors_are_raised_not_said() -> None:
    async def main() -> None:
        async with BitNetService(GREEDY) as service:
            with pytest.raises(ValidationError, match="did you mean 'max_tokens'"):
                await service.generate("x", max_token=5)  # type: ignore[call-arg]
            with pytest.raises(ValidationError):
                async for _ in service.generate_stream("word " * 5000):
                    pass

    asyncio.run(main())


def test_verify_connection_of_a_missing_model_is_false(tmp_path: Path) -> None:
    service = BitNetService({"model_path": str(tmp_path / "nowhere.gguf")})
    assert asyncio.run(service.verify_connection()) is False


def test_mode_api(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(["hello", FakeReply(error=OverloadedError("busy"))])
    monkeypatch.setattr(http, "connected_engine", lambda **options: engine)

    async def main() -> None:
        async with BitNetService({"mode": "api", "base_url": "http://localhost:1"}) as service:
            assert await service.generate("Hi") == "hello"
            with pytest.raises(OverloadedError):
                await service.generate("Hi")
            assert await service.verify_connection() is True

    asyncio.run(main())


def test_a_server_that_is_not_there_is_no_connection() -> None:
    config = {"mode": "api", "base_url": "http://127.0.0.1:9", "retry": {"enabled": False}}
    assert asyncio.run(BitNetService(config).verify_connection()) is False
