"""BitNetService as Orbit's factory, pipeline and tool loop use it, mostly on the bundled model."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bitnet import (
    BitNet,
    CapabilityError,
    ConfigError,
    DeadlineError,
    EngineClosedError,
    OverloadedError,
    ToolCall,
)
from bitnet.testing import FakeEngine, FakeReply

from ai_services.base import ServiceType
from ai_services.errors import ProviderServiceError, sanitize_provider_error
from ai_services.factory import AIServiceFactory
from orbit_bitnet import BitNetService, BitNetServiceError, register

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
TEXT = "def f(a):\n    return a < b\n\n<b>two  spaces</b>\t| x |\n"
WEATHER = {
    "type": "function",
    "function": {
        "name": "city__weather",
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def config(**block: Any) -> dict[str, Any]:
    """Orbit's whole configuration, as far as it matters."""
    return {"general": {"inference_provider": "bitnet"}, "inference": {"bitnet": {"temperature": 0, **block}}}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[BitNetService, FakeEngine]]:
    """Services whose model answers from a script."""

    def make(replies: Any = ANSWER, **block: Any) -> tuple[BitNetService, FakeEngine]:
        engine = FakeEngine(replies)
        monkeypatch.setattr(
            BitNet, "from_config", classmethod(lambda cls, *_, **__: BitNet.from_engine(engine))
        )
        return BitNetService(config(**block)), engine

    return make


def model_of(service: BitNetService) -> BitNet:
    model = service._opened.model
    assert model is not None
    return model


async def collect(stream: AsyncGenerator[str, None]) -> list[str]:
    return [piece async for piece in stream]


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within ten seconds"
        await asyncio.sleep(0.002)


def test_the_calls_of_the_guide() -> None:
    async def main() -> None:
        register()
        service = AIServiceFactory.create_service(ServiceType.INFERENCE, "bitnet", config())
        assert type(service) is BitNetService
        assert not service.initialized
        assert await service.initialize() is True
        assert service.initialized
        assert await service.verify_connection() is True
        assert await service.validate_config() is True
        response = await service.generate(QUESTION)
        assert response == ANSWER
        assert type(response) is str
        pieces = await collect(service.generate_stream(QUESTION))
        assert "".join(pieces) == ANSWER
        messages = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": QUESTION}]
        assert "Paris" in await service.generate("", messages=messages)
        await service.generate("Explain quantum computing", temperature=0.3, max_tokens=5, top_p=0.9)
        await service.close()
        await service.close()
        assert not service.initialized
        assert await service.generate(QUESTION) == ANSWER  # loads again
        await service.close()
        AIServiceFactory.clear_cache()

    asyncio.run(main())


def test_the_text_is_that_of_bitnet() -> None:
    question = "Tell me a story about a brave fox."
    with BitNet() as model:
        expected = model.chat([{"role": "user", "content": question}], temperature=0, max_tokens=120).text

    async def main() -> None:
        service = BitNetService(config(max_tokens=120))
        assert await service.generate(question) == expected
        assert "".join(await collect(service.generate_stream(question))) == expected
        await service.close()

    asyncio.run(main())


def test_usage_and_arguments_of_the_pipeline() -> None:
    async def main() -> None:
        service = BitNetService(config())
        usage: dict[str, Any] = {}
        extra = {"web_search": True, "effort": "low", "cache_prefix_len": 12}
        assert await service.generate_tracked(QUESTION, usage_sink=usage, **extra) == ANSWER
        assert (usage["provider"], usage["model"], usage["reported"]) == ("bitnet", "bitnet-tiny", True)
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (21, 15, 36)
        again: dict[str, Any] = {}
        pieces = await collect(service.generate_stream_tracked(QUESTION, usage_sink=again, **extra))
        assert "".join(pieces) == ANSWER
        assert (again["prompt_tokens"], again["completion_tokens"]) == (21, 15)
        assert again["cached_prompt_tokens"] > 0
        await service.close()

    asyncio.run(main())


def test_what_the_model_is_told(scripted: Callable[..., Any]) -> None:
    """Messages win over the prompt; a system message with nothing in it is left out; history is kept."""
    service, engine = scripted("yes")
    history = [
        {"role": "system", "content": " "},
        {"role": "user", "content": "a", "timestamp": 5},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]

    async def main() -> None:
        await service.generate("flat", messages=history)
        await service.generate("System\n\nUser: c\nAssistant:", messages=None)
        await service.generate("x", max_tokens=7, temperature=None, stop=["y"], seed=3)

    asyncio.run(main())
    told = [[(turn.role, turn.content) for turn in request.messages] for request in engine.requests]
    assert told[0] == [("user", "a"), ("assistant", "b"), ("user", "c")]
    assert told[1] == [("user", "System\n\nUser: c\nAssistant:")]
    last = engine.requests[2]
    assert (last.max_tokens, last.stop, last.sampling.seed) == (7, ("y",), 3)


