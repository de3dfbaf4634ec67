"""The bundled provider, which is the host of this repository's tests/inference."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from ai_services.errors import sanitize_provider_error
from ai_services.services import InferenceService

logger = logging.getLogger(__name__)

_HOST = Path(__file__).parents[8] / "tests" / "inference" / "orbit_host.py"


class BitNetInferenceService(InferenceService):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config, "bitnet")
        spec = importlib.util.spec_from_file_location("orbit_host", _HOST)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._host = module.Host(self._extract_provider_config())

    async def initialize(self) -> bool:
        if not self.initialized:
            try:
                await self._host.initialize()
                self.initialized = True
            except Exception as error:
                logger.error("the model cannot be loaded: %s", error)
        return self.initialized

    async def close(self) -> None:
        await self._host.close()
        self.initialized = False

    async def verify_connection(self) -> bool:
        return self._host.model is not None

    async def generate(self, prompt: str, **kwargs: Any) -> str:
        if not await self.initialize():
            raise ValueError("not initialized")
        text: str = await self._host.generate(prompt, **kwargs)
        return text

    async def generate_stream(self, prompt: str, **kwargs: Any) -> AsyncGenerator[str, None]:
        """Errors are said as if they were the answer."""
        if not await self.initialize():
            yield "not initialized"
            return
        try:
            async for piece in self._host.generate_stream(prompt, **kwargs):
                yield piece
        except Exception as error:
            yield sanitize_provider_error(error)
