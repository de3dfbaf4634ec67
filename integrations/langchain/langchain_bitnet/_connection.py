"""Which model answers, in this process or on a server: the fields that say so, and how it is opened.

The objects of this package hold no engine. Each call opens the model and gives it back; `bitnet` loads it
once per process for all who ask for the same, and keeps it for `keep_alive` seconds after the last call. That
is why these objects cost nothing to make, pickle, copy and re-configure.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bitnet
from langchain_core.utils import from_env, secret_from_env
from pydantic import BaseModel, ConfigDict, Field, SecretStr

if TYPE_CHECKING:
    from bitnet import BitNet, BitNetConfig
    from typing_extensions import Self

BUNDLED = "bitnet-tiny"  # what the model bundled with bitnet is called where it must have a name

# Fields that are keys of the bitnet configuration schema, passed on as they are.
_SCHEMA_FIELDS = (
    "n_ctx",
    "n_threads",
    "n_batch",
    "n_gpu_layers",
    "main_gpu",
    "low_vram",
    "use_mmap",
    "use_mlock",
    "quant_type",
    "use_pretuned",
    "kernel_params",
    "embd_type",
)
# Of a configuration: where it comes from, what wins over it as JSON, and the model that was asked for.
_Key = tuple[tuple[Any, ...], str, str | None]
_MAX_CLIENTS = 32  # connections to servers kept open at the same time


class Connection(BaseModel):
    """The model, and where and how it is computed. None = as the configuration or `bitnet` has it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: str | None = None
    """Path of a GGUF file, short name or repository; with `base_url` the server's name for it. None = the
    model of `config`, else the one bundled with bitnet."""
    base_url: str | None = Field(default_factory=from_env("BITNET_BASE_URL", default=None))
    """An OpenAI-compatible server, such as `bitnet serve`; None = compute in this process. Default:
    $BITNET_BASE_URL."""
    api_key: SecretStr | None = Field(default_factory=secret_from_env("BITNET_API_KEY", default=None))
    """The server's key. Default: $BITNET_API_KEY."""
    config: str | Path | dict[str, Any] | None = None
    """A bitnet YAML file, or a mapping as one would have it. Other arguments win over it."""
    timeout: float | None = Field(default=None, ge=0)
    """Seconds an answer may take; 0 = no limit."""
    max_retries: int | None = Field(default=None, ge=0)
    """How often a server that cannot be reached or is too busy is asked again."""
    keep_alive: float | None = 300
    """Seconds a model in this process stays loaded after its last call; None = until the process ends."""

    n_ctx: int | None = None
    """Tokens of prompt and answer together; 0 = the model's own limit."""
    n_threads: int | None = None
    """Compute threads; 0 = physical cores."""
    n_batch: int | None = None
    """Requests computed together."""
    kv_tokens: int | None = None
    """Tokens whose keys and values are held for all requests together; None = for n_batch full contexts."""
    max_waiting: int = 1024
    """Requests that may wait for their turn."""
    n_gpu_layers: int | None = None
    main_gpu: int | None = None
    low_vram: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    quant_type: str | None = None
    use_pretuned: bool | None = None
    kernel_params: dict[str, Any] | None = None
    embd_type: str | None = None

    client: Any = Field(default=None, exclude=True, repr=False)
    """A `bitnet.BitNet` of your own to ask instead, such as BitNet.from_engine(FakeEngine(...)) in a test. It
    is used as it is and never closed; the fields above then do not count."""

    @classmethod
    def from_config(cls, config: str | Path | dict[str, Any], **arguments: Any) -> Self:
        """With a bitnet YAML file, or a mapping as one would have it. Other arguments win over it."""
        return cls(config=config, **arguments)

    def model_label(self, model: str | None = None) -> str:
        """What the model is called in metadata and traces. model: the one of this call, if it has its own."""
        if model is not None or self.model is not None:
            return str(model or self.model)
        if self.client is not None:
            return str(self.client.info.name)
        if self.config is not None:
            settings = self._settings(None)
            return settings.model or (Path(settings.model_path).stem if settings.model_path else BUNDLED)
        return BUNDLED

    @property
    def slots(self) -> int | None:
        """Requests computed together; None = the server knows."""
        if self.client is not None:
            return int(self.client.info.n_batch)
        settings = self._settings(None)
        return None if settings.mode == "api" else settings.n_batch

    def context_size(self) -> int | None:
        """Tokens of prompt and answer together, found in the head of the model's file; None = not known."""
        if self.base_url is not None or self.client is not None:
            return None
        try:
            key = self._settings_key(None)
            settings = _settings(*key)
            if settings.mode == "api":
                return None
            return _context_size(key, _stamp(settings.model_path or settings.model or ""))
        except bitnet.BitNetError:
            return None

    def connection_identity(self, model: str | None = None) -> dict[str, Any]:
        """Everything here that can change an answer, for cache keys. A model file counts with its version."""
        name = model or self.model
        identity: dict[str, Any] = {"model": self.model_label(model), "bitnet": bitnet.__version__}
        if self.client is not None and model is None:
            return {**identity, "client": repr(self.client)}
        if self.base_url is not None:
            identity["base_url"] = self.base_url
        if name is not None and (stamp := _stamp(name)) is not None:
            identity["model_file"] = stamp
        if self.config is not None:
            identity["config"] = hashlib.sha256(repr(_config_key(self.config)).encode()).hexdigest()
        for field in (*_SCHEMA_FIELDS, "kv_tokens"):
            if (value := getattr(self, field)) is not None:
                identity[field] = value
        return identity

    @contextlib.contextmanager
    def connect(self, model: str | None = None) -> Iterator[BitNet]:
        """The model for one call. model: another one than this object's."""
        opened, shared = self._open(model)
        try:
            yield opened
        finally:
            if not shared:
                opened.close()

    @contextlib.asynccontextmanager
    async def aconnect(self, model: str | None = None) -> AsyncIterator[BitNet]:
        """`connect` for event loops."""
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
        settings = self._settings(model)
        if settings.mode == "api":
            return _client(settings), True
        opened = bitnet.BitNet.from_config(
            settings,
            lazy=True,
            keep_alive=-1 if self.keep_alive is None else self.keep_alive,
            kv_tokens=self.kv_tokens,
            max_waiting=self.max_waiting,
        )
        return opened, False

    def _settings(self, model: str | None) -> BitNetConfig:
        return _settings(*self._settings_key(model))

    def _settings_key(self, model: str | None) -> _Key:
        overrides: dict[str, Any] = {name: getattr(self, name) for name in _SCHEMA_FIELDS}
        if self.config is None:
            overrides["mode"] = "direct"
            if self.n_threads is None:
                overrides["n_threads"] = 0  # physical cores, like BitNet(); a configuration says 8
        if self.base_url is not None:
            overrides["mode"] = "api"
            overrides["base_url"] = self.base_url
        if self.api_key is not None and (self.base_url is not None or self.config is not None):
            overrides["api_key"] = self.api_key.get_secret_value()
        if self.timeout is not None:
            overrides["timeout"] = {"total": round(self.timeout * 1000)}
        if self.max_retries is not None:
            overrides["retry"] = {"enabled": self.max_retries > 0, "max_retries": self.max_retries}
        given = {name: value for name, value in overrides.items() if value is not None}
        return _config_key(self.config), json.dumps(given, sort_keys=True), model or self.model