def test_texts_are_passed_on_as_they_are(scripted: Callable[..., Any]) -> None:
    pieces = [TEXT[i : i + 3] for i in range(0, len(TEXT), 3)]
    service, _ = scripted(FakeReply(pieces))

    async def main() -> None:
        assert await service.generate("x") == TEXT
        assert "".join(await collect(service.generate_stream("x"))) == TEXT

    asyncio.run(main())


def test_the_loop_never_waits_for_a_token(scripted: Callable[..., Any]) -> None:
    service, _ = scripted(FakeReply(list("abcdef"), delay=0.1))

    async def main() -> tuple[list[float], float]:
        late = 0.0

        async def tick() -> None:
            nonlocal late
            while True:
                start = time.monotonic()
                await asyncio.sleep(0.005)
                late = max(late, time.monotonic() - start - 0.005)

        await service.initialize()
        ticker = asyncio.create_task(tick())
        start, came = time.monotonic(), []
        async for _ in service.generate_stream("x"):
            came.append(time.monotonic() - start)
        ticker.cancel()
        return came, late

    came, late = asyncio.run(main())
    assert len(came) == 6
    assert came[0] < 0.3 < 0.5 < came[-1]  # one after the other
    assert late < 0.09


def test_a_busy_host_gets_what_came_meanwhile_as_one(scripted: Callable[..., Any]) -> None:
    service, _ = scripted(FakeReply(list("abcdef"), delay=0.01))

    async def main() -> list[str]:
        pieces = []
        async for piece in service.generate_stream("x"):
            pieces.append(piece)
            time.sleep(0.2)
        return pieces

    assert asyncio.run(main()) == ["a", "bcdef"]


def test_stream_false_is_one_piece(scripted: Callable[..., Any]) -> None:
    service, _ = scripted(FakeReply(list("abc")), stream="false")
    assert asyncio.run(collect(service.generate_stream("x"))) == ["abc"]


@pytest.mark.parametrize("end", ["close", "leave", "cancel"])
def test_whoever_leaves_stops_the_computation(end: str) -> None:
    """Two tokens at most are computed after a stream was closed, was left (as Orbit does when it is told to
    stop), or its task was cancelled (as when a client is gone).

    Of three tries, for the machine may look away for a moment, in which more are computed; but never all 900.
    """

    async def main() -> int:
        service = BitNetService(config(speculate=False))
        await service.initialize()
        model = model_of(service)

        def health() -> Any:
            found = model.health()
            assert found is not None
            return found

        steps = 0

        async def read(stop_at: int) -> None:
            nonlocal steps
            stream = service.generate_stream("Tell me a story.", max_tokens=900, ignore_eos=True)
            n = 0
            async for _ in stream:
                n += 1
                if n == stop_at and end != "cancel":
                    steps = health().n_steps
                    if end == "close":
                        await stream.aclose()
                    return

        task = asyncio.create_task(read(5))
        if end == "cancel":
            await until(lambda: health().running == 1)
            await asyncio.sleep(0.05)
            steps = health().n_steps
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await task
        gc.collect()
        await until(lambda: health().running == 0)
        late: int = health().n_steps - steps
        await service.close()
        return late

    late = [asyncio.run(main()) for _ in range(3)]
    assert min(late) <= 2
    assert max(late) < 300


def test_chats_are_computed_together(scripted: Callable[..., Any]) -> None:
    service, _ = scripted(lambda request: FakeReply(list(request.messages[-1].content * 3), delay=0.1))

    async def main() -> float:
        await service.initialize()
        start = time.monotonic()
        texts = await asyncio.gather(*[collect(service.generate_stream(name)) for name in "abcd"])
        assert ["".join(text) for text in texts] == ["aaa", "bbb", "ccc", "ddd"]
        return time.monotonic() - start

    assert asyncio.run(main()) < 1.2  # one after the other it would be 1.6


def test_services_share_a_model_and_give_it_back() -> None:
    async def main() -> None:
        first, second = BitNetService(config()), BitNetService(config(temperature=1.5, max_tokens=5))
        other = BitNetService(config(n_ctx=512))
        await asyncio.gather(first.initialize(), second.initialize(), other.initialize())
        engines = [model_of(service)._engine for service in (first, second, other)]
        assert engines[0] is engines[1]
        assert engines[0] is not engines[2]
        await first.close()
        assert not engines[1].health().closed
        del second  # Orbit drops instances without closing them
        gc.collect()
        BitNet(lazy=True).close()  # leases that were lost are given back with the next use of the registry
        assert engines[1].health().closed
        await other.close()

    asyncio.run(main())


