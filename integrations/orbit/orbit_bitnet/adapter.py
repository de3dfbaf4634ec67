"""The way into an unmodified Orbit: adapters name the class that implements them, and Orbit imports it.

    adapters:
      - name: simple-chat
        implementation: orbit_bitnet.adapter.ConversationalImplementation

It is Orbit's own conversational adapter; that this module was imported is what registers the services.
"""

from __future__ import annotations

from typing import Any

from implementations.passthrough.conversational import ConversationalImplementation as OrbitsImplementation
from orbit_bitnet.inference import BitNetService
from orbit_bitnet.registration import PROVIDER, register

register()


class ConversationalImplementation(OrbitsImplementation):
    """Loads the model when Orbit starts, rather than with the first chat."""

    def __init__(self, config: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        provider = config.get("inference_provider") or config.get("general", {}).get("inference_provider")
        self._warm = BitNetService(config) if provider == PROVIDER else None

    async def initialize(self) -> None:
        await super().initialize()
        if self._warm is not None:
            await self._warm.initialize()  # says in the log what fails; chats will then say it, too

    async def close(self) -> None:
        if self._warm is not None:
            await self._warm.close()
        await super().close()
