"""The same random weights in transformers' own classes: BitNetForCausalLM, LlamaForCausalLM with BitLinear.

Import this before anything else imports torch: it turns the compiler off, which would only cost minutes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    BitNetConfig,
    BitNetForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.integrations.bitnet import AutoBitLinear, BitLinear, pack_weights

from reference.model_factory import Dense, Linear, ModelSpec, RandomModel

# How the ternary weights of a checkpoint are kept: multiplied by their scale, latent (rounded at each call),
# or packed and divided by the inverse scale.
Storage = Literal["offline", "online", "packed"]

_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
}


def hf_model(
    model: RandomModel, storage: Storage = "offline", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A transformers model with exactly these weights."""
    spec = model.spec
    hf = (BitNetForCausalLM if spec.sub_norms else LlamaForCausalLM)(_config(spec))
    for name, linear in model.linears.items():
        module = _module_name(name)
        hf.set_submodule(module, _linear(linear, storage))
    for name, norm in model.norms.items():
        hf.get_submodule(_module_name(name)).weight.data = torch.from_numpy(norm)
    hf.model.embed_tokens.weight.data = _dense(model.embedding)
    hf.lm_head.weight.data = _dense(model.output or model.embedding)
    hf.to(dtype)
    for module in hf.modules():
        if isinstance(module, BitLinear):
            module.dtype = dtype
    return hf.eval()


class HalfCache(DynamicCache):
    """K and V kept in f16, as our engine keeps them."""

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().update(keys.half().to(keys.dtype), values.half().to(values.dtype), *args, **kwargs)


def hf_logits(
    hf: PreTrainedModel, token_ids: Sequence[int], *, f16_cache: bool = False
) -> NDArray[np.float32]:
    """[n, vocab]"""
    cache = HalfCache(config=hf.config) if f16_cache else None
    with torch.no_grad():
        output = hf(torch.tensor([list(token_ids)]), past_key_values=cache, use_cache=f16_cache)
    return output.logits[0].float().numpy()


def _config(spec: ModelSpec) -> BitNetConfig | LlamaConfig:
    cls, activation = (BitNetConfig, "relu2") if spec.sub_norms else (LlamaConfig, "silu")
    return cls(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.ffn_size,
        num_hidden_layers=spec.n_layers,
        num_attention_heads=spec.n_heads,
        num_key_value_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        hidden_act=activation,
        max_position_embeddings=spec.context_length,
        rms_norm_eps=spec.eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_base},
        tie_word_embeddings=not spec.untied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="eager",
    )


def _module_name(name: str) -> str:
    if name == "output_norm":
        return "model.norm"
    _, layer, stem = name.split(".")
    return f"model.layers.{layer}.{_MODULES[stem]}"


def _linear(linear: Linear, storage: Storage) -> torch.nn.Module:
    rows, cols = linear.codes.shape
    if storage == "packed":
        packed = BitLinear(cols, rows, bias=False, dtype=torch.float32)
        packed.weight = torch.nn.Buffer(pack_weights(torch.from_numpy(linear.codes.astype(np.float32))))
        packed.weight_scale = torch.nn.Buffer(torch.tensor([1 / linear.scale]))
        return packed
    auto = AutoBitLinear(cols, rows, bias=False, online_quant=storage == "online")
    if storage == "online":
        auto.weight.data = torch.from_numpy(linear.latent)
    else:
        auto.weight.data = torch.from_numpy(linear.codes.astype(np.float32))
        auto.weight_scale = torch.nn.Buffer(torch.tensor([linear.scale]))
    return auto


def _dense(dense: Dense) -> torch.Tensor:
    return torch.from_numpy(dense.values)