def test_loading_that_is_cancelled_is_left_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def slow(cls: type[BitNet], *_: Any, **__: Any) -> BitNet:
        loads.append(1)
        time.sleep(0.3)
        return BitNet.from_engine(FakeEngine("loaded"))

    monkeypatch.setattr(BitNet, "from_config", classmethod(slow))

    async def main() -> None:
        service = BitNetService(config())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(service.initialize(), 0.05)
        assert await asyncio.gather(*[service.generate("x") for _ in range(3)]) == ["loaded"] * 3

    asyncio.run(main())
    assert len(loads) == 1


def test_a_model_that_is_not_there_yet(tmp_path: Path) -> None:
    """A wrong path is an error of every request, until the file is there."""
    path = tmp_path / "model.gguf"
    service = BitNetService(config(model_path=str(path)))

    async def main() -> None:
        assert await service.initialize() is False
        assert await service.verify_connection() is False
        for call in (service.generate(QUESTION), collect(service.generate_stream(QUESTION))):
            with pytest.raises(BitNetServiceError) as caught:
                await call
            assert caught.value.status_code == 404
            assert str(tmp_path) not in str(caught.value)
            assert str(path) in str(caught.value.original_error)
        with BitNet() as bundled:
            path.symlink_to(bundled.info.path)
        assert await service.generate(QUESTION) == ANSWER
        await service.close()

    asyncio.run(main())


def test_a_prompt_that_does_not_fit() -> None:
    service = BitNetService(config())
    room = BitNet(lazy=True).n_ctx - 1

    async def main() -> None:
        for call in (service.generate("word " * 3000), collect(service.generate_stream("word " * 3000))):
            match = rf"too long .* room for {room} and an answer"
            with pytest.raises(BitNetServiceError, match=match) as caught:
                await call
            assert caught.value.status_code == 400
            assert sanitize_provider_error(caught.value) == str(caught.value)
        await service.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OverloadedError("busy"), 429),
        (EngineClosedError("closed"), 503),
        (DeadlineError("late"), 504),
        (ConnectionRefusedError("refused"), 503),
        (RuntimeError("a defect at /secret/path"), 500),
    ],
)
def test_errors_are_raised_with_a_status(scripted: Callable[..., Any], error: Exception, status: int) -> None:
    service, _ = scripted([FakeReply(["some", "thing"], error=error), FakeReply(refuse=error)])

    async def main() -> None:
        pieces: list[str] = []

        async def read() -> None:
            async for piece in service.generate_stream("x"):
                pieces.append(piece)

        with pytest.raises(ProviderServiceError) as caught:
            await read()
        assert "".join(pieces) == "something"  # and no sentence of apology behind it
        with pytest.raises(ProviderServiceError) as again:
            await service.generate("x")
        for raised in (caught.value, again.value):
            assert isinstance(raised, BitNetServiceError)
            assert raised.status_code == status
            assert raised.original_error is error
            assert (raised.provider, "secret" in raised.user_message) == ("bitnet", False)
            assert raised.user_message == sanitize_provider_error(_with_status(status))

    asyncio.run(main())


def _with_status(status: int) -> Exception:
    error = Exception()
    error.status_code = status  # type: ignore[attr-defined]
    return error


def test_timeouts_of_the_configuration() -> None:
    service = BitNetService(config(timeout={"total": "100", "warmup": 45000}, max_tokens=1000))

    async def main() -> None:
        with pytest.raises(BitNetServiceError) as caught:
            await service.generate("Tell me a story.", ignore_eos=True)
        assert caught.value.status_code == 504
        await service.close()

    asyncio.run(main())


def test_the_configuration() -> None:
    """Strings of the environment, what is empty because a variable is not set, and Orbit's own keys."""
    service = BitNetService(
        config(
            enabled="true",
            model_path="",
            model="",
            api_key="",
            n_ctx="512",
            n_batch="3",
            max_tokens="9",
            top_p="0.5",
            effort="low",
            endpoint="/x",
            context_window=512,
        )
    )
    assert (service.model, service.max_tokens, service.top_p, service.top_k) == ("bitnet-tiny", 9, 0.5, 40)
    assert (service.temperature, service.api_key, service.base_url) == (0, "none", None)

    async def main() -> None:
        await service.initialize()
        info = model_of(service).info
        assert (info.n_ctx, info.n_batch) == (512, 3)
        await service.close()

    asyncio.run(main())
    assert BitNetService(config(model="2b", model_path="/x/y.gguf")).model == "2b"
    assert BitNetService(config(model_path="/x/y.gguf")).model == "y"
    assert BitNetService({"bitnet": {"max_tokens": 3}}).max_tokens == 3
    with pytest.raises(ConfigError, match=r"inference\.bitnet\.n_ctxx: unknown key; did you mean 'n_ctx'"):
        BitNetService(config(n_ctxx=1))


