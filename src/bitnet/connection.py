"""Connection: which model answers, in this process or on a server, as fields of a pydantic model.

The base of adapters to frameworks whose objects are pydantic models. An object loads nothing before it is
asked something, shares the loaded model with all who ask for the same, and can be pickled, copied and
re-configured.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, field_serializer

from bitnet.config import BitNetConfig, load
from bitnet.model import BitNet
from bitnet.models import bundled

if TYPE_CHECKING:
    from typing_extensions import Self

_SERVER_CONTEXT = 2048  # tokens; what a server is taken to have if nobody says
# Fields that are keys of the configuration schema, passed on as they are.
_SCHEMA_FIELDS = (
    "n_ctx",
    "n_threads",
    "n_batch",
    "kv_type",
    "speculate",
    "engine",
    "n_gpu_layers",
    "main_gpu",
    "low_vram",
    "use_mmap",
    "use_mlock",
    "quant_type",
    "use_pretuned",
    "kernel_params",
    "embd_type",
    "layout",
    "tl_config",
    "activation",
    "scales",
    "metadata_overrides",
)
_SECRET_KEYS = frozenset({"api_key"})


class _Slot:
    """What one object has opened. A copy of the object, or a pickle, opens for itself."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.settings: BitNetConfig | None = None
        self.model: BitNet | None = None

    def __reduce__(self) -> tuple[type[_Slot], tuple[()]]:
        return _Slot, ()

    def __eq__(self, other: object) -> bool:
        """Objects with the same fields are equal, whichever of them has been asked something."""
        return isinstance(other, _Slot)

    __hash__ = object.__hash__


