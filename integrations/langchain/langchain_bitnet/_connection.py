"""Which model answers, in this process or on a server: bitnet's own fields for that, and one call at a time.

The objects of this package hold no engine. Each call opens the model and gives it back; `bitnet` loads it
once per process for all who ask for the same, and keeps it for `keep_alive` seconds after the last call. That
is why these objects cost nothing to make, pickle, copy and re-configure.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import uuid
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import bitnet
from bitnet.connection import Connection
from pydantic import Field, model_validator

if TYPE_CHECKING:
    from bitnet import BitNet, BitNetConfig
    from typing_extensions import Self

# Keys of a configuration that change no answer, or that must not stand in a cache.
_NOT_IDENTITY = ("api_key", "timeout", "retry", "verbose", "stream", "enabled")


class SharedConnection(Connection):
    """`bitnet.connection.Connection` for objects that live long and are asked now and then."""

    keep_alive: float | None = Field(default=300, frozen=True)
    """Seconds a model in this process stays loaded after its last call; None = until the process ends."""

    @model_validator(mode="after")
    def _check_connection(self) -> Self:
        """A wrong option is told where it is written, not by the first call. A model may come later."""
        if self.client is None:
            _ = self.settings
        return self

    def label_of(self, model: str | None) -> str:
        """What the model of a call is called in metadata and traces. model: the call's own, if it has one."""
        return self.label if model is None else model

    @property
    def slots(self) -> int | None:
        """Requests computed together; None = the server knows."""
        if self.client is not None:
            return int(self.client.info.n_batch)
        return None if self.settings.mode == "api" else self.settings.n_batch

    def known_context_size(self) -> int | None:
        """Tokens of prompt and answer together; None = nobody can say without loading or asking."""
        if self.client is None and self.settings.mode == "api":
            given = self.settings.given("n_ctx") or self.settings.given("context_window")
            return self.context_size() if given else None
        with (
            contextlib.suppress(bitnet.BitNetError, OSError),
            self.opened() as model,
        ):  # not `connect`: it holds on
            return model.n_ctx
        return None

    def connection_identity(self) -> dict[str, Any]:
        """Everything here that can change an answer, for cache keys. A model file counts with its version."""
        identity: dict[str, Any] = {"model": self.label, "bitnet": bitnet.__version__}
        if self.client is not None:
            return {**identity, "client": _name_of(self.client)}
        said = self.settings.to_mapping()
        identity["settings"] = {key: said[key] for key in sorted(said) if key not in _NOT_IDENTITY}
        if (stamp := _stamp(said.get("model_path") or said.get("model"))) is not None:
            identity["model_file"] = stamp
        return identity

    @contextlib.contextmanager
    def opened(self, model: str | None = None) -> Iterator[BitNet]:
        """The model for one call. model: another one than this object's."""
        opened, shared = self._open(model)
        try:
            yield opened
        finally:
            if not shared:
                opened.close()

    @contextlib.asynccontextmanager
    async def aopened(self, model: str | None = None) -> AsyncIterator[BitNet]:
        """`opened` for event loops."""
        opened, shared = self._open(model)
        try:
            yield opened
        finally:
            if not shared:
                if self.keep_alive == 0:
                    await opened.aclose()  # frees the model, which takes longer than a loop may stand still
                else:
                    opened.close()

    def _open(self, model: str | None) -> tuple[BitNet, bool]:
        """A BitNet, and whether it stays open for others. Nothing is loaded yet."""
        if self.client is not None and model is None:
            return self.client, True
        settings = self.settings if model is None else self._settings_of(model)
        if settings.mode == "api":
            return _client(json.dumps(settings.to_mapping(), sort_keys=True)), True
        opened = bitnet.BitNet.from_config(
            settings,
            lazy=True,
            keep_alive=-1 if self.keep_alive is None else self.keep_alive,
            kv_tokens=self.kv_tokens,
            max_waiting=self.max_waiting,
        )
        return opened, False

    def _settings_of(self, model: str) -> BitNetConfig:
        """This object's settings, for another model."""
        fields = {name: getattr(self, name) for name in Connection.model_fields if name != "client"}
        return Connection(**{**fields, "model": model}).settings


@functools.lru_cache(maxsize=32)
def _client(settings: str) -> BitNet:
    """The one connection of this process to a server, for all calls with the same settings, as JSON."""
    return bitnet.BitNet.from_config(json.loads(settings))


def _stamp(path: str | None) -> tuple[int, int] | None:
    """Size and time of a file; None = there is no such file."""
    if path is None:
        return None
    try:
        status = os.stat(os.path.expanduser(path))
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def _name_of(client: Any) -> str:
    """Of an engine of the caller's own, of which nothing is known but that it is not any other one."""
    return _names.setdefault(client, uuid.uuid4().hex)
