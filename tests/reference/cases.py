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
    # 1bitLLM 3B: SiLU, heads whose size is no multiple of 8, a feed-forward width that is no whole block.
    "bitnet-silu-f16-hd100": ModelSpec(
        "bitnet", hidden_size=300, n_heads=3, n_kv_heads=3, head_dim=100, ffn_size=360, rope_base=10000.0
    ),
    "bitnet-silu-f32-hd96": ModelSpec(
        "bitnet",
        hidden_size=384,
        n_heads=4,
        n_kv_heads=4,
        head_dim=96,
        embedding=TensorType.F32,
        rope_base=10000.0,
    ),
    "bitnet-hd42": ModelSpec(hidden_size=252, n_heads=6, n_kv_heads=2, head_dim=42, ffn_size=104),
    # BitNet-embedding: attention wider than the residual stream, f16 norms.
    "qwen3-f16-hd128": ModelSpec(
        "qwen3",
        hidden_size=256,
        n_heads=4,
        n_kv_heads=2,
        head_dim=128,
        norm_type=TensorType.F16,
        rope_base=1000000.0,
        eps=1e-6,
        layer_gain=0.3,
    ),
    "gemma3-bf16-hd256": ModelSpec(
        "gemma3",
        hidden_size=160,
        n_heads=2,
        n_kv_heads=1,
        head_dim=256,
        embedding=TensorType.BF16,
        norm_type=TensorType.BF16,
        rope_base=10000.0,
        eps=1e-6,
        layer_gain=2.0,
    ),
}

# Layers that outweigh the embeddings twenty times as much as above: every error shows, and a tied head does
# not just repeat its input token.
STRONG_LAYERS = ModelSpec(hidden_size=320, ffn_size=136, layer_gain=2.5, embedding=TensorType.F16)
