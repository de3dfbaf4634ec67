"""A constructed start that can already copy ("induction"), for a model too small and short-lived to learn it.

Layer 0 looks at the previous token; layer 1 finds where the current token stood before and copies what
followed. It is only an initial value: it is ternary from the first step and everything is trained afterwards.
"""

from __future__ import annotations

import math

import torch

from .model import TinyBitNet


@torch.no_grad()
def construct_induction(
    model: TinyBitNet, constant: int = 64, gain: float = 4.0, rotations: int = 6, first_mlp: float = 0.1
) -> None:
    """Rewrite the heads of KV head 0 in layers 0 and 1 in place.

    `constant` embedding dimensions start with the same value for every token, so that queries and keys made
    from them depend on the position alone. Layer 0 compares positions with the `rotations` fastest RoPE
    frequencies, one step apart, and writes the previous token into a fresh subspace. Layer 1 matches that
    subspace with the current token. `gain` sharpens layer 1's attention.
    """
    c = model.config
    group, dim, half = c.queries_per_kv, c.head_dim, c.head_dim // 2
    unit = 1 / math.sqrt(c.hidden_size)
    embedding = model.model.embed_tokens.weight
    embedding[:, :constant] = 2.0 * embedding.std().item()
    first, second = model.blocks[0].self_attn, model.blocks[1].self_attn

    # Layer 0, where: q.k(distance) = sum_i cos((distance - 1) * frequency_i), largest one token back.
    key = first.k_proj.weight[:dim]
    key.zero_()
    first.q_proj.weight[: group * dim] = 0
    for i in range(rotations):
        frequency = c.rope_theta ** (-2 * i / dim)
        # Ternary weights keep only the larger components of the phase.
        key[i, :constant] = unit if math.cos(frequency) > 0.38 else 0.0
        key[i + half, :constant] = unit if math.sin(frequency) > 0.38 else 0.0
        for head in range(group):
            first.q_proj.weight[head * dim + i, :constant] = unit
    # Layer 0, what: the value map of the token, written where no token's embedding is read as a position.
    value = first.v_proj.weight[:dim]
    value[:, :constant] = 0
    written = first.o_proj.weight[:, :dim]
    written[:constant] = 0
    for head in range(1, group):
        first.o_proj.weight[:, head * dim : (head + 1) * dim] = written
    first.o_proj.weight[:, group * dim :] = 0
    model.blocks[0].mlp.down_proj.weight.mul_(first_mlp)

    # Layer 1: query = the current token, key = what stood before each place, output = the token there.
    for head in range(group):
        second.q_proj.weight[head * dim : (head + 1) * dim] = value * (unit / value.std())
    second.k_proj.weight[:dim] = written.T * (unit / written.std())
    second.q_proj.weight.mul_(gain)
    second.k_proj.weight.mul_(gain)
    copied = second.v_proj.weight[:dim]
    copied[:, :constant] = 0
    spread = second.o_proj.weight.std() / copied.std()
    for head in range(group):
        second.o_proj.weight[:, head * dim : (head + 1) * dim] = copied.T * spread