class Connection(BaseModel):
    """The model, and where and how it is computed. None = as the configuration or `bitnet` has it.

    These fields are for the constructor; afterwards they cannot be assigned.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: str | None = Field(default=None, frozen=True)
    """Path of a GGUF file or a Hugging Face folder, a name of `bitnet list --remote`, or org/name[:file]
    (which are downloaded); with `base_url` the server's name for it. None = the model of `config`, else the
    one bundled with bitnet."""
    base_url: str | None = Field(default_factory=lambda: os.environ.get("BITNET_BASE_URL"), frozen=True)
    """An OpenAI-compatible server, such as `bitnet serve`; None = compute in this process. Default:
    $BITNET_BASE_URL."""
    api_key: SecretStr | None = Field(
        default_factory=lambda: _secret(os.environ.get("BITNET_API_KEY")),
        exclude=True,
        repr=False,
        frozen=True,
    )
    """The server's key. Default: $BITNET_API_KEY."""
    config: str | Path | dict[str, Any] | None = Field(default=None, repr=False, frozen=True)
    """A bitnet YAML file, or a mapping as one would have it. Other arguments win over it."""
    timeout: float | None = Field(default=None, ge=0, frozen=True)
    """Seconds an answer may take; 0 = no limit."""
    max_retries: int | None = Field(default=None, ge=0, frozen=True)
    """How often a server that cannot be reached or is too busy is asked again."""
    keep_alive: float | None = Field(default=300, frozen=True)
    """Seconds a model in this process stays loaded after the last object that uses it is gone or closed; None
    = until the process ends."""

    n_ctx: int | None = Field(default=None, frozen=True)
    """Tokens of prompt and answer together; 0 = the model's own limit. With `base_url`: what the server has,
    2048 if nobody says."""
    n_threads: int | None = Field(default=None, frozen=True)
    """Compute threads; 0 = physical cores."""
    n_batch: int | None = Field(default=None, frozen=True)
    """Requests computed together."""
    kv_tokens: int | None = Field(default=None, frozen=True)
    """Tokens whose keys and values are held for all requests together; None = for n_batch full contexts."""
    kv_type: str | None = Field(default=None, frozen=True)
    """What keys and values are kept as."""
    speculate: bool | None = Field(default=None, frozen=True)
    """Compute several tokens of an answer in one step where it repeats what stands before it."""
    max_waiting: int = Field(default=1024, frozen=True)
    """Requests that may wait for their turn."""
    engine: str | None = Field(default=None, frozen=True)
    """Who computes: auto, native or mlx."""
    n_gpu_layers: int | None = Field(default=None, frozen=True)
    main_gpu: int | None = Field(default=None, frozen=True)
    low_vram: bool | None = Field(default=None, frozen=True)
    use_mmap: bool | None = Field(default=None, frozen=True)
    use_mlock: bool | None = Field(default=None, frozen=True)
    quant_type: str | None = Field(default=None, frozen=True)
    use_pretuned: bool | None = Field(default=None, frozen=True)
    kernel_params: dict[str, Any] | None = Field(default=None, frozen=True)
    embd_type: str | None = Field(default=None, frozen=True)
    layout: str | None = Field(default=None, frozen=True)
    tl_config: str | None = Field(default=None, frozen=True)
    activation: str | None = Field(default=None, frozen=True)
    scales: str | None = Field(default=None, frozen=True)
    metadata_overrides: dict[str, Any] | None = Field(default=None, frozen=True)

    client: Any = Field(default=None, exclude=True, repr=False, frozen=True)
    """A bitnet.BitNet of your own to ask instead, such as BitNet.from_engine(FakeEngine(...)) in a test. It
    is used as it is and never closed; the fields above then do not count."""

    _slot: _Slot = PrivateAttr(default_factory=_Slot)

    @classmethod
    def from_config(cls, config: str | Path | dict[str, Any], **arguments: Any) -> Self:
        """With a bitnet YAML file, or a mapping as one would have it. Other arguments win over it."""
        return cls(config=config, **arguments)

    def connect(self) -> BitNet:
        """The model. Nothing is loaded by that, and no server is asked.

        Raises ConfigError and ModelNotFoundError.
        """
        if self.client is not None:
            result: BitNet = self.client
            return result
        settings = self.settings
        with self._slot.lock:
            if self._slot.model is None:
                self._slot.model = BitNet.from_config(
                    settings,
                    kv_tokens=self.kv_tokens,
                    max_waiting=self.max_waiting,
                    keep_alive=-1 if self.keep_alive is None else self.keep_alive,
                    lazy=True,
                )
            return self._slot.model

    def disconnect(self) -> None:
        """Give the model back; answers under way end with EngineClosedError. The next use connects again."""
        with self._slot.lock:
            model, self._slot.model = self._slot.model, None
        if model is not None:
            model.close()

    @property
    def settings(self) -> BitNetConfig:
        """The configuration that `config` and the other fields make together. Raises ConfigError."""
        with self._slot.lock:
            if self._slot.settings is None:
                self._slot.settings = self._load_settings()
            return self._slot.settings

    @property
    def label(self) -> str:
        """What the model is called. Nothing is loaded for it."""
        if self.client is not None:
            return str(self.client.info.name)
        if self.model is not None:
            return self.model
        if self.config is None:
            return bundled.NAME
        settings = self.settings
        return settings.model or (Path(settings.model_path).stem if settings.model_path else bundled.NAME)

    def context_size(self) -> int:
        """Tokens of prompt and answer together. Nothing is loaded for it but a file's header."""
        if self.client is None and self.settings.mode == "api":
            settings = self.settings
            if settings.given("n_ctx"):
                return settings.n_ctx or _SERVER_CONTEXT
            return settings.context_window or _SERVER_CONTEXT
        return self.connect().n_ctx

    def has_chat_template(self) -> bool:
        """Whether conversations can be told to it. Of a server, that is taken for granted."""
        if self.client is None and self.settings.mode == "api":
            return True
        return self.connect().has_chat_template

    def _load_settings(self) -> BitNetConfig:
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
        # An empty mapping, because None would mean the file that $BITNET_CONFIG names.
        source = {} if self.config is None else self.config
        given = {name: value for name, value in overrides.items() if value is not None}
        if self.model is None:
            return load(source, **given)
        # A model that was asked for takes the place of the configuration's file.
        mapping = load(source, **given).to_mapping()
        mapping.pop("model_path", None)
        return load({**mapping, "model": self.model})

    @field_serializer("config")
    def _config_without_secrets(self, config: Any) -> Any:
        return _without_secrets(config)

    def __copy__(self) -> Self:
        """Also for `model_copy(update=...)`: it opens for itself, because it may ask for another model."""
        copy = super().__copy__()
        copy._slot = _Slot()
        return copy

    def __getstate__(self) -> dict[Any, Any]:
        if self.client is not None:
            raise TypeError(f"a {type(self).__name__} with a client of your own cannot be pickled")
        state: dict[Any, Any] = super().__getstate__()
        return state


def _secret(value: str | None) -> SecretStr | None:
    return None if value is None else SecretStr(value)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_secrets(entry) for key, entry in value.items() if key not in _SECRET_KEYS}
    return str(value) if isinstance(value, Path) else value
