"""The models every comparison runs over: both architectures, awkward sizes, every embedding type."""

from __future__ import annotations

from bitnet.models.gguf_writer import TensorType
from reference.model_factory import ModelSpec

CASES: dict[str, ModelSpec] = {
    "bitnet-f16-hd64": ModelSpec(hidden_size=640, n_heads=10, embedding=TensorType.F16),
    "bitnet-q8_0-hd64": ModelSpec(hidden_size=320, ffn_size=136, embedding=TensorType.Q8_0),
    "bitnet-q6_k-hd128": ModelSpec(
        hidden_size=1280, n_heads=10, head_dim=128, ffn_size=456, n_layers=1, embedding=TensorType.Q6_K
    ),
    "bitnet25-bf16-hd96-untied": ModelSpec(
        "bitnet-25",
        hidden_size=480,
        head_dim=96,
        ffn_size=328,
        embedding=TensorType.BF16,
        untied=True,
        layer_gain=0.1,
    ),
    # Narrower than a panel block, nothing a multiple of 16.
    "bitnet-f32-hd24": ModelSpec(
        hidden_size=120, head_dim=24, ffn_size=72, n_layers=3, embedding=TensorType.F32
    ),
    "llama-f16-hd64": ModelSpec(
        "llama", hidden_size=640, n_heads=10, embedding=TensorType.F16, untied=True, rope_base=10000.0
    ),
    # Attention wider than the residual stream.
    "llama-f32-hd128": ModelSpec(
        "llama", head_dim=128, ffn_size=328, embedding=TensorType.F32, untied=True, eps=1e-6
    ),
    "llama-q6_k-hd96": ModelSpec(
        "llama", hidden_size=256, n_heads=8, n_kv_heads=4, head_dim=96, embedding=TensorType.Q6_K, untied=True
    ),
    "llama-bf16-hd40-tied": ModelSpec(
        "llama", hidden_size=200, head_dim=40, ffn_size=104, embedding=TensorType.BF16, seed=2
    ),
}

# Layers that outweigh the embeddings twenty times as much as above: every error shows, and a tied head does
# not just repeat its input token.
STRONG_LAYERS = ModelSpec(hidden_size=320, ffn_size=136, layer_gain=2.5, embedding=TensorType.F16)