def test_tools() -> None:
    """A round of Orbit's tool loop on the bundled model: a call, its result, and an answer without tools."""

    async def main() -> None:
        service = BitNetService(config(max_tokens=64))
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": ""},
            {"role": "user", "content": "What is the weather in Oslo?"},
        ]
        usage: dict[str, Any] = {}
        result = await service.generate_with_tools_tracked(messages, [WEATHER], usage_sink=usage)
        assert result.tool_calls is not None
        (call,) = result.tool_calls
        assert call["name"] == "city__weather"
        assert set(call["arguments"]) == {"city"}
        assert call["id"]
        assert result.finish_reason == "tool_calls"
        assert usage["completion_tokens"] > 0
        (told,) = result.assistant_message["tool_calls"]
        assert json.loads(told["function"]["arguments"]) == call["arguments"]
        messages += [
            result.assistant_message,
            {
                "role": "tool",
                "tool_call_id": call["id"],
                "name": call["name"],
                "content": "<tool_result>\nIt is sunny.\n</tool_result>",
            },
        ]
        final = await service.generate_with_tools_tracked(messages, [], usage_sink=usage)
        assert final.tool_calls is None
        assert final.text
        assert final.assistant_message == {"role": "assistant", "content": final.text}
        await service.close()

    asyncio.run(main())


def test_several_calls_and_a_text(scripted: Callable[..., Any]) -> None:
    calls = [ToolCall("", "city__weather", {"city": name}) for name in ("Oslo", "Rome")]
    service, _ = scripted(FakeReply("Let me see.", tool_calls=calls))
    result = asyncio.run(service.generate_with_tools([{"role": "user", "content": "x"}], [WEATHER]))
    assert result.text == "Let me see."
    assert result.tool_calls is not None
    assert [call["arguments"] for call in result.tool_calls] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert len({call["id"] for call in result.tool_calls}) == 2


def test_tools_that_cannot_be_told_of(scripted: Callable[..., Any]) -> None:
    """Orbit falls back to an answer without tools for NotImplementedError, and for that only."""
    broken = {"type": "function", "function": {"name": "x", "parameters": {"type": "no such type"}}}
    service, _ = scripted([FakeReply(refuse=CapabilityError("the server has no tools"))])

    async def main() -> None:
        messages = [{"role": "user", "content": "x"}]
        with pytest.raises(NotImplementedError, match="the server has no tools"):
            await service.generate_with_tools(messages, [WEATHER])
        with pytest.raises(BitNetServiceError) as caught:
            await service.generate_with_tools(messages, [broken])
        assert caught.value.status_code == 400
        assert "must be a schema" in str(caught.value.original_error)

    asyncio.run(main())


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """`bitnet serve` in this process."""
    import threading

    import uvicorn
    from bitnet.server import create_app

    with BitNet() as model:
        server = uvicorn.Server(uvicorn.Config(create_app(model), port=0, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join()


def test_mode_api(server: str) -> None:
    async def main() -> None:
        service = BitNetService(config(mode="api", base_url=server))
        assert await service.initialize() is True
        assert await service.validate_config() is True
        usage: dict[str, Any] = {}
        assert await service.generate_tracked(QUESTION, usage_sink=usage) == ANSWER
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["reported"]) == (21, 15, True)
        assert "".join(await collect(service.generate_stream(QUESTION))) == ANSWER
        # The server joins what its reader has left waiting: a short answer may come at once, a long one not.
        story = "Tell me a story about a fox named Milo."
        pieces = await collect(service.generate_stream(story))
        assert "".join(pieces) == await service.generate(story)
        assert len(pieces) > 3
        result = await service.generate_with_tools(
            [{"role": "user", "content": "What is the weather in Oslo?"}], [WEATHER]
        )
        assert result.tool_calls is not None
        with pytest.raises(BitNetServiceError) as caught:
            await service.generate("word " * 3000)
        assert caught.value.status_code == 400
        await service.close()

    asyncio.run(main())


def test_a_server_that_is_not_there() -> None:
    block = {"mode": "api", "base_url": "http://127.0.0.1:9", "retry": {"enabled": False}}
    service = BitNetService(config(**block))

    async def main() -> None:
        assert await service.initialize() is False
        with pytest.raises(BitNetServiceError) as caught:
            await service.generate("x")
        assert caught.value.status_code == 502
        assert await service.verify_connection() is False

    asyncio.run(main())
