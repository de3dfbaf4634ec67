"""Quick scores during training: whether every token of the held-out answers is the most likely one.

That is the same as greedy generation giving the answer exactly, but needs one pass instead of many.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from tokenizers import Tokenizer

from .batches import collate
from .corpus import held_out_samples
from .model import TinyBitNet
from .tokenizer import Encoded, encode

_ROWS_AT_ONCE = 16


def held_out_rows(tokenizer: Tokenizer, per_skill: int, seed: int) -> list[tuple[str, Encoded]]:
    return [(s.skill, encode(tokenizer, s)) for s in held_out_samples(per_skill, seed)]


@torch.no_grad()
def score(model: TinyBitNet, rows: list[tuple[str, Encoded]], device: torch.device) -> dict[str, float]:
    """Share of exact answers per skill."""
    right: dict[str, list[bool]] = defaultdict(list)
    limit = model.config.max_position_embeddings
    ordered = sorted((row for row in rows if len(row[1].ids) <= limit), key=lambda row: len(row[1].ids))
    for start in range(0, len(ordered), _ROWS_AT_ONCE):
        part = ordered[start : start + _ROWS_AT_ONCE]
        batch = collate([row for _, row in part]).to(device)
        best = model(batch.ids, batch.wanted).argmax(-1)
        wrong_rows = (batch.wanted[best != batch.targets] // batch.ids.shape[1]).tolist()
        for i, (skill, _) in enumerate(part):
            right[skill].append(i not in wrong_rows)
    return {skill: sum(values) / len(values) for skill, values in sorted(right.items())}
