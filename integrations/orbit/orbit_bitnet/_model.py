"""The bitnet block of Orbit's configuration, and the model that a service makes of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnet import BitNet, BitNetConfig
from bitnet.config import load

BUNDLED = "bitnet-tiny"  # what the model bundled with bitnet is called

# What Orbit's base classes and adapters may put into the block of any provider, without meaning for this one.
_ORBITS_OWN = frozenset({"effort", "endpoint", "endpoints", "use_preset"})
_ORBITS_TIMEOUTS = frozenset({"warmup"})


def read_settings(section: str, block: Mapping[str, Any]) -> BitNetConfig:
    """The block of a provider as `bitnet` reads it. section: its place in the configuration, for messages.

    Raises bitnet.ConfigError, which names the key.
    """
    # Orbit puts in "" for environment variables that are not set.
    values = {key: value for key, value in block.items() if key not in _ORBITS_OWN and value != ""}
    if "api_base" in values:  # Orbit's other name for it
        values.setdefault("base_url", values.pop("api_base"))
    timeout = values.get("timeout")
    if isinstance(timeout, Mapping):
        values["timeout"] = {key: value for key, value in timeout.items() if key not in _ORBITS_TIMEOUTS}
    return load({section: {"bitnet": values}} if section == "inference" else {"bitnet": values})


def label(settings: BitNetConfig) -> str:
    """What the model is called in usage and prices."""
    if settings.mode == "api":
        return settings.model or "bitnet"
    return settings.model or (Path(settings.model_path).stem if settings.model_path else BUNDLED)


class Opened:
    """The model of one service: loaded when it is first used, and again after `close`.

    Services with the same file and options share one loaded model. Whoever is cancelled while it loads leaves
    the loading to the next.
    """

    def __init__(self, settings: BitNetConfig) -> None:
        self._settings = settings
        self._lock = threading.Lock()  # held while it loads and closes, on threads only
        self._model: BitNet | None = None

    @property
    def model(self) -> BitNet | None:
        """None = not loaded."""
        return self._model

    async def ready(self) -> BitNet:
        """Raises what BitNet.from_config raises."""
        model = self._model
        return await asyncio.to_thread(self._open) if model is None else model

    def _open(self) -> BitNet:
        with self._lock:
            if self._model is None:
                self._model = BitNet.from_config(self._settings)
            return self._model

    async def is_healthy(self) -> bool:
        return await asyncio.to_thread((await self.ready()).is_healthy)

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._lock:
            model, self._model = self._model, None
        if model is not None:
            model.close()
