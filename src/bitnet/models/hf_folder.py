"""Hugging Face folders as model sources: config.json, tokenizer and safetensors of every published family.

Weights that are ternary already keep their codes and their scale, whether packed or in floating point; latent
ones are rounded as the model does it (absmean). Tensors are read one at a time, in pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import ConversionError
from bitnet.models import catalog, safetensors_file
from bitnet.models.gguf_writer import Kind, TensorType
from bitnet.models.hf_config import HfConfig, WeightScale, read_config, read_json, read_object
from bitnet.models.hf_tokenizer import read_tokenizer
from bitnet.models.latent import to_ternary
from bitnet.models.model_source import DenseTensor, ModelSource, TernaryTensor
from bitnet.models.safetensors_file import StoredTensor

_LINEAR: Final = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS: Final = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
# By architecture; what is not here is not in the model. 1bitLLM has names of its own for the same two.
_SUB_NORMS: Final = {
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "self_attn.inner_attn_ln": "attn_sub_norm",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "mlp.ffn_layernorm": "ffn_sub_norm",
}
_INPUT_NORMS: Final = {f"{name}.norm": f"{stem}_norm_in" for name, stem in _LINEAR.items()}
_HEAD_NORMS: Final = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_GEMMA_NORMS: Final = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_LAYER: Final = re.compile(r"layers\.(\d{1,4})\.(.+)")
_POOLING: Final = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}
_LAST_TOKEN: Final = 3


def read_folder(
    folder: Path, *, name: str | None = None, latent: bool = False, weight_scale: WeightScale | None = None
) -> ModelSource:
    """A folder with config.json, a tokenizer and safetensors.

    name: of the model; None = the folder's. latent: floating-point weights are latent, whatever the
    configuration says. weight_scale: whether the scales of packed weights multiply or divide, whatever the
    configuration says. Raises ConversionError for what is damaged, unknown, or not BitNet.
    """
    config = read_config(folder / "config.json", latent=latent)
    stored = safetensors_file.read_folder(folder)
    name = name or folder.resolve().name
    reader = _Reader(folder, config, stored, weight_scale or config.weight_scale)
    ternary, dense = reader.tensors()
    metadata = _model_metadata(config, name)
    tokenizer = read_tokenizer(folder, config)
    notes: list[str] = []
    if config.is_embedding_model:
        pooling, note = _pooling(folder)
        metadata[f"{config.architecture}.pooling_type"] = (pooling, "u32")
        metadata |= {f"bitnet.embedding_prefix.{kind}": (text, "string") for kind, text in _prompts(folder)}
        notes += note
    return ModelSource(metadata | tokenizer, ternary, dense, notes)


def _model_metadata(config: HfConfig, name: str) -> dict[str, tuple[Any, Kind]]:
    arch = config.architecture
    metadata: dict[str, tuple[Any, Kind]] = {
        "general.architecture": (arch, "string"),
        "general.name": (name.rsplit("/", 1)[-1], "string"),
    }
    entry = catalog.published_at(name)
    if entry is not None and entry.licence is not None:
        metadata["general.license"] = (entry.licence, "string")
    sizes = {
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
        "embedding_length": config.hidden_size,
        "block_count": config.n_layers,
        "feed_forward_length": config.ffn_size,
        "rope.dimension_count": config.head_dim,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
    }
    metadata |= {f"{arch}.{key}": (value, "u32") for key, value in sizes.items()}
    metadata[f"{arch}.attention.layer_norm_rms_epsilon"] = (config.norm_eps, "f32")
    metadata[f"{arch}.rope.freq_base"] = (config.rope_base, "f32")
    return metadata


def _pooling(folder: Path) -> tuple[int, list[str]]:
    """pooling_type, from modules.json of sentence-transformers, and what to say of it."""
    modules = read_json(folder / "modules.json") if (folder / "modules.json").exists() else []
    for module in modules if isinstance(modules, list) else []:
        if isinstance(module, dict) and str(module.get("type", "")).endswith("Pooling"):
            path = folder / "1_Pooling" / "config.json"
            if module.get("path") != "1_Pooling" or not path.exists():
                break
            settings = read_object(path)
            chosen = [number for key, number in _POOLING.items() if settings.get(key)]
            if len(chosen) != 1:
                raise ConversionError(f"{path}: one way of pooling must be chosen, not {len(chosen)}")
            return chosen[0], []
    return _LAST_TOKEN, [
        "The folder does not say how vectors are pooled; the last token is used, as in the model cards."
    ]


def _prompts(folder: Path) -> Iterator[tuple[str, str]]:
    """Words before queries and documents, where sentence-transformers has some for all of them."""
    path = folder / "config_sentence_transformers.json"
    prompts = read_object(path).get("prompts") if path.exists() else None
    for kind in ("query", "document"):
        text = prompts.get(kind) if isinstance(prompts, dict) else None
        if isinstance(text, str) and 0 < len(text) <= 1000:
            yield kind, text


@dataclass
class _Reader:
    folder: Path
    config: HfConfig
    stored: Mapping[str, StoredTensor]
    weight_scale: WeightScale | None

    def tensors(self) -> tuple[list[TernaryTensor], list[DenseTensor]]:
        config = self.config
        ternary: list[TernaryTensor] = []
        dense: list[DenseTensor] = []
        seen: set[str] = set()
        for name, tensor in self.stored.items():
            short = name.removeprefix("model.")
            if short.endswith(("rotary_emb.inv_freq", "_proj.weight_scale")):
                continue
            if short == "lm_head.weight" and (config.tied or config.is_embedding_model):
                continue  # the same as the embedding
            made = self._tensor(short, name, tensor)
            if made.name in seen:
                raise ConversionError(f"{self.folder}: {name!r} stands for {made.name}, which is there twice")
            seen.add(made.name)
            if isinstance(made, TernaryTensor):
                ternary.append(made)
            else:
                dense.append(made)
        missing = sorted(self._expected() - seen)
        if missing:
            raise ConversionError(
                f"{self.folder} lacks tensors: {', '.join(missing[:5])}; {len(missing)} in all"
            )
        head = [one.name for one in dense if one.is_embedding]
        if config.tied is False and "output.weight" not in head:
            raise ConversionError(f"{self.folder} lacks lm_head.weight, and the embedding is not tied")
        order = {name: number for number, name in enumerate(sorted(seen, key=_natural))}
        return sorted(ternary, key=lambda t: order[t.name]), sorted(dense, key=lambda t: order[t.name])

    def _expected(self) -> set[str]:
        stems = {*_LINEAR.values(), *_NORMS.values()}
        if self.config.architecture in ("bitnet-b1.58", "bitnet"):
            stems |= {*_SUB_NORMS.values()}
        if self.config.is_embedding_model:
            stems |= {*_INPUT_NORMS.values(), *_HEAD_NORMS.values()}
        if self.config.architecture == "gemma3":
            stems |= {*_GEMMA_NORMS.values()}
        layers = range(self.config.n_layers)
        return {f"blk.{i}.{stem}.weight" for i in layers for stem in stems} | {
            "token_embd.weight",
            "output_norm.weight",
        }

    def _tensor(self, short: str, name: str, tensor: StoredTensor) -> TernaryTensor | DenseTensor:
        config = self.config
        rows = (config.vocab_size, config.hidden_size)
        if short == "embed_tokens.weight":
            return self._dense("token_embd.weight", tensor, rows)
        if short == "lm_head.weight":
            return self._dense("output.weight", tensor, rows)
        if short == "norm.weight":
            return self._norm("output_norm.weight", tensor, config.hidden_size, native=True)
        layer = _LAYER.fullmatch(short)
        part = layer[2].removesuffix(".weight") if layer and layer[2].endswith(".weight") else ""
        if layer is None or int(layer[1]) >= config.n_layers or not part:
            raise ConversionError(
                f"{self.folder}: the tensor {name[:100]!r} is not known in this kind of model"
            )
        prefix = f"blk.{int(layer[1])}."
        if part in _LINEAR:
            return self._linear(prefix, _LINEAR[part], name, tensor)
        norms: dict[str, str] = dict(_GEMMA_NORMS if config.architecture == "gemma3" else _NORMS)
        if config.architecture in ("bitnet-b1.58", "bitnet"):
            norms |= _SUB_NORMS
        own = _INPUT_NORMS if config.is_embedding_model else {}
        heads = _HEAD_NORMS if config.is_embedding_model else {}
        stem = norms.get(part) or own.get(part) or heads.get(part)
        if stem is None:
            raise ConversionError(
                f"{self.folder}: the tensor {name[:100]!r} is not known in this kind of model"
            )
        return self._norm(f"{prefix}{stem}.weight", tensor, self._norm_size(stem), native=part not in own)

    def _norm_size(self, stem: str) -> int:
        config = self.config
        if stem in ("attn_q_norm", "attn_k_norm"):
            return config.head_dim
        if stem in ("attn_sub_norm", "attn_output_norm_in"):
            return config.n_heads * config.head_dim
        return config.ffn_size if stem in ("ffn_sub_norm", "ffn_down_norm_in") else config.hidden_size

    def _shape(self, stem: str) -> tuple[int, int]:
        """[out features, in features]"""
        config = self.config
        q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        return {
            "attn_q": (q, config.hidden_size),
            "attn_k": (kv, config.hidden_size),
            "attn_v": (kv, config.hidden_size),
            "attn_output": (config.hidden_size, q),
            "ffn_gate": (config.ffn_size, config.hidden_size),
            "ffn_up": (config.ffn_size, config.hidden_size),
            "ffn_down": (config.hidden_size, config.ffn_size),
        }[stem]

    def _check(self, tensor: StoredTensor, shape: tuple[int, ...], *, is_float: bool) -> None:
        if tensor.shape != shape:
            raise ConversionError(
                f"{self.folder}: {tensor.name} has the shape {list(tensor.shape)}; "
                f"{list(shape)} fits config.json"
            )
        if is_float and not tensor.is_float:
            raise ConversionError(f"{self.folder}: {tensor.name} has the type {tensor.dtype}, not a float")

    def _norm(self, name: str, tensor: StoredTensor, size: int, *, native: bool) -> DenseTensor:
        """native: a norm of the backbone; Gemma stores those less one."""
        self._check(tensor, (size,), is_float=True)
        offset = np.float32(1 if native and self.config.architecture == "gemma3" else 0)
        return DenseTensor(name, (size,), lambda: iter([_finite(tensor, tensor.all() + offset)]))

    def _dense(self, name: str, tensor: StoredTensor, shape: tuple[int, int]) -> DenseTensor:
        self._check(tensor, shape, is_float=True)
        return DenseTensor(
            name, shape, lambda: (_finite(tensor, piece) for piece in tensor.pieces()), TensorType.F16
        )

    def _linear(self, prefix: str, stem: str, name: str, tensor: StoredTensor) -> TernaryTensor:
        rows, columns = self._shape(stem)
        scale = self.stored.get(f"{name}_scale")
        read: Callable[[], tuple[NDArray[np.int8], float]]
        if tensor.dtype == "U8":
            self._check(tensor, (-(-rows // 4), columns), is_float=False)
            read = partial(self._unpack, tensor, rows, self._weight_scale(name, scale))
        else:
            self._check(tensor, (rows, columns), is_float=True)
            factor = 1.0 if scale is None else self._weight_scale(name, scale)
            read = partial(self._round, tensor, factor)
        if self.config.architecture == "llama" and stem in ("attn_q", "attn_k"):
            read = partial(_interleave, read, self.config.head_dim)
        return TernaryTensor(f"{prefix}{stem}.weight", rows, columns, read)

    def _weight_scale(self, name: str, scale: StoredTensor | None) -> float:
        """What codes are multiplied with."""
        if scale is None:
            raise ConversionError(f"{self.folder}: packed weights {name} have no {name}_scale")
        if self.weight_scale is None:
            raise ConversionError(
                f"{self.folder}: config.json does not say whether weight_scale multiplies or divides (no "
                "quantization_config); say --weight-scale mul or div"
            )
        if not scale.is_float or scale.shape not in ((), (1,)):
            raise ConversionError(f"{self.folder}: {scale.name} must be one number, not {list(scale.shape)}")
        value = np.float32(scale.all()[0])
        if not np.isfinite(value) or value < 0 or (self.weight_scale == "div" and value == 0):
            raise ConversionError(f"{self.folder}: {scale.name} is {value}")
        return float(value if self.weight_scale == "mul" else np.float32(1) / value)

    def _unpack(self, tensor: StoredTensor, rows: int, scale: float) -> tuple[NDArray[np.int8], float]:
        """Row r of the packed tensor holds rows r, r + R, r + 2R, r + 3R, from the low bits up."""
        n_packed, columns = tensor.shape
        codes = np.empty((rows, columns), dtype=np.int8)
        first = 0
        for piece in tensor.pieces():
            for stripe in range(4):
                start = stripe * n_packed + first
                part = (piece[: max(0, rows - start)] >> (2 * stripe)) & 3
                if part.size and part.max() > 2:
                    raise ConversionError(
                        f"{self.folder}: {tensor.name} holds the code 3, which means nothing"
                    )
                np.subtract(part, 1, out=codes[start : start + len(part)], dtype=np.int8, casting="unsafe")
            first += len(piece)
        return codes, scale

    def _round(self, tensor: StoredTensor, factor: float) -> tuple[NDArray[np.int8], float]:
        # Weights beside a scale are codes already, and never latent.
        latent = self.config.latent and factor == 1.0
        name = f"{self.folder}: {tensor.name}"
        codes, scale = to_ternary(name, (tensor.shape[0], tensor.shape[1]), tensor.pieces, latent=latent)
        return codes, float(np.float32(scale) * np.float32(factor))


def _finite(tensor: StoredTensor, values: NDArray[Any]) -> NDArray[np.float32]:
    values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise ConversionError(f"{tensor.path}: {tensor.name} holds numbers that are not finite")
    return values


def _interleave(
    read: Callable[[], tuple[NDArray[np.int8], float]], head_dim: int
) -> tuple[NDArray[np.int8], float]:
    """Rows of q and k as llama files have them: the two halves of each head become neighbours."""
    codes, scale = read()
    rows, columns = codes.shape
    halves = codes.reshape(rows // head_dim, 2, head_dim // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns), scale


def _natural(name: str) -> tuple[Any, ...]:
    """Layers in order, the embedding before and the rest behind them."""
    layer = re.match(r"blk\.(\d+)\.", name)
    return (1, int(layer[1]), name) if layer else (0 if name == "token_embd.weight" else 2, 0, name)
