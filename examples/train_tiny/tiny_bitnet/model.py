"""The BitNet b1.58 network that is trained: the 2B-4T architecture at a size a CPU can train.

Ternary weights and int8 activations are simulated from the first step (straight-through estimator);
parameter names are those of the Hugging Face BitNet checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bitlinear import norm_bit_linear, rms_norm
from .guides import DECISION, SAME_TOKEN

Places = tuple[Tensor, Tensor, Tensor | None]  # cosines and sines of the positions, and a mask
# Of one head: queries, keys and what was found, each [batch, length, head_dim].
Look = tuple[Tensor, Tensor, Tensor]
GUIDED_HEAD = -1  # of a guided layer; the constructed start does not need it


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network. `hidden_size` and `intermediate_size` are multiples of 128 (I2_S blocks)."""

    vocab_size: int = 1536
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 9
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 100_000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048

    @property
    def queries_per_kv(self) -> int:
        return self.num_attention_heads // self.num_key_value_heads

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """NEOX rotary embedding of x [batch, heads, length, head_dim]."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class Attention(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        query_size, kv_size = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(query_size, c.hidden_size, bias=False)
        self.attn_sub_norm = Norm(query_size)


class Mlp(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)
        self.ffn_sub_norm = Norm(c.intermediate_size)


class Layer(nn.Module):
    def __init__(self, c: ModelConfig, matmul_dtype: torch.dtype) -> None:
        super().__init__()
        self.config = c
        self.matmul_dtype = matmul_dtype
        self.self_attn = Attention(c)
        self.mlp = Mlp(c)
        self.input_layernorm = Norm(c.hidden_size)
        self.post_attention_layernorm = Norm(c.hidden_size)

    def _attend(self, x: Tensor, batch: int, length: int, places: Places) -> tuple[Tensor, Look]:
        """What the heads found, joined, and the look of the head that may be guided."""
        c, (cos, sin, mask) = self.config, places
        attention, norm = self.self_attn, self.input_layernorm.weight
        layers = (attention.q_proj, attention.k_proj, attention.v_proj)
        joined = norm_bit_linear(
            x, norm, [layer.weight for layer in layers], c.rms_norm_eps, self.matmul_dtype
        ).view(batch, length, -1, c.head_dim)
        heads = [c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads]
        q, k, v = torch.split(joined.transpose(1, 2), heads, 1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(c.queries_per_kv, 1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        look = q[:, GUIDED_HEAD], k[:, GUIDED_HEAD], mixed[:, GUIDED_HEAD]
        return mixed.transpose(1, 2).reshape(batch * length, c.num_attention_heads * c.head_dim), look

    def forward(self, x: Tensor, batch: int, length: int, places: Places) -> tuple[Tensor, Look]:
        """States [batch * length, hidden] behind this layer, and the look of the head that may be guided."""
        eps, dtype, attention, mlp = self.config.rms_norm_eps, self.matmul_dtype, self.self_attn, self.mlp
        mixed, look = self._attend(x, batch, length, places)
        x = x + norm_bit_linear(mixed, attention.attn_sub_norm.weight, [attention.o_proj.weight], eps, dtype)
        both = [mlp.gate_proj.weight, mlp.up_proj.weight]
        norm = self.post_attention_layernorm.weight
        gate, up = norm_bit_linear(x, norm, both, eps, dtype).chunk(2, -1)
        gated = F.relu(gate).square() * up
        return x + norm_bit_linear(gated, mlp.ffn_sub_norm.weight, [mlp.down_proj.weight], eps, dtype), look


class Decoder(nn.Module):
    def __init__(self, c: ModelConfig, matmul_dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c, matmul_dtype) for _ in range(c.num_hidden_layers))
        self.norm = Norm(c.hidden_size)


class TinyBitNet(nn.Module):
    """Quantisation-aware BitNet b1.58. `matmul_dtype` holds the small integers of the products exactly."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, matmul_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.matmul_dtype = matmul_dtype
        self.model = Decoder(config, matmul_dtype)
        self.guided: list[Look] = []  # of the guided heads in the last pass
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        positions = torch.arange(config.max_position_embeddings, dtype=torch.float32)
        angles = positions[:, None] * config.rope_theta ** (-half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self._initialise()

    @property
    def guided_layers(self) -> tuple[int, int, int, int]:
        """The layers with a head that learns from the guides of each kind where to look."""
        layers = self.config.num_hidden_layers
        first = layers // 4
        return first, first + 1, first + 2, max(first + 3, layers - 3)

    @property
    def blocks(self) -> list[Layer]:
        return cast("list[Layer]", list(self.model.layers))

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                std = 1 / math.sqrt(parameter.shape[1])
                if "o_proj" in name or "down_proj" in name:
                    std /= math.sqrt(self.config.num_hidden_layers)
                nn.init.normal_(parameter, std=std)
        # The embedding is also the output matrix: unit-size rows, and a final norm that keeps logits small.
        nn.init.normal_(self.model.embed_tokens.weight, std=0.25)
        nn.init.constant_(self.model.norm.weight, 0.25)

    def _places(self, length: int, positions: Tensor | None, branches: Tensor | None) -> Places:
        if positions is None or branches is None:
            return self.cos[:length], self.sin[:length], None
        before = torch.ones(length, length, dtype=torch.bool, device=branches.device).tril()
        same = branches[:, :, None] == branches[:, None, :]
        mask = before & (same | (branches == 0)[:, None, :])
        return self.cos[positions][:, None], self.sin[positions][:, None], mask[:, None]

    def hidden(self, ids: Tensor, positions: Tensor | None = None, branches: Tensor | None = None) -> Tensor:
        """States [batch * length, hidden] before the final norm.

        With branches, a token sees branch 0 and its own, and `positions` says where it stands.
        """
        places = self._places(ids.shape[1], positions, branches)
        x: Tensor = self.model.embed_tokens(ids.reshape(-1))
        self.guided = []
        for number, layer in enumerate(self.blocks):
            x, look = layer(x, *ids.shape, places)
            if number in self.guided_layers:
                self.guided.append(look)
        return x

    def guide_loss(self, ids: Tensor, guides: Tensor, branches: Tensor | None) -> Tensor:
        """How little the guided heads looked where they should in the last pass: nats, a mean for each kind.

        ids: those of a Batch, tokens that count as the same made the same; guides: [n, 6], as in a Batch.
        """
        at = torch.arange(ids.shape[1], device=ids.device)
        total = torch.zeros((), device=ids.device)
        telling = torch.zeros_like(ids, dtype=torch.bool)
        matched = guides[(guides[:, 1] == SAME_TOKEN) & (guides[:, 4] > 1)]
        telling[matched[:, 0], matched[:, 2]] = True
        for kind, (queries, keys, _) in enumerate(self.guided):
            row, _, place, start, end, _ = guides[guides[:, 1] == kind].unbind(1)
            if len(row) == 0:
                continue
            scores = (queries @ keys.mT)[row, place] * self.config.head_dim**-0.5
            seen = at <= place[:, None]
            if branches is not None:
                seen &= (branches[row] == branches[row, place][:, None]) | (branches[row] == 0)
            wanted = (at >= start[:, None]) & (at < end[:, None]) & seen
            if kind == SAME_TOKEN:
                wanted &= (ids[row] == ids[row, place][:, None]) | (at == 0)
            elif kind == DECISION:
                wanted &= telling[row]
            lowest = torch.finfo(scores.dtype).min
            found = torch.logsumexp(scores.masked_fill(~wanted, lowest), 1)
            total = total + (torch.logsumexp(scores.masked_fill(~seen, lowest), 1) - found).mean()
        return total

    def told_loss(self, guides: Tensor, readout: nn.Linear) -> Tensor:
        """How badly what guided heads found in the last pass tells the labels: nats, a mean for each kind.

        guides: [n, 6], as in a Batch; readout: from a head to the vocabulary, for this loss only.
        """
        total = torch.zeros((), device=guides.device)
        for kind, (_, _, found) in enumerate(self.guided):
            row, _, place, _, _, told = guides[(guides[:, 1] == kind) & (guides[:, 5] >= 0)].unbind(1)
            if len(row):
                states = found[row, place]
                size = states.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
                total = total + F.cross_entropy(readout(states * size), told)
        return total

    def normed(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.model.norm.weight, self.config.rms_norm_eps)

    def forward(
        self,
        ids: Tensor,
        wanted: Tensor | None = None,
        positions: Tensor | None = None,
        branches: Tensor | None = None,
    ) -> Tensor:
        """Turn ids [batch, length] into logits [n, vocab] of the flat places `wanted`, or of every place."""
        x = self.hidden(ids, positions, branches)
        if wanted is not None:
            x = x[wanted]
        return F.linear(self.normed(x), self.model.embed_tokens.weight)

    def embed(self, ids: Tensor, real: Tensor) -> Tensor:
        """Text embeddings [batch, hidden] of length 1: means over the tokens that are `real`."""
        states = self.normed(self.hidden(ids)).view(*ids.shape, -1) * real[..., None]
        return F.normalize(states.sum(1) / real.sum(1, keepdim=True), dim=-1)
