"""config.json of a Hugging Face folder: which known family it describes, and how its weights are stored.

What the configuration does not say is refused, not guessed, where a guess would change what is computed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from bitnet.errors import ConversionError

WeightScale = Literal["mul", "div"]

_MAX_CONFIG_BYTES: Final = 16 << 20
_MAX_JSON_BYTES: Final = 256 << 20  # tokenizers of 256,000 tokens have 30 MB
_MAX_SIZE: Final = 1 << 24  # of any dimension
# The classes of transformers, in whatever case: BitNetForCausalLM, BitnetForCausalLM.
_BITNET_CLASSES: Final = ("bitnetforcausallm", "bitnetmodel")
_LLAMA_CLASSES: Final = ("llamaforcausallm", "llamamodel")
_QWEN3_CLASSES: Final = ("qwen3forcausallm", "qwen3model")
_GEMMA3_CLASSES: Final = ("gemma3forcausallm", "gemma3textmodel")
# hidden_act -> activation; gelu without "tanh" is another function.
_ACTIVATIONS: Final = {"relu2": "relu2", "silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True, slots=True)
class HfConfig:
    """A model of a known family.

    architecture: its name in a GGUF file. latent: whether floating-point weights are declared to be rounded
    (absmean) whenever the model computes. weight_scale: whether the scale beside packed weights multiplies or
    divides; None = the configuration does not say. tied: None = whether there is lm_head.weight decides.
    """

    architecture: Literal["bitnet-b1.58", "bitnet", "llama", "qwen3", "gemma3"]
    n_layers: int
    hidden_size: int
    ffn_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope_base: float
    tied: bool | None
    latent: bool
    weight_scale: WeightScale | None
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None

    @property
    def is_embedding_model(self) -> bool:
        return self.architecture in ("qwen3", "gemma3")


def read_json(path: Path, max_bytes: int = _MAX_JSON_BYTES) -> Any:
    """Raises ConversionError if there is no such file, or it is too large or no JSON."""
    try:
        if path.stat().st_size > max_bytes:
            raise ConversionError(f"{path} has {path.stat().st_size} bytes; at most {max_bytes} are read")
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise ConversionError(f"{path.parent} has no {path.name}; it is not a Hugging Face folder") from None
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path} is not JSON: {error}") from None
    except OSError as error:
        raise ConversionError(f"cannot read {path}: {error.strerror}") from None


def read_object(path: Path, max_bytes: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    found = read_json(path, max_bytes)
    if not isinstance(found, dict):
        raise ConversionError(f"{path} must hold an object, not a {type(found).__name__}")
    return found


def looks_like_bitnet(path: Path) -> bool:
    """Whether a config.json is that of a model which `read_config` reads."""
    try:
        read_config(path)
    except ConversionError:
        return False
    return True


def read_config(path: Path, *, latent: bool = False) -> HfConfig:
    """latent: take floating-point weights for latent ones, whatever the configuration says.

    Raises ConversionError, which says what is not known or not supported.
    """
    config = read_object(path, _MAX_CONFIG_BYTES)
    family = _family(config, path)
    quantization = _quantization(config, path)
    activation = _activation(config, family, path)
    expected = {"llama": "silu", "qwen3": "silu", "gemma3": "gelu_tanh"}.get(family)
    if family == "bitnet":
        architecture = "bitnet-b1.58" if activation == "relu2" else "bitnet"
    else:
        architecture = family
    if (expected is not None and activation != expected) or activation == "gelu_tanh" != expected:
        raise ConversionError(f"{path}: models of this class with hidden_act {activation!r} are not known")
    _refuse_options(config, family, path)
    # Where a quantization_config says that weights are stored ternary, others are not meant to be rounded.
    declared = (
        quantization.get("quantization_mode") == "online"
        if quantization
        else family in ("bitnet", "qwen3", "gemma3") or config.get("weight_bits") == 1
    )
    if not declared and not quantization and not latent:
        raise ConversionError(
            f"{path}: this is not declared to be a BitNet model (no quantization_config with quant_method "
            "bitnet). If its weights are BitNet master weights all the same, say --latent"
        )
    hidden_size = _size(config, "hidden_size", path)
    n_heads = _size(config, "num_attention_heads", path)
    if "head_dim" not in config and hidden_size % n_heads:
        raise ConversionError(f"{path}: hidden_size {hidden_size} is no multiple of {n_heads} heads")
    context_length = _size(config, "max_position_embeddings", path)
    window = config.get("sliding_window")
    if family == "gemma3" and "sliding_attention" in (config.get("layer_types") or ()):
        # Within the window, attention to the window is attention to everything.
        if not isinstance(window, int) or window < 1:
            raise ConversionError(f"{path}: layers with sliding_attention need a sliding_window")
        context_length = min(context_length, window)
    return HfConfig(
        architecture=architecture,  # type: ignore[arg-type]
        n_layers=_size(config, "num_hidden_layers", path),
        hidden_size=hidden_size,
        ffn_size=_size(config, "intermediate_size", path),
        n_heads=n_heads,
        n_kv_heads=_size(config, "num_key_value_heads", path, n_heads),
        head_dim=_size(config, "head_dim", path, hidden_size // n_heads),
        vocab_size=_size(config, "vocab_size", path),
        context_length=context_length,
        norm_eps=_number(config, "rms_norm_eps", path, 0, 1),
        rope_base=_rope_base(config, path),
        tied=config.get("tie_word_embeddings") if family != "gemma3" else True,
        latent=declared or latent,
        weight_scale=_weight_scale(quantization),
        bos_id=_token_id(config.get("bos_token_id")),
        eos_ids=_token_ids(config.get("eos_token_id")),
        pad_id=_token_id(config.get("pad_token_id")),
    )


def _family(config: Mapping[str, Any], path: Path) -> Literal["bitnet", "llama", "qwen3", "gemma3"]:
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ConversionError(f"{path}: architectures must name one model class, not {names!r}")
    name = names[0].lower()
    if name in _BITNET_CLASSES:
        return "bitnet"
    if name in _LLAMA_CLASSES:
        return "llama"
    if name in _QWEN3_CLASSES:
        return "qwen3"
    if name in _GEMMA3_CLASSES:
        return "gemma3"
    raise ConversionError(
        f"{path}: models of class {names[0]!r} are not known; known are BitNetForCausalLM, LlamaForCausalLM, "
        "Qwen3Model and Gemma3TextModel"
    )


def _quantization(config: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    found = config.get("quantization_config")
    if found is None:
        return {}
    if not isinstance(found, dict) or found.get("quant_method") != "bitnet":
        method = found.get("quant_method") if isinstance(found, dict) else found
        raise ConversionError(
            f"{path}: weights quantised by {method!r} are not ternary; only 'bitnet' is read"
        )
    if found.get("linear_class", "bitlinear") not in ("bitlinear", "autobitlinear"):
        raise ConversionError(f"{path}: linear_class {found['linear_class']!r} is not known")
    if found.get("quantization_mode", "offline") not in ("offline", "online"):
        raise ConversionError(f"{path}: quantization_mode {found['quantization_mode']!r} is not known")
    if found.get("use_rms_norm"):
        raise ConversionError(
            f"{path}: linear layers with a norm of their own (use_rms_norm) are not supported"
        )
    kept = found.get("modules_to_not_convert")
    if kept is not None and not (isinstance(kept, list) and all(map(_is_dense, kept))):
        raise ConversionError(f"{path}: linear layers that are not ternary are not supported: {kept!r}"[:300])
    return found


def _is_dense(module: Any) -> bool:
    """Whether a module is none of the linear layers."""
    return isinstance(module, str) and not re.search(r"proj|layers|mlp|attn", module)


def _weight_scale(quantization: Mapping[str, Any]) -> WeightScale | None:
    """BitLinear divides by weight_scale, AutoBitLinear multiplies (transformers, integrations/bitnet.py)."""
    if not quantization:
        return None
    return "mul" if quantization.get("linear_class") == "autobitlinear" else "div"


def _activation(config: Mapping[str, Any], family: str, path: Path) -> str:
    name = config.get("hidden_act", config.get("hidden_activation"))
    if name is None:
        # What the class computes where its configuration does not say (transformers).
        if config.get("model_type") == "bitnet":
            return "relu2"
        defaults = {"llama": "silu", "qwen3": "silu", "gemma3": "gelu_tanh"}
        if family in defaults:
            return defaults[family]
        raise ConversionError(f"{path} does not say which activation the model has (hidden_act)")
    if family == "gemma3" and config.get("hidden_activation") is not None:
        name = config["hidden_activation"]
    if name not in _ACTIVATIONS:
        raise ConversionError(
            f"{path}: the activation {name!r} is not known; known: {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def _refuse_options(config: Mapping[str, Any], family: str, path: Path) -> None:
    for key in ("attention_bias", "mlp_bias", "use_bidirectional_attention"):
        if config.get(key):
            raise ConversionError(f"{path}: models with {key} are not supported")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key) is not None:
            raise ConversionError(f"{path}: models with {key} are not supported")
    if family != "gemma3" and config.get("use_sliding_window"):
        raise ConversionError(f"{path}: models with a sliding window are not supported")
    scalar = config.get("query_pre_attn_scalar")
    if scalar is not None and scalar != config.get("head_dim"):
        raise ConversionError(f"{path}: query_pre_attn_scalar {scalar!r} is not the head dimension")


def _rope_base(config: Mapping[str, Any], path: Path) -> float:
    scaling = config.get("rope_scaling")
    if scaling is not None:
        kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else scaling
        if kind != "default":
            raise ConversionError(f"{path}: rope scaling {kind!r} is not supported")
    parameters = config.get("rope_parameters")
    if isinstance(parameters, dict):
        each = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
        if any(one.get("rope_type", "default") != "default" for one in each):
            raise ConversionError(f"{path}: rope scaling {parameters!r} is not supported")
        bases = {one.get("rope_theta") for one in each}
        if len(bases) != 1:
            raise ConversionError(f"{path}: layers with different rope bases {bases} are not supported")
        config = {"rope_theta": bases.pop()}
    elif "rope_local_base_freq" in config and config["rope_local_base_freq"] != config.get("rope_theta"):
        raise ConversionError(f"{path}: layers with different rope bases are not supported")
    if config.get("rope_theta") is None:
        raise ConversionError(f"{path} does not say the base of the rotary embedding (rope_theta)")
    return _number(config, "rope_theta", path, 0, 1e12)


def _size(config: Mapping[str, Any], key: str, path: Path, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_SIZE:
        raise ConversionError(f"{path}: {key} must be a whole number from 1 to {_MAX_SIZE}, not {value!r}")
    return value


def _number(config: Mapping[str, Any], key: str, path: Path, above: float, below: float) -> float:
    value = config.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not above < value < below:
        raise ConversionError(f"{path}: {key} must be between {above:g} and {below:g}, not {value!r}")
    return float(value)


def _token_id(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _token_ids(value: Any) -> tuple[int, ...]:
    found = value if isinstance(value, list) else [value]
    return tuple(one for one in found if _token_id(one) is not None)
