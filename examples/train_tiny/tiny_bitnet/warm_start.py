"""Going on from a finished file: its tokenizer, and weights that are trained further.

A file has the rounded matrices only. What they were rounded from is drawn anew, so that it rounds to the same
codes and the same scale: the network computes what the file computes, and each weight can move from there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, models
from torch import Tensor

from bitnet.models.gguf_source import read_gguf

from .export import ARCHITECTURE, gguf_name
from .model import ModelConfig, TinyBitNet
from .tokenizer import SPECIAL_TOKENS, at_run_time

_MARGIN = 0.05  # of the scale, between a weight and the threshold at which it would round differently
_QUIET = 0.1  # of what the MLP of an added layer puts out, so that it changes little at first
FIRST_ADDED = 2  # behind the two layers of the constructed start


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file that was made here. Raises ModelFileError if it is no GGUF file."""
    metadata = read_gguf(path).metadata
    tokens, merges = (metadata[f"tokenizer.ggml.{key}"][0] for key in ("tokens", "merges"))
    ids = {token: i for i, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = at_run_time(Tokenizer(models.BPE(ids, pairs, ignore_merges=True)))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL_TOKENS])
    return tokenizer


def read_config(path: Path) -> ModelConfig:
    """The sizes of a file that was made here. Raises ModelFileError if it is no GGUF file."""
    metadata = read_gguf(path).metadata

    def number(key: str) -> Any:
        return metadata[f"{ARCHITECTURE}.{key}"][0]

    return ModelConfig(
        vocab_size=number("vocab_size"),
        hidden_size=number("embedding_length"),
        intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"),
        num_attention_heads=number("attention.head_count"),
        num_key_value_heads=number("attention.head_count_kv"),
        head_dim=number("attention.key_length"),
        rope_theta=number("rope.freq_base"),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=number("context_length"),
    )


def unrounded(codes: NDArray[np.int8], scale: float, random: np.random.Generator) -> NDArray[np.float32]:
    """Weights [rows, columns] whose absmean rounding is `codes` and `scale`.

    Zeros are drawn evenly below the threshold, the others above it, so far that the mean is the scale.
    """
    even = random.random(codes.shape)
    zero = codes == 0
    low = even * (0.5 - _MARGIN)
    above = np.abs(random.standard_normal(codes.shape))
    ones = codes.size - int(zero.sum())
    if ones == 0:
        return (low * scale).astype(np.float32)
    missing = codes.size - low[zero].sum() - ones * (0.5 + _MARGIN)
    high = 0.5 + _MARGIN + above * (missing / above[~zero].sum())
    signs = np.where(zero, random.choice((-1.0, 1.0), codes.shape), codes)
    return (np.where(zero, low, high) * signs * scale).astype(np.float32)


def read_weights(path: Path, seed: int = 0) -> dict[str, Tensor]:
    """The state of a TinyBitNet of the file's sizes, float32."""
    source = read_gguf(path)
    random = np.random.default_rng(seed)
    found: dict[str, NDArray[np.float32]] = {}
    for ternary in source.ternary:
        found[ternary.name] = unrounded(*ternary.read(), random)
    for dense in source.dense:
        found[dense.name] = np.concatenate(list(dense.pieces())).reshape(dense.shape)
    names = TinyBitNet(read_config(path)).state_dict()
    return {name: torch.from_numpy(found[gguf_name(name)].copy()) for name in names}


def add_layers(weights: dict[str, Tensor], config: ModelConfig, count: int) -> dict[str, Tensor]:
    """The state of a network with `count` more layers. Raises ValueError if `count` is negative."""
    if count < 0:
        raise ValueError(
            f"the file has {config.num_hidden_layers} layers, {-count} more than asked for; "
            "layers can be added only"
        )
    grown = TinyBitNet(replace(config, num_hidden_layers=config.num_hidden_layers + count)).state_dict()
    for name in grown:
        if "down_proj" in name:
            grown[name] *= _QUIET
    for name, weight in weights.items():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(int(parts[2]) + (count if int(parts[2]) >= FIRST_ADDED else 0))
        grown[".".join(parts)] = weight
    return grown
