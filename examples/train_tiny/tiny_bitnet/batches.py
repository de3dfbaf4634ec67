"""Endless training batches: conversations of similar length together, tokenised as they are needed."""

from __future__ import annotations

import functools
import multiprocessing
import random
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .corpus import EARLY, MIX, Source, draw_family, passage_pair
from .guides import COPY, Guide
from .tokenizer import BEGIN, END, SPECIAL_TOKENS, Encoded, encode, merge, text_ids

_CHUNK = 600  # families of conversations that are sorted by length together


_T = TypeVar("_T", bound="_Tensors")


@dataclass(frozen=True)
class _Tensors:
    def to(self: _T, device: torch.device) -> _T:
        """The same with all tensors on the device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)})


@dataclass(frozen=True)
class Batch(_Tensors):
    ids: Tensor  # [rows, length]
    positions: Tensor  # where each token stands in its conversation
    branches: Tensor | None  # see Encoded; None if there are none
    wanted: Tensor  # flat places whose next token is a target
    targets: Tensor
    weights: Tensor
    guides: Tensor  # [n, 6]: a row, and a Guide
    tokens: int  # without padding


@dataclass(frozen=True)
class Pairs(_Tensors):
    """Questions and the passages that answer them, in the same order."""

    ids: Tensor  # [2 * pairs, length]: first the questions
    real: Tensor  # 1.0 where there is a token
    tokens: int


def repeated_tokens(rng: random.Random, vocab_size: int, low: int = 4, high: int = 24) -> Encoded:
    """Random tokens, twice: the purest exercise in copying."""
    half = [rng.randrange(len(SPECIAL_TOKENS), vocab_size) for _ in range(rng.randint(low, high))]
    # The first token of the second half cannot be known.
    weights = [0.0] * (len(half) + 2) + [len(half) ** -0.5] * (len(half) - 1)
    ids = [BEGIN, *half, *half]
    guides = [Guide(COPY, len(half) + i, i + 1, i + 2) for i in range(1, len(half))]
    return Encoded(ids, weights, list(range(len(ids))), [0] * len(ids), guides)


def collate(rows: list[Encoded]) -> Batch:
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), END)
    positions, branches = torch.zeros_like(ids), torch.zeros_like(ids)
    weights = torch.zeros(len(rows), length)
    for i, row in enumerate(rows):
        size = len(row.ids)
        ids[i, :size] = torch.tensor(row.ids)
        positions[i, :size] = torch.tensor(row.positions)
        branches[i, :size] = torch.tensor(row.branches)
        weights[i, :size] = torch.tensor(row.weights)
    targets, target_weights = ids[:, 1:], weights[:, 1:]
    flat = torch.arange(len(rows))[:, None] * length + torch.arange(length - 1)
    wanted = target_weights > 0
    tokens = sum(len(row.ids) for row in rows)
    guides = [(i, *guide) for i, row in enumerate(rows) for guide in row.guides]
    return Batch(
        ids,
        positions,
        branches if branches.any() else None,
        flat[wanted],
        targets[wanted],
        target_weights[wanted],
        torch.tensor(guides, dtype=torch.long).view(-1, 6),
        tokens,
    )


def chunk_rows(
    tokenizer: Tokenizer, seed: int, chunk: int, early: bool, tokens_per_batch: int, max_length: int
) -> list[list[Encoded]]:
    """The rows of each batch of one chunk.

    They depend on the seed and the number of the chunk alone, so that a run can resume, and so that other
    processes can make them.
    """
    source = Source("train", f"{seed}-{chunk}")
    mix, repeats = (EARLY, 0.3) if early else (MIX, 0.06)
    vocab_size = tokenizer.get_vocab_size()
    rows: list[Encoded] = []
    for _ in range(_CHUNK):
        if source.chance(repeats):
            rows.append(repeated_tokens(source.random, vocab_size))
        else:
            family = [encode(tokenizer, sample) for sample in draw_family(source, mix)]
            while len((row := merge(family)).ids) > max_length and len(family) > 1:
                family.pop()
            rows.append(row)
    rows = sorted((row for row in rows if len(row.ids) <= max_length), key=lambda row: len(row.ids))
    groups: list[list[Encoded]] = [[]]
    for row in rows:
        if groups[-1] and len(row.ids) * (len(groups[-1]) + 1) > tokens_per_batch:
            groups.append([])
        groups[-1].append(row)
    source.random.shuffle(groups)
    return groups


def _leave_interrupts() -> None:
    """Ctrl-C is for the process that trains, which then stops the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class ChunkMaker:
    """`chunk_rows` by number, made in advance by other processes if there are any (`workers`)."""

    def __init__(
        self, tokenizer: Tokenizer, seed: int, tokens_per_batch: int, max_length: int, workers: int
    ) -> None:
        self._make = functools.partial(
            chunk_rows, tokenizer, seed, tokens_per_batch=tokens_per_batch, max_length=max_length
        )
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            # A forked process would share the state of the GPU.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, context, initializer=_leave_interrupts)
        self._made: dict[tuple[int, bool], Future[list[list[Encoded]]]] = {}

    def __call__(self, chunk: int, early: bool) -> list[list[Encoded]]:
        if self._pool is None:
            return self._make(chunk, early)
        for number in range(chunk, chunk + self._workers + 1):
            if (number, early) not in self._made:
                self._made[number, early] = self._pool.submit(self._make, number, early)
        return self._made.pop((chunk, early)).result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def passage_pairs(tokenizer: Tokenizer, seed: int, number: int, count: int, split: str = "train") -> Pairs:
    source = Source(split, f"pairs-{seed}-{number}")
    pairs = [passage_pair(source) for _ in range(count)]
    texts = [question for question, _ in pairs] + [passage for _, passage in pairs]
    rows = [[BEGIN, *text_ids(tokenizer, text)] for text in texts]
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), END)
    real = torch.zeros(len(rows), length)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        real[i, : len(row)] = 1
    return Pairs(ids, real, int(real.sum()))
