"""The same random weights in classes of transformers: BitNet; Llama, Qwen3 and Gemma3 with BitLinear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    BitNetConfig,
    BitNetForCausalLM,
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from reference.model_factory import Dense, Linear, ModelSpec, RandomModel

# Where this is not set when they are defined, its functions are compiled, which would only cost minutes. It
# must not stay set: the trainer, tested in the same process, compiles its layers.
with pytest.MonkeyPatch.context() as environment:
    environment.setenv("TORCHDYNAMO_DISABLE", "1")
    from transformers.integrations.bitnet import AutoBitLinear, BitLinear, pack_weights

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
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_GEMMA_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ACTIVATIONS = {"relu2": "relu2", "silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}


def hf_model(
    model: RandomModel, storage: Storage = "offline", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A transformers model with exactly these weights."""
    spec = model.spec
    classes = {"llama": LlamaForCausalLM, "qwen3": Qwen3ForCausalLM, "gemma3": Gemma3ForCausalLM}
    hf = classes.get(spec.architecture, BitNetForCausalLM)(_config(spec))
    for name, linear in model.linears.items():
        own_norm = model.norms.get(f"{name}_norm_in")
        hf.set_submodule(_module_name(spec, name), _linear(linear, storage, own_norm, spec.eps))
    for name, norm in model.norms.items():
        if not name.endswith("_norm_in"):
            # Gemma's own norms multiply by one more than their weight.
            weight = torch.from_numpy(norm - 1 if spec.architecture == "gemma3" else norm)
            hf.get_submodule(_module_name(spec, name)).weight.data = weight
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


def hf_hidden(hf: PreTrainedModel, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """[n, hidden], after the final norm."""
    with torch.no_grad():
        output = hf.model(torch.tensor([list(token_ids)]), use_cache=False)
    return output.last_hidden_state[0].float().numpy()


def _config(spec: ModelSpec) -> PreTrainedConfig:
    classes = {"llama": LlamaConfig, "qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}
    activation = _ACTIVATIONS[spec.activation]
    rope = {"rope_type": "default", "rope_theta": spec.rope_base}
    if spec.architecture == "gemma3":  # the file has one attention and one RoPE for all layers
        own = {
            "hidden_activation": activation,
            "query_pre_attn_scalar": spec.head_dim,
            "layer_types": ["full_attention"] * spec.n_layers,
            "rope_parameters": {"full_attention": rope, "sliding_attention": rope},
        }
    else:
        own = {"hidden_act": activation, "rope_parameters": rope}
    return classes.get(spec.architecture, BitNetConfig)(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.ffn_size,
        num_hidden_layers=spec.n_layers,
        num_attention_heads=spec.n_heads,
        num_key_value_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.context_length,
        rms_norm_eps=spec.eps,
        tie_word_embeddings=not spec.untied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="eager",
        **own,
    )


def _module_name(spec: ModelSpec, name: str) -> str:
    if name == "output_norm":
        return "model.norm"
    _, layer, stem = name.split(".")
    modules = _MODULES | (_GEMMA_NORMS if spec.architecture == "gemma3" else {})
    return f"model.layers.{layer}.{modules[stem]}"


def _linear(
    linear: Linear, storage: Storage, own_norm: NDArray[np.float32] | None, eps: float
) -> torch.nn.Module:
    made = _bare_linear(linear, storage, own_norm is not None, eps)
    if own_norm is not None:
        made.rms_norm.weight.data = torch.from_numpy(own_norm)
    return made


def _bare_linear(linear: Linear, storage: Storage, use_rms_norm: bool, eps: float) -> torch.nn.Module:
    rows, cols = linear.codes.shape
    norm = {"use_rms_norm": use_rms_norm, "rms_norm_eps": eps}
    if storage == "packed":
        packed = BitLinear(cols, rows, bias=False, dtype=torch.float32, **norm)
        packed.weight = torch.nn.Buffer(pack_weights(torch.from_numpy(linear.codes.astype(np.float32))))
        packed.weight_scale = torch.nn.Buffer(torch.tensor([1 / linear.scale]))
        return packed
    auto = AutoBitLinear(cols, rows, bias=False, online_quant=storage == "online", **norm)
    if storage == "online":
        auto.weight.data = torch.from_numpy(linear.latent)
    else:
        auto.weight.data = torch.from_numpy(linear.codes.astype(np.float32))
        auto.weight_scale = torch.nn.Buffer(torch.tensor([linear.scale]))
    return auto


def _dense(dense: Dense) -> torch.Tensor:
    return torch.from_numpy(dense.values)
