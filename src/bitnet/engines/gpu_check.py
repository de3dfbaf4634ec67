"""Whether a GPU computes what the CPU does, on the user's own machine, and how fast it is.

The numbers are meant to be the same bits. What counts as passed is what users would notice: exact integers,
logits within TOLERANCE of the largest, and the same tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitnet import _native

TOLERANCE = 1e-3  # of the largest logit
# Tokens of a step, such that every kernel for products is used.
_PRODUCT_TOKENS = (1, 8, 12, 30, 50, 130)
_CHUNKS = (1, 2, 37, 70, 3, 15)  # how a prompt is computed
_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Result:
    """One check. detail: the numbers."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Speed:
    """One measurement; it stands beside a check of the same kernels. value: in `unit`."""

    name: str
    value: float
    unit: str
    detail: str


def compare(path: Path, library: str, device: int, *, n_threads: int = 0) -> Iterator[Result]:
    """Compare GPU and CPU on a model, one result after the other. Raises what loading the model raises."""
    model = _native.Model(_native.ModelFile(str(path)), n_threads=n_threads)
    for rows, cols in sorted(set(_shapes(model))):
        yield _products(library, device, rows, cols)
    layer_counts = [-1, model.n_layers // 2] if model.n_layers > 1 else [-1]
    cpu = _Sequence(_native.Runner(model, n_blocks=16, max_batch_tokens=128, n_threads=n_threads))
    for n_layers in layer_counts:
        for low_vram in (False, True) if n_layers == -1 else (False,):
            gpu = _Sequence(
                _native.Runner(
                    model,
                    n_blocks=16,
                    max_batch_tokens=128,
                    n_threads=n_threads,
                    n_gpu_layers=n_layers,
                    main_gpu=device,
                    low_vram=low_vram,
                    gpu_library=library,
                )
            )
            where = "all layers" if n_layers == -1 else f"{n_layers} of {model.n_layers} layers"
            yield _forward(cpu, gpu, model.vocab_size, where + (", low_vram" if low_vram else ""))


def _shapes(model: _native.Model) -> Iterator[tuple[int, int]]:
    """(out, in) of a layer's matrices."""
    q_size, kv_size = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    yield from ((q_size, model.hidden_size), (kv_size, model.hidden_size), (model.hidden_size, q_size))
    yield from ((model.ffn_size, model.hidden_size), (model.hidden_size, model.ffn_size))


def _products(library: str, device: int, rows: int, cols: int) -> Result:
    random = np.random.default_rng(rows * cols)
    codes = random.integers(-1, 2, (rows, cols), np.int8)
    codes[0], codes[-1] = 1, -1  # the largest sums there are
    wrong = 0
    for n_tokens in _PRODUCT_TOKENS:
        x = random.integers(-128, 128, (n_tokens, cols), dtype=np.int8)
        x[0] = 127
        x[-1] = -128
        found = _native.gpu_product(library, device, codes, x)[0]
        # Exact: no partial sum reaches 2^24.
        wrong += int((found != x.astype(np.float32) @ codes.T.astype(np.float32)).sum())
    detail = f"{wrong} of {sum(_PRODUCT_TOKENS) * rows} integers differ" if wrong else "all integers equal"
    return Result(f"products with {rows} x {cols}", wrong == 0, detail)


class _Sequence:
    """A sequence in blocks that are no neighbours, and a second one beside it."""

    def __init__(self, runner: _native.Runner) -> None:
        self.runner = runner

    def step(self, token_ids: NDArray[np.int32], start: int) -> NDArray[np.float32]:
        """The logits of the sequence's next tokens; the second sequence begins with the first of them."""
        n = len(token_ids)
        tables = [[3, 9, 1, 14, 6], [11]]
        self.runner.forward(np.append(token_ids, token_ids[:1]), tables, [start, 0], [n, 1], range(n + 1))
        return self.runner.logits()


def _forward(cpu: _Sequence, gpu: _Sequence, vocab_size: int, name: str) -> Result:
    worst, same_bits, same_tokens, n_tokens = 0.0, True, True, 0
    random = np.random.default_rng(1)
    greedy = _native.Sampler(temperature=0)
    for count in _CHUNKS:
        token_ids = random.integers(0, vocab_size, count).astype(np.int32)
        expected, found = (sequence.step(token_ids, n_tokens) for sequence in (cpu, gpu))
        n_tokens += count
        worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
        same_bits &= np.array_equal(expected.view(np.uint32), found.view(np.uint32))
        for row in range(count + 1):
            sampled = [runner.sample(row, greedy).token_id for runner in (cpu.runner, gpu.runner)]
            same_tokens &= sampled[0] == sampled[1] == int(np.argmax(expected[row]))
    difference = "the same bits" if same_bits else f"logits differ by {worst:.1e} of the largest"
    tokens = "the same tokens" if same_tokens else "other tokens"
    return Result(
        f"{n_tokens} tokens, {name}", bool(worst <= TOLERANCE and same_tokens), f"{difference}, {tokens}"
    )


def speeds(path: Path, library: str, device: int) -> Iterator[Speed]:
    """Time the GPU on a model, one measurement after the other."""
    model = _native.Model(_native.ModelFile(str(path)))
    rows, cols = 2 * model.ffn_size, model.hidden_size  # gate and up, which are computed together
    codes = np.random.default_rng(0).integers(-1, 2, (rows, cols), np.int8)
    x = np.ones((1, cols), np.int8)
    _, seconds, n_bytes, copy = _native.gpu_product(library, device, codes, x, timed=True)
    share = 100 * n_bytes / seconds / copy
    yield Speed(
        "product",
        share,
        "% of a copy's bandwidth",
        f"{rows} x {cols}, 1 token: {seconds * 1e6:.1f} us, {n_bytes / seconds / 1e9:.0f} GB/s of weights, "
        f"{share:.0f} % of a copy's {copy / 1e9:.0f} GB/s",
    )
    context = min(512, model.context_length)
    for n_batch in (1, 64):
        n_blocks = -(-context // _BLOCK)
        runner = _native.Runner(
            model,
            n_blocks=n_batch * n_blocks,
            max_batch_tokens=512,
            n_gpu_layers=-1,
            main_gpu=device,
            gpu_library=library,
        )
        if n_batch == 1:
            rate = context / _prefill(runner, context)
            yield Speed("prefill", rate, "tokens/s", f"{rate:.0f} tokens/s in one step of {context}")
        start = context // 2
        seconds = _decode(runner, n_batch, n_blocks, n_steps=min(64, start), start=start)
        detail = (
            f"{seconds * 1e3:.3f} ms a step, {n_batch / seconds:.0f} tokens/s, from {start} tokens on, greedy"
        )
        if n_batch == 1:
            yield Speed("decode", seconds * 1e3, "ms a token", detail)
        else:
            yield Speed(f"decode of {n_batch} together", n_batch / seconds, "tokens/s", detail)


def _prefill(runner: _native.Runner, n_tokens: int) -> float:
    token_ids, blocks = np.ones(n_tokens, np.int32), list(range(-(-n_tokens // _BLOCK)))

    def once() -> float:
        start = time.perf_counter()
        runner.forward(token_ids, [blocks], [0], [n_tokens], [n_tokens - 1])
        return time.perf_counter() - start

    return statistics.median([once() for _ in range(8)][1:])


def _decode(runner: _native.Runner, n_batch: int, n_blocks: int, *, n_steps: int, start: int) -> float:
    """Seconds of a step, in the median."""
    tables = [list(range(i * n_blocks, (i + 1) * n_blocks)) for i in range(n_batch)]
    for table in tables:
        runner.forward(np.ones(start, np.int32), [table], [0], [start], [])
    samplers = [_native.Sampler(temperature=0) for _ in range(n_batch)]
    token_ids = np.ones(n_batch, np.int32)
    outputs, times = list(range(n_batch)), []
    for position in range(start, start + n_steps):
        begin = time.perf_counter()
        runner.forward(token_ids, tables, [position] * n_batch, [1] * n_batch, outputs)
        token_ids = np.array(
            [runner.sample(row, sampler).token_id for row, sampler in enumerate(samplers)], np.int32
        )
        times.append(time.perf_counter() - begin)
    return statistics.median(times)
