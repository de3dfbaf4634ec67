"""The models this project knows: what they are called, where they are published, what they are.

The facts are in catalog.json, from the models' own files, configurations and cards. What is not known for
certain is left out there.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME = r"[a-z0-9]+(?:[.-][a-z0-9]+)*"
REPOSITORY = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}"

PrefixKind = Literal["query", "document"]
Count = Annotated[int, Field(gt=0)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Dimensions(_Record):
    """Of the published model. head_dim: dimensions of one attention head. rope_base: of the rotary position
    embedding."""

    n_layers: Count
    hidden_size: Count
    n_heads: Count
    n_kv_heads: Count
    head_dim: Count
    ffn_size: Count
    vocab_size: Count
    context_length: Count | None = None
    tied_head: bool
    activation: Literal["relu2", "silu", "gelu_tanh"]
    rope_base: float = Field(gt=0)
    norm_eps: float = Field(gt=0, lt=1)


class CatalogModel(_Record):
    """A published model.

    name: the short one, to be used wherever a model is named. file: which of the repository's files; None =
    a folder of safetensors. storage: gguf; packed: ternary safetensors; latent: weights that are rounded to
    ternary when they are converted. n_bytes: size of the file; about_bytes: where only the order is known.
    chat_format: how messages are put to it; None = it only continues text, or its files say how.
    embedding_prefixes: words that belong before a text, by its kind, if it makes vectors.
    """

    name: str = Field(pattern=f"^{NAME}$")
    title: str
    repository: str = Field(pattern=f"^{REPOSITORY}$")
    file: str | None = None
    storage: Literal["gguf", "packed", "latent"]
    n_bytes: Count | None = None
    about_bytes: Count | None = None
    licence: str | None = None
    architecture: Literal["bitnet-b1.58", "bitnet", "llama", "qwen3", "gemma3"]
    chat_format: Literal["bitnet-2b-4t", "llama3", "falcon3"] | None = None
    pooling: Literal["mean", "last"] | None = None
    embedding_prefixes: dict[PrefixKind, str] = {}
    dimensions: Dimensions | None = None
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> CatalogModel:
        if (self.file is not None) != (self.storage == "gguf"):
            raise ValueError(f"{self.name}: a gguf model has a file, a folder of safetensors has none")
        if self.n_bytes is not None and self.about_bytes is not None:
            raise ValueError(f"{self.name}: n_bytes is exact, about_bytes is not: one of them")
        return self

    @property
    def reference(self) -> str:
        """org/name[:file]"""
        return self.repository if self.file is None else f"{self.repository}:{self.file}"


class _Catalog(_Record):
    models: tuple[CatalogModel, ...]

    @model_validator(mode="after")
    def _unique(self) -> _Catalog:
        for what in ([model.name for model in self.models], [model.reference for model in self.models]):
            if len(set(what)) != len(what):
                raise ValueError(f"the catalog has something twice: {sorted(what)}")
        return self


@functools.cache
def known_models() -> tuple[CatalogModel, ...]:
    """All of them, in the order of the catalog."""
    text = Path(__file__).with_name("catalog.json").read_text(encoding="utf-8")
    return _Catalog.model_validate(json.loads(text)).models


def named(name: str) -> CatalogModel | None:
    """The model with this short name, in whatever case."""
    return next((model for model in known_models() if model.name == name.lower()), None)


class Sizes(Protocol):
    """What a loaded model says of itself."""

    @property
    def architecture(self) -> str: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def ffn_size(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


def identify(model: Sizes) -> CatalogModel | None:
    """The known model with this architecture and these sizes, whatever its file is called."""
    for known in known_models():
        sizes = known.dimensions
        if sizes is not None and (
            known.architecture == model.architecture
            and (sizes.n_layers, sizes.hidden_size, sizes.ffn_size, sizes.n_heads, sizes.vocab_size)
            == (model.n_layers, model.hidden_size, model.ffn_size, model.n_heads, model.vocab_size)
        ):
            return known
    return None


def embedding_prefixes(metadata: Mapping[str, Any]) -> dict[PrefixKind, str]:
    """Words that belong before a text, by its kind ("query", "document"), in a model with this metadata.

    They are in the file (bitnet.embedding_prefix.query), or the file is of a model in the catalog, going by
    its name (general.name) and architecture.
    """
    found: dict[PrefixKind, str] = {}
    for kind in get_args(PrefixKind):
        text = metadata.get(f"bitnet.embedding_prefix.{kind}")
        if isinstance(text, str):
            found[kind] = text
    if found:
        return found
    name = str(metadata.get("general.name", "")).lower()
    for model in known_models():
        published_as = model.repository.rsplit("/", 1)[1].lower()
        if model.architecture == metadata.get("general.architecture") and published_as in name:
            return dict(model.embedding_prefixes.items())
    return {}


def published_at(repository: str) -> CatalogModel | None:
    """The model that this repository holds."""
    wanted = repository.lower()
    return next((model for model in known_models() if model.repository.lower() == wanted), None)
