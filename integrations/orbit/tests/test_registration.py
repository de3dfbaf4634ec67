"""How the services get into Orbit, and what is said where there is no Orbit."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bitnet import ConfigError

from ai_services import registry
from ai_services.base import ServiceType
from ai_services.factory import AIServiceFactory
from embeddings.base import EmbeddingServiceFactory
from orbit_bitnet import BitNetEmbeddingService, BitNetService, register
from orbit_bitnet.registration import replace_bundled

ENABLED: dict[str, Any] = {"inference": {"bitnet": {"enabled": True}}}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    def forget() -> None:
        for kind in (ServiceType.INFERENCE, ServiceType.EMBEDDING):
            AIServiceFactory.unregister_service(kind, "bitnet")
        AIServiceFactory.clear_cache()

    forget()
    yield
    forget()


def registered(kind: ServiceType = ServiceType.INFERENCE) -> Any:
    return AIServiceFactory.get_service_class(kind, "bitnet")


def test_register(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        register()
        register()
    assert not caplog.messages
    assert registered() is BitNetService
    assert registered(ServiceType.EMBEDDING) is BitNetEmbeddingService


def test_register_replaces_a_bundled_provider_that_is_in_use() -> None:
    class Bundled:
        def __init__(self, config: dict[str, Any]) -> None: ...

    AIServiceFactory.register_service(ServiceType.INFERENCE, "bitnet", Bundled)  # type: ignore[arg-type]
    old = AIServiceFactory.create_service(ServiceType.INFERENCE, "bitnet", ENABLED)
    register()
    new = AIServiceFactory.create_service(ServiceType.INFERENCE, "bitnet", ENABLED)
    assert (type(old), type(new)) == (Bundled, BitNetService)


def test_before_orbit_registers_its_providers(caplog: pytest.LogCaptureFixture) -> None:
    """Then `enabled` decides, and nothing is overwritten."""
    replace_bundled()
    assert registered() is None
    registry.register_inference_services({"inference": {"bitnet": {"enabled": "false"}}})
    assert registered() is None
    with caplog.at_level(logging.WARNING):
        registry.register_inference_services(ENABLED)
    assert registered() is BitNetService
    assert not caplog.messages


def test_warnings_of_bitnet_are_heard() -> None:
    logging.getLogger("bitnet").setLevel(logging.ERROR)  # as Orbit does when its providers are imported
    register()
    assert logging.getLogger("bitnet").isEnabledFor(logging.WARNING)


def test_the_adapters_implementation_registers_and_loads_the_model() -> None:
    from implementations.passthrough.conversational import ConversationalImplementation as Orbits
    from orbit_bitnet import adapter

    register()
    assert registered() is BitNetService
    assert issubclass(adapter.ConversationalImplementation, Orbits)
    other = adapter.ConversationalImplementation({**ENABLED, "inference_provider": "openai"})
    assert other._warm is None
    ours = adapter.ConversationalImplementation({**ENABLED, "general": {"inference_provider": "bitnet"}})

    async def main() -> None:
        assert ours._warm is not None
        assert await ours._warm.initialize()
        assert ours._warm.initialized
        await ours._warm.close()

    asyncio.run(main())


CONFIG = {"embeddings": {"bitnet": {"batch_size": "2"}}}


def test_embeddings() -> None:
    from bitnet import BitNet

    texts = ["The capital of France is Paris.", "Foxes are red.", "The capital of Japan is Tokyo."]
    register()
    service = EmbeddingServiceFactory.create_embedding_service(CONFIG, "bitnet")
    assert type(service) is BitNetEmbeddingService
    assert AIServiceFactory.create_service(ServiceType.EMBEDDING, "bitnet", CONFIG).batch_size == 2
    with BitNet(n_threads=8) as model:
        expected = model.embed(texts).tolist()

    async def main() -> None:
        assert await service.initialize() is True
        assert await service.verify_connection() is True
        assert await service.embed_documents(texts) == expected
        assert await service.embed_query(texts[0]) == expected[0]
        assert await service.embed_documents([]) == []
        assert await service.get_dimensions() == len(expected[0])
        usage: dict[str, Any] = {}
        assert await service.embed_documents_tracked(texts, usage_sink=usage) == expected
        assert usage["prompt_tokens"] > 10
        assert (usage["completion_tokens"], usage["model"], usage["reported"]) == (0, "bitnet-tiny", True)
        await service.close()
        assert await service.embed_query(texts[0]) == expected[0]  # loads again
        await service.close()

    asyncio.run(main())
    with pytest.raises(ValueError, match="Unsupported embedding provider: nobody"):
        EmbeddingServiceFactory.create_embedding_service(CONFIG, "nobody")


def test_embeddings_that_are_wrong() -> None:
    from ai_services.errors import ProviderServiceError

    for block, message in (
        ({"batch_size": 0}, r"embeddings\.bitnet\.batch_size: Input should be greater than or equal to 1"),
        ({"pooling": "max"}, r"embeddings\.bitnet\.pooling: Input should be 'mean' or 'last', not 'max'"),
        ({"n_ctxx": 1}, "unknown key; did you mean 'n_ctx'"),
    ):
        with pytest.raises(ConfigError, match=message):
            BitNetEmbeddingService({"embeddings": {"bitnet": block}})
    service = BitNetEmbeddingService({"embeddings": {"bitnet": {"dimensions": 7, "normalize": "false"}}})

    async def main() -> None:
        assert await service.initialize() is False
        with pytest.raises(ProviderServiceError) as caught:
            await service.embed_query("x")
        assert "dimensions is 7, and the vectors of bitnet-tiny have" in str(caught.value.__cause__)
        service.dimensions = None
        with pytest.raises(ProviderServiceError):
            await service.embed_query("")
        vector = await service.embed_query("x")
        assert abs(sum(value * value for value in vector) - 1) > 0.01
        await service.close()

    asyncio.run(main())


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**clean, **environment},
    )


@pytest.mark.parametrize(
    "statement",
    [
        "from orbit_bitnet import BitNetService",
        "from orbit_bitnet import register",
        "import orbit_bitnet; orbit_bitnet.BitNetEmbeddingService",
        "import orbit_bitnet.inference",
    ],
)
def test_without_orbit(statement: str) -> None:
    done = run("-c", statement)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "ImportError: orbit_bitnet works inside of Orbit, and Python does not find Orbit's"
    )
    assert "python -m orbit_bitnet serve --orbit DIR -- --config FILE" in last


def test_with_half_of_orbit(tmp_path: Path) -> None:
    (tmp_path / "ai_services").mkdir()
    (tmp_path / "ai_services" / "__init__.py").write_text("import something_that_orbit_needs\n")
    done = run("-c", "from orbit_bitnet import BitNetService", PYTHONPATH=str(tmp_path))
    assert "No module named 'something_that_orbit_needs'. Install what Orbit needs" in done.stderr


def test_serve_without_orbit(tmp_path: Path) -> None:
    done = run("-m", "orbit_bitnet", "serve", "--orbit", str(tmp_path))
    assert done.returncode == 2
    assert f"there is no Orbit in {tmp_path} (no server/main.py)" in done.stderr
    assert "python -m orbit_bitnet serve --orbit" in run("-m", "orbit_bitnet", "serve", "--help").stdout