def _config_key(config: str | Path | Mapping[str, Any] | None) -> tuple[Any, ...]:
    """Hashable, and another one once the file has changed."""
    if config is None:
        return ()
    if isinstance(config, Mapping):
        return ("mapping", json.dumps(config, sort_keys=True, default=str))
    return ("file", os.path.abspath(config), _stamp(config))


def _stamp(path: str | Path) -> tuple[int, int] | None:
    """Size and time of a file; None = there is no such file."""
    try:
        status = os.stat(os.path.expanduser(path))
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=128)
def _settings(config: tuple[Any, ...], overrides: str, model: str | None) -> BitNetConfig:
    """The configuration of one model. Reading a YAML file takes longer than a call may."""
    from bitnet.config import load

    given: dict[str, Any] = json.loads(overrides)
    # An empty mapping, because None would mean the file that $BITNET_CONFIG names.
    source: Any = {} if not config else json.loads(config[1]) if config[0] == "mapping" else config[1]
    if model is None:
        return load(source, **given)
    # A model that was asked for takes the place of the configuration's file.
    mapping = load(source, **given).to_mapping()
    mapping.pop("model_path", None)
    return load({**mapping, "model": model})


@functools.lru_cache(maxsize=128)
def _context_size(key: _Key, stamp: tuple[int, int] | None) -> int:
    """stamp: makes another file of the same name another question."""
    with bitnet.BitNet.from_config(_settings(*key), lazy=True) as model:
        return model.n_ctx


_clients: dict[int, tuple[BitNetConfig, BitNet]] = {}
_clients_lock = threading.Lock()


def _client(settings: BitNetConfig) -> BitNet:
    """The one connection of this process to a server, shared by all calls with the same settings."""
    with _clients_lock:
        # `_settings` gives the same object for the same settings; kept here, so that its id stays its own.
        known = _clients.get(id(settings))
        if known is None:
            while len(_clients) >= _MAX_CLIENTS:
                del _clients[next(iter(_clients))]
            known = _clients[id(settings)] = settings, bitnet.BitNet.from_config(settings)
        return known[1]


def _after_fork() -> None:
    """In a child process: sockets belong to the parent, and so may the lock's holder."""
    global _clients_lock
    _clients_lock = threading.Lock()
    _clients.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
