"""Which server it is, and what it can do, read from what it tells of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bitnet.errors import ValidationError
from bitnet.values import ModelInfo

ServerKind = Literal["bitnet", "llama-server", "vllm", "openai"]

_TITLES: dict[ServerKind, str] = {
    "bitnet": "bitnet serve",
    "llama-server": "llama-server",
    "vllm": "vLLM",
    "openai": "an OpenAI-compatible server",
}


@dataclass(frozen=True)
class Server:
    """A server, and the model there that is asked.

    root, api: URLs without and with the prefix of the OpenAI API. model: what requests name; None = nothing.
    Sizes are 0 where the server does not tell them. modern: of a llama-server, whether it is one of 2025 or
    later, which knows tools, log-probabilities in OpenAI's shape and /apply-template; bitnet.cpp's is older.
    """

    kind: ServerKind
    root: str
    api: str
    model: str | None
    n_ctx: int = 0
    context_length: int = 0
    vocab_size: int = 0
    hidden_size: int = 0
    n_parameters: int = 0
    n_batch: int = 0
    modern: bool = True
    architecture: str = ""
    has_chat_template: bool = True

    @property
    def title(self) -> str:
        """What error messages call it."""
        title = _TITLES[self.kind]
        return title if self.modern else f"{title} of an older version"

    @property
    def has_tokenizer(self) -> bool:
        """Whether it has /tokenize and /detokenize."""
        return self.kind != "openai"

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name=self.model or "",
            path=self.root,
            architecture=self.architecture,
            activation="",
            n_parameters=self.n_parameters,
            n_layers=0,
            hidden_size=self.hidden_size,
            ffn_size=0,
            n_heads=0,
            n_kv_heads=0,
            head_dim=0,
            vocab_size=self.vocab_size,
            tied_head=False,
            context_length=self.context_length or self.n_ctx,
            n_ctx=self.n_ctx,
            n_batch=self.n_batch,
            n_threads=0,
            kernels=self.title,
            ternary_bytes=0,
            head_bytes=0,
            kv_bytes=0,
            has_chat_template=self.has_chat_template,
            pooling=None,
            repairs=(),
            warnings=(f"computed by {self.title} at {self.root}; what it does not tell is 0 or empty here",),
        )


def identify(root: str, api: str, wanted: str | None, models: Any, props: Any, product: str = "") -> Server:
    """The server behind two of its answers: to GET /v1/models and to llama-server's GET /props.

    models, props: JSON values; None = it has no such path. product: its Server header.
    Raises ValidationError if it has several models and none is wanted.
    """
    entries = _entries(models)
    properties = props if isinstance(props, Mapping) else {}
    entry = _choose(entries, wanted)
    owner = entry.get("owned_by")
    told = entry.get("meta")
    meta: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    model = wanted or entry.get("id") or None
    if owner in ("bitnet", "bitnet-cpp") or product.startswith("bitnet"):
        return Server(
            "bitnet",
            root,
            api,
            model,
            n_ctx=_size(meta, "n_ctx"),
            context_length=_size(meta, "n_ctx_train"),
            vocab_size=_size(meta, "n_vocab"),
            hidden_size=_size(meta, "n_embd"),
            n_parameters=_size(meta, "n_params"),
            n_batch=_size(meta, "n_batch"),
            architecture=str(meta.get("architecture") or ""),
            has_chat_template=meta.get("has_chat_template") is not False,
        )
    settings = properties.get("default_generation_settings")
    if isinstance(settings, Mapping) or owner == "llamacpp":
        settings = settings if isinstance(settings, Mapping) else {}
        return Server(
            "llama-server",
            root,
            api,
            model,
            n_ctx=_size(settings, "n_ctx"),
            context_length=_size(meta, "n_ctx_train"),
            vocab_size=_size(meta, "n_vocab"),
            hidden_size=_size(meta, "n_embd"),
            n_parameters=_size(meta, "n_params"),
            n_batch=_size(properties, "total_slots"),
            modern="build_info" in properties,
        )
    if owner == "vllm":
        return Server("vllm", root, api, model, n_ctx=_size(entry, "max_model_len"))
    if model is None:
        raise ValidationError(
            f"the server at {root} does not list its models; say which one with model=...", field="model"
        )
    return Server("openai", root, api, model)


def _entries(models: Any) -> Sequence[Mapping[str, Any]]:
    data = models.get("data") if isinstance(models, Mapping) else None
    return [entry for entry in data if isinstance(entry, Mapping)] if isinstance(data, list) else []


def _choose(entries: Sequence[Mapping[str, Any]], wanted: str | None) -> Mapping[str, Any]:
    """The entry of the wanted model; if it is not listed, one that tells as much of the server."""
    if wanted is None and len(entries) > 1:
        names = ", ".join(repr(entry.get("id")) for entry in entries[:20])
        raise ValidationError(
            f"the server has several models; choose one with model=...: {names}", field="model"
        )
    for entry in entries:
        if wanted in (None, entry.get("id")):
            return entry
    # A llama-server answers for whatever name it is asked; of others only the kind is known.
    first = entries[0] if entries else {}
    if first.get("owned_by") == "llamacpp" and len(entries) == 1:
        return first
    return {"owned_by": first.get("owned_by")}


def _size(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
