"""What an engine tells of itself: how it is doing, and what it has loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .embedding import EmbeddingKind, Pooling

# How ternary products are computed, and what embedding and head may be kept as; see bitnet.BitNet.
QuantType = Literal["i2_s", "tl1"]
EmbdType = Literal["f32", "f16", "q8_0", "q6_k", "q4_0"]
KvType = Literal["f16", "q8_0"]
# Who computes; see bitnet.BitNet.
EngineName = Literal["native", "mlx", "llama_cpp"]
EngineChoice = Literal["auto", "native", "mlx", "llama_cpp"]
# What a model file does not say of itself: the layout of its ternary tensors, see
# bitnet.models.tensor_codec, and the activation where the architecture's name stands for two.
TernaryLayout = Literal["x128", "arm64", "row4", "preset"]
Activation = Literal["relu2", "silu"]
# The layout, or "auto": found out; and whether scales multiply or divide. See bitnet.BitNet.
Layout = Literal["x128", "arm64", "row4", "preset", "auto"]
Scales = Literal["multiply", "divide", "auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How an engine is doing. running, waiting: requests. free_blocks of n_blocks: key/value storage not in
    use; cached_blocks: those of them that still hold what earlier requests computed.
    n_steps, n_tokens: forward passes, and tokens computed in them, since the model was loaded.
    """

    closed: bool
    running: int
    waiting: int
    free_blocks: int
    cached_blocks: int = 0
    n_blocks: int
    n_steps: int
    n_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is loaded, and how. Sizes named *_bytes are bytes of memory.

    context_length: tokens the model was made for; n_ctx: tokens a sequence may hold here.
    n_gpu_layers: layers computed on the GPU called `gpu`; gpu_bytes: of its memory, for copies of weights
    and head, for keys and values, and for all else it needs.
    kv_type: how keys and values are stored, f16 or q8_0.
    pooling: how `embed` makes one vector of a text if it is not told; None = in a way unknown here.
    embedding_prefixes: what it puts before each text, by its kind.
    quant_type, tiles: how ternary products are computed, see bitnet.BitNet. embd_type: what embedding and
    head are kept as, such as "F16". ternary_type: the types of the file's ternary tensors, such as "I2_S".
    layout: how they were read, where the file leaves a choice; scales: whether they multiply or divide;
    losses: of each way that was tried to find that out, nats a token.
    engine, kernels: who computes, and in which way.
    repairs: what was wrong in the file and is handled; warnings: what else its user should know.
    In api mode path is the server's address, and what the server does not tell is 0 or empty.
    """

    name: str
    path: str
    architecture: str
    activation: str
    n_parameters: int
    n_layers: int
    hidden_size: int
    ffn_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    tied_head: bool
    context_length: int
    n_ctx: int
    n_batch: int
    n_threads: int
    kernels: str
    ternary_bytes: int
    head_bytes: int
    kv_type: KvType = "f16"
    kv_bytes: int
    n_gpu_layers: int = 0
    gpu: str = ""
    gpu_bytes: int = 0
    has_chat_template: bool
    pooling: Pooling | None
    embedding_prefixes: Mapping[EmbeddingKind, str] = field(default_factory=dict, hash=False)
    repairs: tuple[str, ...]
    warnings: tuple[str, ...]
    quant_type: QuantType = "i2_s"
    tiles: Mapping[str, int] = field(default_factory=dict, hash=False)
    embd_type: str = ""
    engine: EngineName | Literal[""] = ""
    ternary_type: str = ""
    layout: str = ""
    scales: str = ""
    losses: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def memory_bytes(self) -> int:
        """Packed weights, embedding, head and key/value store together."""
        return self.ternary_bytes + self.head_bytes + self.kv_bytes
