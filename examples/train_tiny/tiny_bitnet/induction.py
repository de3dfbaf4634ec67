"""A constructed start that can already copy ("induction"), for a model too small and short-lived to learn it.

Layer 0 looks at the previous token; layer 1 finds where the current token stood before and copies what
followed. It is only an initial value: it is ternary from the first step and everything is trained afterwards.
"""

from __future__ import annotations

import math

import torch

from .model import TinyBitNet


def _sign(value: float) -> float:
    """Ternary weights keep only the larger components of a phase."""
    return math.copysign(1.0, value) if abs(value) > 0.38 else 0.0


@torch.no_grad()
def construct_induction(
    model: TinyBitNet,
    constant: int = 64,
    sharp: float = 2.0,
    gain: float = 4.0,
    pair: float = 0.8,
    rotations: int = 6,
    first_mlp: float = 0.1,
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

    # Layer 0, where: q.k(distance) = sum_i cos((distance - back) * frequency_i), largest `back` tokens back.
    # A matrix with few values has a small scale when it is ternary: dimensions that the other side does not
    # use keep their random values.
    idle = [i for i in range(dim) if i % half >= rotations]
    for kv_head, back in ((0, 1), (1, 2)):
        key = first.k_proj.weight[kv_head * dim : (kv_head + 1) * dim]
        key[[i for i in range(dim) if i not in idle[1::2]]] = 0
        for i in range(rotations):
            phase = back * c.rope_theta ** (-2 * i / dim)
            key[i, :constant] = unit * _sign(math.cos(phase))
            key[i + half, :constant] = unit * _sign(math.sin(phase))
        for head in range(kv_head * group, (kv_head + 1) * group):
            query = first.q_proj.weight[head * dim : (head + 1) * dim]
            query[[i for i in range(dim) if i not in idle[0::2]]] = 0
            query[:rotations, :constant] = unit
    first.q_proj.weight.mul_(sharp)
    first.k_proj.weight.mul_(sharp)
    # Layer 0, what: one value map of the token, written to a place of its own for each distance.
    value = first.v_proj.weight[:dim]
    value[:, :constant] = 0
    first.v_proj.weight[dim : 2 * dim] = value
    written = []
    for kv_head in (0, 1):
        heads = first.o_proj.weight[:, kv_head * group * dim : (kv_head + 1) * group * dim]
        output = heads[:, :dim]
        output[:constant] = 0
        heads.copy_(output.repeat(1, group))
        written.append(output)
    model.blocks[0].mlp.down_proj.weight.mul_(first_mlp)

    # Layer 1: query = the current token (and, in the second head, the one before it), key = what stood one
    # (and two) before each place, output = the token there. A fixed shuffle keeps the two apart.
    shuffle = torch.randperm(dim, generator=torch.Generator().manual_seed(0))
    this, before, earlier = value, written[0].T, written[1].T
    this, before, earlier = (m * (unit / m.std()) for m in (this, before, earlier))
    second.q_proj.weight[: group * dim] = this.repeat(group, 1)
    second.q_proj.weight[(group - 1) * dim : group * dim] += pair * before[shuffle]
    second.k_proj.weight[:dim] = before + pair * earlier[shuffle]
    second.q_proj.weight.mul_(gain)
    second.k_proj.weight.mul_(gain)
    copied = second.v_proj.weight[:dim]
    copied[:, :constant] = 0
    spread = second.o_proj.weight.std() / copied.std()
    for head in range(group):
        second.o_proj.weight[:, head * dim : (head + 1) * dim] = copied.T * spread
