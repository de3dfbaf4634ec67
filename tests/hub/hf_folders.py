"""Hugging Face folders of every family, scaled down: real names, real configurations, random weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hub.hf_tokenizers import write_tokenizer

MULTIPLY = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "offline",
    "modules_to_not_convert": None,
}
DIVIDE = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}
ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}


@dataclass(frozen=True)
class Family:
    """storage: packed (U8), latent or dequantised. Shapes are those of the published model, divided."""

    name: str
    config: dict[str, Any]
    storage: str
    tokenizer: str  # llama3, falcon3, qwen, sentence_piece, gemma
    prefix: str = "model."
    sub_norms: tuple[str, str] | None = None
    input_norms: bool = False
    gemma: bool = False

    def size(self, key: str) -> int:
        return int(self.config[key])


def _config(cls: str, **more: Any) -> dict[str, Any]:
    return {"architectures": [cls], "torch_dtype": "bfloat16", **more}


def _sizes(
    layers: int, hidden: int, heads: int, kv: int, ffn: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        **more,
    }


_2B = _sizes(
    2,
    512,
    4,
    1,
    1408,
    640,
    rope_theta=500000.0,
    rms_norm_eps=1e-5,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
    hidden_act="relu2",
    bos_token_id=512,
    eos_token_id=513,
    model_type="bitnet",
)
_1BIT = {
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 320,
    "model_type": "llama",
    "weight_bits": 1,
    "input_bits": 8,
    "rope_scaling": None,
}
_FALCON = {
    "rope_theta": 1000042,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "eos_token_id": 11,
    "model_type": "llama",
    "head_dim": 256,
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": DIVIDE,
}
_NORMS_2B = ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm")
_NORMS_1BIT = ("self_attn.inner_attn_ln", "mlp.ffn_layernorm")

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "2b-4t-packed",
            _config("BitNetForCausalLM", **_2B, quantization_config=MULTIPLY),
            "packed",
            "llama3",
            sub_norms=_NORMS_2B,
        ),
        Family(
            "2b-4t-bf16",
            _config("BitNetForCausalLM", **_2B, quantization_config=ONLINE),
            "latent",
            "llama3",
            sub_norms=_NORMS_2B,
        ),
        Family(
            "bitnet-large",
            _config("BitnetForCausalLM", **_1BIT, **_sizes(2, 384, 4, 4, 1024, 322)),
            "latent",
            "sentence_piece",
            sub_norms=_NORMS_1BIT,
        ),
        Family(
            "bitnet-3b",
            _config("BitnetForCausalLM", **_1BIT, **_sizes(2, 400, 4, 4, 1080, 322)),
            "latent",
            "sentence_piece",
            sub_norms=_NORMS_1BIT,
        ),
        Family(
            "llama3-8b",
            _config(
                "LlamaForCausalLM",
                **_sizes(2, 512, 4, 1, 1792, 640),
                rope_theta=500000.0,
                rms_norm_eps=1e-5,
                max_position_embeddings=8192,
                tie_word_embeddings=False,
                hidden_act="silu",
                bos_token_id=512,
                eos_token_id=521,
                is_bitnet_config=True,
                quantization_config=DIVIDE,
            ),
            "packed",
            "llama3",
        ),
        Family(
            "falcon3-1b",
            _config("LlamaForCausalLM", **_sizes(2, 512, 2, 1, 2048, 640), **_FALCON),
            "packed",
            "falcon3",
        ),
        Family(
            "falcon3-3b",
            _config("LlamaForCausalLM", **_sizes(2, 768, 3, 1, 2304, 640), **_FALCON),
            "packed",
            "falcon3",
        ),
        Family(
            "falcon3-7b",
            _config("LlamaForCausalLM", **_sizes(2, 768, 3, 1, 5760, 640), **_FALCON),
            "packed",
            "falcon3",
        ),
        Family(
            "falcon3-10b",
            _config("LlamaForCausalLM", **_sizes(3, 768, 3, 1, 5760, 640), **_FALCON),
            "packed",
            "falcon3",
        ),
        Family(
            "falcon-e-1b",
            _config("LlamaForCausalLM", **_sizes(2, 256, 2, 1, 1024, 640), **{**_FALCON, "head_dim": 128}),
            "packed",
            "falcon3",
        ),
        Family(
            "falcon-e-3b",
            _config(
                "LlamaForCausalLM",
                **_sizes(2, 256, 2, 1, 1664, 640),
                **{**_FALCON, "head_dim": 128, "quantization_config": ONLINE},
            ),
            "dequantised",
            "falcon3",
        ),
        Family(
            "embedding-0.6b",
            _config(
                "Qwen3Model",
                **_sizes(2, 256, 4, 2, 768, 640),
                head_dim=128,
                rope_theta=1000000,
                rms_norm_eps=1e-6,
                max_position_embeddings=32768,
                tie_word_embeddings=True,
                hidden_act="silu",
                eos_token_id=514,
                model_type="qwen3",
                attention_bias=False,
            ),
            "latent",
            "qwen",
            prefix="",
            input_norms=True,
        ),
        Family(
            "embedding-270m",
            _config(
                "Gemma3TextModel",
                **_sizes(2, 192, 2, 1, 640, 384),
                head_dim=256,
                rope_theta=10000.0,
                rms_norm_eps=1e-6,
                max_position_embeddings=32768,
                hidden_activation="gelu_pytorch_tanh",
                query_pre_attn_scalar=256,
                bos_token_id=2,
                eos_token_id=1,
                pad_token_id=0,
                model_type="gemma3_text",
            ),
            "latent",
            "gemma",
            prefix="",
            input_norms=True,
            gemma=True,
        ),
    )
}


@dataclass
class Made:
    """A folder, and what is in it: linear weights by their GGUF stem, rows as Hugging Face orders them."""

    folder: Path
    family: Family
    codes: dict[str, NDArray[np.int8]] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    dense: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    tensors: dict[str, tuple[str, NDArray[Any]]] = field(default_factory=dict)


LINEAR = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def make_folder(family: Family, folder: Path, *, seed: int = 1, **config: Any) -> Made:
    """Write the folder. config: what config.json has otherwise; None = leave out."""
    random = np.random.Generator(np.random.PCG64(seed))
    folder.mkdir(parents=True, exist_ok=True)
    made = Made(folder, replace(family, config={**family.config, **config}))
    kept = {key: value for key, value in made.family.config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    write_tokenizer(folder, family.tokenizer, family.size("vocab_size"))
    _add_tensors(made, random)
    write_safetensors(folder / "model.safetensors", made.tensors)
    if family.input_norms:
        (folder / "modules.json").write_text(
            json.dumps(
                [
                    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
                    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
                ]
            )
        )
        (folder / "1_Pooling").mkdir(exist_ok=True)
        pooling = {
            "pooling_mode_lasttoken": True,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_cls_token": False,
        }
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        prompts = {"prompts": {"query": "query: ", "web": "Instruct: ..."}}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return made


def _add_tensors(made: Made, random: np.random.Generator) -> None:
    family = made.family
    hidden, heads = family.size("hidden_size"), family.size("num_attention_heads")
    head_dim = family.config.get("head_dim", hidden // heads)
    q, kv, ffn = (
        heads * head_dim,
        family.size("num_key_value_heads") * head_dim,
        family.size("intermediate_size"),
    )
    shapes = {
        "attn_q": (q, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_output": (hidden, q),
        "ffn_gate": (ffn, hidden),
        "ffn_up": (ffn, hidden),
        "ffn_down": (hidden, ffn),
    }
    vocab = family.size("vocab_size")

    def dense(name: str, gguf: str, *shape: int, mean: float = 0.0, gemma: bool = False) -> None:
        values = bf16(mean - gemma + (0.2 if mean else 1) * random.standard_normal(shape).astype(np.float32))
        made.tensors[name] = ("BF16", values)
        made.dense[gguf] = values + np.float32(gemma)

    prefix = family.prefix
    dense(f"{prefix}embed_tokens.weight", "token_embd", vocab, hidden)
    dense(f"{prefix}norm.weight", "output_norm", hidden, mean=1, gemma=family.gemma)
    if family.config.get("tie_word_embeddings") is False:
        dense("lm_head.weight", "output", vocab, hidden)
    for layer in range(family.size("num_hidden_layers")):
        here, block = f"{prefix}layers.{layer}.", f"blk.{layer}."
        norms = {"input_layernorm": ("attn_norm", hidden), "post_attention_layernorm": ("ffn_norm", hidden)}
        if family.gemma:
            norms["post_attention_layernorm"] = ("post_attention_norm", hidden)
            norms["pre_feedforward_layernorm"] = ("ffn_norm", hidden)
            norms["post_feedforward_layernorm"] = ("post_ffw_norm", hidden)
        if family.input_norms:
            norms |= {
                "self_attn.q_norm": ("attn_q_norm", head_dim),
                "self_attn.k_norm": ("attn_k_norm", head_dim),
            }
        if family.sub_norms:
            norms |= {family.sub_norms[0]: ("attn_sub_norm", q), family.sub_norms[1]: ("ffn_sub_norm", ffn)}
        for name, (stem, size) in norms.items():
            dense(f"{here}{name}.weight", block + stem, size, mean=1, gemma=family.gemma)
        for name, stem in LINEAR.items():
            if family.input_norms:
                dense(f"{here}{name}.norm.weight", f"{block}{stem}_norm_in", shapes[stem][1], mean=1)
            _add_linear(made, f"{here}{name}.weight", block + stem, shapes[stem], random)
        if family.sub_norms == _NORMS_1BIT:
            made.tensors[f"{here}self_attn.rotary_emb.inv_freq"] = ("F32", np.ones(head_dim // 2, np.float32))


def _add_linear(
    made: Made, name: str, stem: str, shape: tuple[int, int], random: np.random.Generator
) -> None:
    storage = made.family.storage
    latent = bf16(random.standard_normal(shape).astype(np.float32) * np.float32(0.02))
    scale = np.float32(np.abs(latent).mean(dtype=np.float64))
    codes = np.clip(np.rint(latent * (np.float32(1) / scale)), -1, 1).astype(np.int8)
    if storage == "latent":
        made.tensors[name] = ("BF16", latent)
    elif storage == "dequantised":
        scale = bf16(np.full(1, scale))[0]
        made.tensors[name] = ("BF16", codes * scale)
    else:
        divides = made.family.config["quantization_config"].get("linear_class") != "autobitlinear"
        stored = bf16(np.full(1, 1 / scale if divides else scale, np.float32))
        made.tensors[name] = ("U8", pack(codes))
        made.tensors[f"{name}_scale"] = ("BF16", stored)
        scale = np.float32(1) / stored[0] if divides else stored[0]
    made.codes[stem], made.scales[stem] = codes, float(scale)


def pack(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """As transformers packs: four stripes of rows."""
    stripes = (codes + 1).astype(np.uint8).reshape(4, -1, codes.shape[1])
    return stripes[0] | stripes[1] << 2 | stripes[2] << 4 | stripes[3] << 6


def bf16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to bfloat16."""
    bits = values.astype(np.float32).view(np.uint32)
    return (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, NDArray[Any]]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = []
    offset = 0
    for name, (dtype, values) in tensors.items():
        raw = (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2") if dtype == "BF16" else values
        body = np.ascontiguousarray(raw).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [offset, offset + len(body)],
        }
        offset += len(body)
        data.append(body)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))
