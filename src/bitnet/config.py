"""The bitnet YAML schema: every key, its type, range and default, and what an engine is told of it.

`load` reads a file or a mapping; `config/bitnet.yaml` explains the keys to users, and
`config/bitnet.schema.json`, made by `python -m bitnet.config`, to editors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic import ValidationError as PydanticError

from bitnet.config_source import KeyPath, Source, read
from bitnet.errors import ConfigError, ModelNotFoundError
from bitnet.models import reference
from bitnet.values import (
    MAX_STOP_STRINGS,
    Activation,
    EmbdType,
    EngineChoice,
    KvType,
    Layout,
    QuantType,
    Scales,
    nearest,
)

ENVIRONMENT = "BITNET_CONFIG"
MAX_PROBLEMS = 5  # told at once
DEFAULT_N_CTX = 2048

ConfigLike = str | os.PathLike[str] | Mapping[str, Any]


def _no_flag(value: Any) -> Any:
    """`yes` and `true` are no numbers, though Python would count with them."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Integer = Annotated[int, BeforeValidator(_no_flag)]
Number = Annotated[float, BeforeValidator(_no_flag)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_means_default(cls, data: Any) -> Any:
        """`key:` and `key: null` are as good as no key."""
        if isinstance(data, Mapping):
            return {key: value for key, value in data.items() if value is not None}
        return data


class KernelParams(_Block):
    """Tile sizes of the ternary kernels, and what Orbit has no key for."""

    enable_custom: bool = Field(
        default=False, description="Use the tile sizes below instead of the tuned ones."
    )
    table_min_tokens: Integer | None = Field(
        default=None,
        ge=0,
        le=2**20,
        description="Tokens computed together from which on products look up tables; 1: always, 0: never.",
    )
    row_block: Integer | None = Field(
        default=None,
        ge=32,
        le=2560,
        multiple_of=32,
        description="Rows whose sums a table lookup keeps at hand.",
    )
    pieces_per_thread: Integer | None = Field(
        default=None, ge=1, le=64, description="Pieces a multiply-add product is cut into for each thread."
    )
    stream: Literal["incremental", "eager"] = Field(
        default="incremental",
        description="How bitnet.BitNetInference streams; eager: the whole answer is made before the first "
        "piece, so that an event loop that iterates the stream never waits.",
    )
    seed: Integer | None = Field(
        default=None,
        ge=-(2**63),
        lt=2**64,
        description="The same seed gives the same answers; left out: random.",
    )

    @property
    def tile_sizes(self) -> dict[str, int]:
        """Those that were given."""
        names = ("table_min_tokens", "row_block", "pieces_per_thread")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class Timeout(_Block):
    """Milliseconds; 0 = no limit."""

    connect: Integer = Field(default=10000, ge=0, le=10**9, description="To reach the server (mode api).")
    total: Integer = Field(
        default=120000,
        ge=0,
        le=10**9,
        description="For a whole answer. In mode direct only if it is written, because an answer that is "
        "being computed is not stuck.",
    )


class Retry(_Block):
    """Of requests that never reached the server, or that it was too busy for (mode api)."""

    enabled: bool = Field(default=True, description="Whether to try again at all.")
    max_retries: Integer = Field(default=3, ge=0, le=100, description="Attempts after the first.")
    initial_wait_ms: Integer = Field(default=1000, ge=0, le=10**7, description="Before the first of them.")
    max_wait_ms: Integer = Field(default=30000, ge=0, le=10**7, description="Between two attempts at most.")
    exponential_base: Number = Field(default=2, ge=1, le=100, description="Each wait is this much longer.")
    jitter: bool = Field(
        default=True, description="Waits differ at random, so that clients do not come together."
    )


class BitNetConfig(_Block):
    """The bitnet block of a configuration file. Immutable; made by `load`, or from keyword arguments."""

    mode: Literal["direct", "api"] = Field(
        default="direct", description="direct: a model file, in this process. api: a server at base_url."
    )
    model_path: str | None = Field(
        default=None,
        min_length=1,
        description="The model (mode direct): a GGUF file, a Hugging Face folder, or a name that bitnet list "
        "--remote shows or org/name[:file], which is downloaded. A relative path is looked up beside the "
        "configuration file, then in the working directory. Left out: `model`, else the model bundled with "
        "the package.",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        description="The model's name: what an api server is asked for; in mode direct a label, or the model "
        "itself if there is no model_path.",
    )
    quant_type: QuantType = Field(
        default="i2_s",
        description="How ternary products are computed. i2_s: multiply-add, except that prompts look up "
        "tables where that is faster on this processor. tl1: always table lookup. The output is the same.",
    )
    use_pretuned: bool = Field(
        default=True,
        description="true: tile sizes shipped for this processor, else safe ones. false: measured once here.",
    )
    quant_embd: bool = Field(default=False, description="Embedding and output head are kept as f16.")
    embd_type: EmbdType | None = Field(
        default=None,
        description="What they are kept as, exactly; before quant_embd. Left out: as in the file.",
    )
    layout: Layout | None = Field(
        default=None,
        description="How the file's ternary tensors are laid out, where it does not say. I2_S: x128 (the "
        "default), arm64, row4. TL1: preset. auto: found out by computing, once.",
    )
    tl_config: str | None = Field(
        default=None,
        min_length=1,
        description="The kernel_config.ini a TL1 or TL2 file was made with; a relative path is looked up as "
        "model_path is.",
    )
    activation: Activation | None = Field(
        default=None,
        description="Of the feed-forward network, where the architecture's name stands for both: relu2 or "
        "silu.",
    )
    scales: Scales | None = Field(
        default=None,
        description="Whether the file's scales multiply or divide; auto: found out. Left out: multiply, or "
        "auto with layout: auto.",
    )
    metadata_overrides: dict[str, str | int | bool] = Field(
        default={},
        description="What is known better than by the file, such as tokenizer.ggml.pre: llama-bpe.",
    )
    n_ctx: Integer = Field(
        default=DEFAULT_N_CTX,
        ge=0,
        lt=2**31,
        description="Tokens of prompt and answer together; 0: the model's own limit. More than that is an "
        "error, but 2048 stands for the limit if that is smaller.",
    )
    n_threads: Integer = Field(
        default=8, ge=0, le=1024, description="Compute threads; 0: physical cores, and never more than those."
    )
    n_batch: Integer = Field(
        default=2,
        ge=1,
        le=256,
        description="Requests computed together; memory for keys and values grows with it.",
    )
    kv_type: KvType = Field(
        default="f16", description="How keys and values are kept; q8_0: in half the memory."
    )
    speculate: bool = Field(
        default=True,
        description="Guess tokens that repeat the prompt or the answer, several a step. The output is the "
        "same.",
    )
    engine: EngineChoice = Field(
        default="auto",
        description="Who computes (mode direct). auto: native, or mlx on Apple silicon if n_gpu_layers is "
        "not 0. mlx and llama_cpp (llama.cpp, also for models that are no BitNet) need the extras mlx and "
        "llama-cpp.",
    )
    n_gpu_layers: Integer = Field(
        default=0,
        ge=-1,
        lt=2**31,
        description="Layers on an NVIDIA GPU; 0: none, -1: all. Refused by builds without the CUDA library.",
    )
    main_gpu: Integer = Field(default=0, ge=0, lt=1024, description="Which GPU.")
    low_vram: bool = Field(
        default=False, description="Keep keys, values, embedding and head in the host's memory."
    )
    use_mmap: bool = Field(
        default=True,
        description="Map weights from the file and from the cache folder, shared between processes.",
    )
    use_mlock: bool = Field(default=False, description="Keep the weights from being swapped out.")
    kernel_params: KernelParams = Field(default=KernelParams(), description=KernelParams.__doc__)
    temperature: Number = Field(default=0.7, ge=0, le=100, description="0: always the likeliest token.")
    top_p: Number = Field(
        default=0.9, gt=0, le=1, description="Choose among the likeliest that together have this probability."
    )
    top_k: Integer = Field(
        default=40, ge=0, lt=2**31, description="Choose among this many likeliest; 0: all."
    )
    max_tokens: Integer = Field(default=1024, ge=1, lt=2**31, description="Tokens of an answer at most.")
    stream: bool = Field(default=True, description="Whether answers are shown while they are made.")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        max_length=MAX_STOP_STRINGS,
        description="Texts that end an answer, and are not part of it.",
    )
    base_url: str = Field(
        default="http://localhost:8080",
        pattern=r"^https?://[^/\s]+",
        description="The server (mode api): bitnet serve, or any OpenAI-compatible one.",
    )
    api_key: SecretStr | None = Field(default=None, description="Its key, if it wants one.")
    timeout: Timeout = Field(default=Timeout(), description=Timeout.__doc__)
    retry: Retry = Field(default=Retry(), description=Retry.__doc__)
    verbose: bool = Field(
        default=False, description="Log everything that happens; so does BITNET_VERBOSE=1 in the environment."
    )
    enabled: bool = Field(default=True, description="Read by Orbit, which skips the provider if it is false.")
    context_window: Integer | None = Field(
        default=None,
        ge=0,
        lt=2**31,
        description="Orbit's other name for n_ctx, which wins if both are given.",
    )

    # Set by `load`: what it read, and what won over that. None: made from keyword arguments.
    _source: Source | None = PrivateAttr(default=None)
    _overrides: dict[str, Any] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """By value, wherever it came from."""
        return isinstance(other, BitNetConfig) and self.model_dump() == other.model_dump()

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def given(self, *path: str) -> bool:
        """Whether a key was written, such as given("timeout", "total")."""
        block: Any = self
        for key in path:
            if key not in block.model_fields_set:
                return False
            block = getattr(block, key)
        return True

    def generate_options(self) -> dict[str, Any]:
        """What calls of generate, chat and their siblings that say nothing else are answered with."""
        options: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "max_tokens": self.max_tokens,
            "stop": self.stop,
        }
        if self.kernel_params.seed is not None:
            options["seed"] = self.kernel_params.seed
        return options

    def direct_options(self) -> dict[str, Any]:
        """The keyword arguments of bitnet.BitNet (mode direct). Raises ModelNotFoundError."""
        n_ctx: int | None = self.n_ctx
        if self.context_window is not None and not self.given("n_ctx"):
            n_ctx = self.context_window
        if n_ctx == DEFAULT_N_CTX:
            n_ctx = None  # or less, if the model was made for less
        params = self.kernel_params
        return {
            "model": self._model_file(),
            "n_ctx": n_ctx,
            "n_threads": self.n_threads,
            "n_batch": self.n_batch,
            "kv_type": self.kv_type,
            "speculate": self.speculate,
            "use_mmap": self.use_mmap,
            "use_mlock": self.use_mlock,
            "quant_type": self.quant_type,
            "use_pretuned": self.use_pretuned,
            "kernel_params": params.tile_sizes if params.enable_custom else {},
            "embd_type": self.embd_type or ("f16" if self.quant_embd else None),
            "engine": self.engine,
            "layout": self.layout,
            "tl_config": None if self.tl_config is None else self._file("tl_config", self.tl_config),
            "activation": self.activation,
            "scales": self.scales,
            "metadata_overrides": self.metadata_overrides,
            "n_gpu_layers": self.n_gpu_layers,
            "main_gpu": self.main_gpu,
            "low_vram": self.low_vram,
            "timeout": self.timeout.total / 1000 if self.given("timeout", "total") else 0,
            "defaults": self.generate_options(),
        }

    def server_options(self) -> dict[str, Any]:
        """The keyword arguments of bitnet.BitNet (mode api)."""
        return {
            "base_url": self.base_url,
            "model": self.model,
            "api_key": None if self.api_key is None else self.api_key.get_secret_value(),
            "timeout": self.timeout.model_dump(),
            "retry": self.retry.model_dump(),
            "defaults": self.generate_options(),
        }

    def to_mapping(self) -> dict[str, Any]:
        """What was given, for `load` to make the same again; api_key in the clear."""
        values = self.model_dump(mode="json", exclude_unset=True)
        if self.api_key is not None:
            values["api_key"] = self.api_key.get_secret_value()
        return values

    def _model_file(self) -> str | None:
        return self.model if self.model_path is None else self._file("model_path", self.model_path)

    def _file(self, key: str, name: str) -> str:
        """The file that the value of a key means."""
        file = None if self._source is None or key in self._overrides else self._source.file
        if file is None:
            return name
        # A relative path is looked up beside the configuration file, then in the working directory.
        path = Path(name).expanduser()
        for candidate in (file.parent / path, path.absolute()):
            if candidate.exists():
                return str(candidate)
        if key == "model_path" and reference.is_known(name):
            return name
        where = "" if path.is_absolute() else f" beside that file or in {os.getcwd()}"
        assert self._source is not None
        what = "model file" if key == "model_path" else "file"
        raise ModelNotFoundError(f"{self._source.place((key,))}: there is no {what} {name!r}{where}")


