"""Export of a checkpoint to GGUF: ternary matrices as I2_S, embedding as F16, norms as F32, all metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bitnet.models.gguf_writer import GgufWriter, TensorType
from bitnet.models.tensor_codec import encode_ternary
from bitnet.models.ternary import absmean

from .model import ModelConfig
from .tokenizer import BEGIN, END, END_OF_TURN, SPECIAL_TOKENS

ARCHITECTURE = "bitnet-b1.58"
DESCRIPTION = (
    "A tiny BitNet b1.58 assistant trained from nothing on generated English conversations: simple facts, "
    "small talk, answers from a text, tools, JSON, choices and text embeddings."
)
_I2S_FILE_TYPE = 40  # bitnet.cpp's label for a file of I2_S tensors
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def chat_template() -> str:
    return Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8").strip()


def gguf_name(name: str) -> str:
    """Translate model.layers.0.mlp.up_proj.weight to blk.0.ffn_up.weight."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def _token_type(token: str) -> int:
    """Control tokens are never text; a tool call's brackets are, so that they appear in the answer."""
    if token not in SPECIAL_TOKENS:
        return _NORMAL
    return _CONTROL if token.startswith("<|") else _USER_DEFINED


def _add_model_metadata(writer: GgufWriter, config: ModelConfig, name: str) -> None:
    writer.add_metadata("general.architecture", ARCHITECTURE, "string")
    writer.add_metadata("general.name", name, "string")
    writer.add_metadata("general.description", DESCRIPTION, "string")
    writer.add_metadata("general.license", "MIT", "string")
    writer.add_metadata("general.languages", ["en"], ("array", "string"))
    writer.add_metadata("general.file_type", _I2S_FILE_TYPE, "u32")
    writer.add_metadata("general.quantization_version", 2, "u32")
    sizes = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": config.head_dim,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
    }
    for key, value in sizes.items():
        writer.add_metadata(f"{ARCHITECTURE}.{key}", value, "u32")
    writer.add_metadata(f"{ARCHITECTURE}.attention.layer_norm_rms_epsilon", config.rms_norm_eps, "f32")
    writer.add_metadata(f"{ARCHITECTURE}.rope.freq_base", config.rope_theta, "f32")


def _add_tokenizer_metadata(writer: GgufWriter, tokenizer: Tokenizer) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=lambda token: model["vocab"][token])
    writer.add_metadata("tokenizer.ggml.model", "gpt2", "string")
    writer.add_metadata("tokenizer.ggml.pre", "llama-bpe", "string")
    writer.add_metadata("tokenizer.ggml.tokens", tokens, ("array", "string"))
    writer.add_metadata("tokenizer.ggml.token_type", [_token_type(t) for t in tokens], ("array", "i32"))
    merges = [" ".join(pair) for pair in model["merges"]]
    writer.add_metadata("tokenizer.ggml.merges", merges, ("array", "string"))
    ids = {"bos": BEGIN, "eos": END, "eot": END_OF_TURN, "padding": END}
    for key, value in ids.items():
        writer.add_metadata(f"tokenizer.ggml.{key}_token_id", value, "u32")
    writer.add_metadata("tokenizer.ggml.add_bos_token", True, "bool")
    writer.add_metadata("tokenizer.ggml.add_eos_token", False, "bool")
    writer.add_metadata("tokenizer.chat_template", chat_template(), "string")


def _add_tensor(writer: GgufWriter, name: str, weight: NDArray[np.float32]) -> None:
    dims = list(reversed(weight.shape))
    if weight.ndim == 1:
        writer.add_tensor(name, dims, TensorType.F32, weight)
    elif name == "token_embd.weight":
        writer.add_tensor(name, dims, TensorType.F16, weight.astype(np.float16))
    else:
        writer.add_tensor(name, dims, TensorType.I2_S, encode_ternary(*absmean(weight), TensorType.I2_S))


def export(
    checkpoints: Sequence[Path], tokenizer: Tokenizer, output: Path, name: str = "BitNet Tiny"
) -> None:
    """Write the mean of the checkpoints' weights and their tokenizer as one GGUF file.

    Raises ValueError if the checkpoints are of different sizes.
    """
    states = [torch.load(path, map_location="cpu", weights_only=True) for path in checkpoints]
    if any(state["config"] != states[0]["config"] for state in states):
        raise ValueError(f"not all of the same size: {', '.join(map(str, checkpoints))}")
    writer = GgufWriter(output)
    _add_model_metadata(writer, ModelConfig(**states[0]["config"]), name)
    _add_tokenizer_metadata(writer, tokenizer)
    for parameter in states[0]["model"]:
        mean = torch.stack([state["model"][parameter].float() for state in states]).mean(0)
        _add_tensor(writer, gguf_name(parameter), mean.numpy())
    writer.write()
