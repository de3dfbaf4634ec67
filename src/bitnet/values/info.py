"""What an engine tells of itself: how it is doing, and what it has loaded."""

from __future__ import annotations

from dataclasses import dataclass

from .embedding import Pooling


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
    pooling: how `embed` makes one vector of a text if it is not told; None = in a way unknown here.
    repairs: what was wrong in the file and is handled; warnings: what else its user should know.
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
    kv_bytes: int
    has_chat_template: bool
    pooling: Pooling | None
    repairs: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def memory_bytes(self) -> int:
        """Packed weights, embedding, head and key/value store together."""
        return self.ternary_bytes + self.head_bytes + self.kv_bytes