def load(source: ConfigLike | BitNetConfig | None = None, **overrides: Any) -> BitNetConfig:
    """Read a configuration: a YAML file, or a mapping as one would have it.

    source: None = the file that $BITNET_CONFIG names, or nothing but defaults. The block may stand alone,
        under `bitnet:` or under `inference: bitnet:`. ${NAME} and ${NAME:-default} are replaced from the
        environment.
    overrides: keys that win over those of the source; None = not given.
    Raises ConfigError, which names file, line and key of up to five problems.
    """
    if source is None:
        source = os.environ.get(ENVIRONMENT) or {}
    given = {key: value for key, value in overrides.items() if value is not None}
    if isinstance(source, BitNetConfig):
        found = source._source or Source(source.to_mapping())
        given = _merge(source._overrides, given)
    else:
        found = read(source)
    try:
        config = BitNetConfig.model_validate(_merge(found.values, given))
    except PydanticError as error:
        raise ConfigError("; ".join(_problems(error, found, given))) from None
    config._source, config._overrides = found, given
    return config


def _merge(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in given.items():
        below = merged.get(key)
        merged[key] = {**below, **value} if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def _problems(error: PydanticError, source: Source, given: Mapping[str, Any]) -> Iterator[str]:
    problems = error.errors(include_url=False, include_context=False)
    for problem in problems[:MAX_PROBLEMS]:
        path = tuple(str(part) for part in problem["loc"])
        place = f"option {'.'.join(path)}" if path and path[0] in given else source.place(path)
        yield f"{place}: {_explain(problem, path)}"
    if len(problems) > MAX_PROBLEMS:
        yield f"and {len(problems) - MAX_PROBLEMS} more"


def _explain(problem: Mapping[str, Any], path: KeyPath) -> str:
    if problem["type"] == "extra_forbidden":
        known = _fields_at(path[:-1])
        return f"unknown key; {nearest(path[-1], known)}"
    if problem["type"] == "string_pattern_mismatch":
        message = "must be a URL such as http://localhost:8080"
    else:
        message = re.sub(r"^(Input|Value|String|Tuple) should ", "should ", problem["msg"])
        message = message.removeprefix("Value error, ").replace("should ", "must ")
    shown = "" if path == ("api_key",) else f", not {_shorten(problem['input'])}"
    return message + shown


_BLOCKS: dict[str, type[BaseModel]] = {"kernel_params": KernelParams, "timeout": Timeout, "retry": Retry}


def _fields_at(path: KeyPath) -> list[str]:
    block: type[BaseModel] = BitNetConfig
    for key in path:
        block = _BLOCKS[key]
    return list(block.model_fields)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def json_schema() -> dict[str, Any]:
    """The schema for editors: of the block alone, under `bitnet:` and under `inference: bitnet:`."""
    block = BitNetConfig.model_json_schema(ref_template="#/$defs/{model}")
    definitions = block.pop("$defs")
    definitions["BitNetConfig"] = block
    for definition in definitions.values():
        for name, entry in definition["properties"].items():
            definition["properties"][name] = _or_variable(entry)
    reference = {"$ref": "#/$defs/BitNetConfig"}

    def holder(key: str, value: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "required": [key], "properties": {key: value}}

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bitnet-cpp configuration",
        "type": "object",
        "if": {"required": ["inference"]},
        "then": holder("inference", holder("bitnet", reference)),
        "else": {"if": {"required": ["bitnet"]}, "then": holder("bitnet", reference), "else": reference},
        "$defs": definitions,
    }


def _or_variable(entry: dict[str, Any]) -> dict[str, Any]:
    """A value may also be left empty or come from the environment."""
    kept: dict[str, Any] = {
        key: entry.pop(key) for key in ("title", "description", "default") if key in entry
    }
    choices = entry.pop("anyOf", None) or [entry]
    choices = [choice for choice in choices if choice != {"type": "null"}]
    variable = {"type": "string", "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}"}
    return {**kept, "anyOf": [*choices, {"type": "null"}, variable]}


if __name__ == "__main__":
    import json

    print(json.dumps(json_schema(), indent=2))
