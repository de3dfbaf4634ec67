"""The forward pass on MLX: Apple GPUs, and wherever else MLX runs. The same steps as native/model/runner.cpp.

Ternary products are exact: `quantized_matmul` with 2 bits, scale 1 and bias -1 multiplies by -1, 0 and 1, and
with whole numbers of 8 bits as activations every partial sum is a whole number that float32 holds, in
whatever order it is summed. Everything else is float32, too; only rounding tells the results from the CPU's.

MLX computes lazily, and a GPU while Python goes on. A few layers at a time are handed to it, so that it
computes one group while the next is described; and who samples waits. Everything happens on the thread that
calls `forward`: MLX's streams belong to threads.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from bitnet import _native
from bitnet.errors import BitNetError, CancelledError, DeviceError, ValidationError
from bitnet.runtime.runner import check_finite, check_step, logprob

KV_BLOCK_SIZE = 32
# Layers that are handed to the device together, and groups of them that may be under way: one computes while
# the next is described. Little enough that whoever cancels does not wait for a whole prompt.
LAYERS_PER_GROUP = 4
MAX_GROUPS = 2
# Wider sums of 8 bit activations and codes 0 to 2 might not be whole numbers that float32 holds.
MAX_WIDTH = 2**24 // (128 * 2)

Weights = Mapping[str, Any]

# Of a layer, where its architecture has them.
NORMS = ("attn_norm", "q_head_norm", "k_head_norm", "post_attn_norm", "ffn_norm", "post_ffn_norm")


class Linear:
    """The ternary matrices of one input, such as q, k and v: integers(q) * (scale of q * scale of row).

    They are one matrix, unless one of them has a norm of its input to itself. A layer's weights of it are a
    list: one part for each matrix that is multiplied.
    """

    def __init__(self, names: Sequence[str], width: int) -> None:
        self.names = names
        self.width = width
        self.group = group_size(width)
        self._pad = -width % self.group
        self._n_groups = (width + self._pad) // self.group

    def weights(self, model: _native.Model, layer: int, units: Units) -> list[Weights]:
        norms = [model.norm(layer, name) for name in self.names]
        alone = len(self.names) == 1 or any(norm is not None for norm in norms)
        parts = [[name] for name in self.names] if alone else [list(self.names)]
        result: list[Weights] = []
        for names, norm in zip(parts, norms, strict=False):
            matrices = [model.ternary_rows(layer, name, self.group // 16) for name in names]
            codes = np.concatenate([words for words, _ in matrices])
            scales = np.concatenate([np.full(len(words), scale, np.float32) for words, scale in matrices])
            part = {
                "codes": mx.array(codes),
                "scales": mx.array(scales),
                **units.of(len(codes), self._n_groups),
            }
            if norm is not None:
                part["norm"] = mx.array(norm)
            result.append(part)
        return result

    def integers(self, q: mx.array, part: Weights) -> mx.array:
        """Exact dot products [n, rows] of whole numbers q [n, width], -128 to 127, with the codes."""
        if self._pad:
            q = mx.pad(q, [(0, 0), (0, self._pad)])
        return mx.quantized_matmul(
            q, part["codes"], part["ones"], part["minus"], group_size=self.group, bits=2
        )

    def __call__(self, x: mx.array, parts: Sequence[Weights], norm_eps: float) -> mx.array:
        """x [n, width] -> the rows of all matrices, side by side"""
        products = []
        for part in parts:
            q, scale = quantize(mx.fast.rms_norm(x, part["norm"], norm_eps) if "norm" in part else x)
            products.append(self.integers(q, part) * (part["scales"] * scale))
        return products[0] if len(products) == 1 else mx.concatenate(products, axis=-1)


def group_size(width: int) -> int:
    """Weights that share a scale: the largest group that leaves nothing to fill up, else the smallest."""
    return next((size for size in (128, 64, 32) if width % size == 0), 32)


class Units:
    """Scales 1 and biases -1, shared by all matrices of a shape."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int], dict[str, mx.array]] = {}

    def of(self, rows: int, groups: int) -> dict[str, mx.array]:
        shape = rows, groups
        if shape not in self._made:
            self._made[shape] = {
                "ones": mx.array(np.ones(shape, np.float32)),
                "minus": mx.array(np.full(shape, -1, np.float32)),
            }
        return self._made[shape]


def quantize(x: mx.array) -> tuple[mx.array, mx.array]:
    """Activations [n, width] as whole numbers of 8 bits, in float32, and a scale for each row [n, 1]."""
    largest = mx.maximum(mx.max(mx.abs(x), axis=-1, keepdims=True), 1e-5)
    return mx.round(x * (127.0 / largest)), largest / 127.0


class MlxWeights:
    """A model's weights as MLX arrays; the embedding stays with the native model, which decodes its rows."""

    def __init__(self, model: _native.Model) -> None:
        """Raises ValidationError for a model that is too wide."""
        q_size = model.n_heads * model.head_dim
        widest = max(model.hidden_size, model.ffn_size, q_size)
        if widest > MAX_WIDTH:
            raise ValidationError(
                f"the engine mlx computes matrices of up to {MAX_WIDTH} columns exactly, and this model has "
                f"{widest}; load it with engine='native'",
                field="engine",
            )
        self.linears = {
            "qkv": Linear(("q", "k", "v"), model.hidden_size),
            "o": Linear(("o",), q_size),
            "gate_up": Linear(("gate", "up"), model.hidden_size),
            "down": Linear(("down",), model.ffn_size),
        }
        units = Units()
        self.layers: list[dict[str, Any]] = []
        for index in range(model.n_layers):
            layer: dict[str, Any] = {
                name: linear.weights(model, index, units) for name, linear in self.linears.items()
            }
            for name in NORMS:
                if (values := model.norm(index, name)) is not None:
                    layer[name] = mx.array(values)
            self.layers.append(layer)
        output_norm = model.norm(0, "output_norm")
        assert output_norm is not None
        self.output_norm = mx.array(output_norm)
        head, scales = model.head_rows()
        self.head_width = head.shape[1]
        self.head_group = group_size(self.head_width)
        n_groups = self.head_width // self.head_group
        # Bytes of 0 to 255, element k of a word in bits 8 * (k % 4).
        self.head = mx.array((head.view(np.uint8) ^ 0x80).view(np.uint32))
        self.head_scales = mx.array(np.repeat(scales[:, None], n_groups, axis=1))
        self.head_biases = mx.array(np.repeat(-128 * scales[:, None], n_groups, axis=1))


class MlxRunner:
    """Implements bitnet.runtime.runner.Runner."""

    block_size = KV_BLOCK_SIZE
    tiles: dict[str, int] = {}  # noqa: RUF012  (MLX chooses)

    def __init__(
        self,
        model: _native.Model,
        weights: MlxWeights,
        *,
        n_blocks: int,
        max_batch_tokens: int = 512,
        n_threads: int = 0,
        compiled: bool | None = None,
    ) -> None:
        """n_threads: of the exact logits, which the CPU computes. compiled: with chains of elementwise steps
        as one kernel each; None = on a GPU. On a CPU MLX makes them with a C++ compiler, for seconds each."""
        self._model = model
        self._weights = weights
        self.n_blocks = n_blocks
        self.max_batch_tokens = max_batch_tokens
        self._head = _native.Head(model, n_threads=n_threads)
        self.kernels = f"mlx {mx.default_device().type.name}"
        half = model.n_rot // 2
        # In float64, as the CPU has them.
        self._frequencies = float(np.float32(model.rope_base)) ** (-2.0 * np.arange(half) / model.n_rot)
        slots = (n_blocks * KV_BLOCK_SIZE, model.n_kv_heads, model.head_dim)
        self.kv_bytes = 2 * model.n_layers * math.prod(slots) * 4
        self.n_gpu_layers = self.gpu_bytes = 0  # it has no memory of its own to plan
        self._slots = slots
        # Keys and values of each layer, [slots, n_kv_heads, head_dim]: rounded to f16, as the CPU keeps them,
        # and held in f32, which is what attention is computed in. Made on the thread that computes.
        self._keys: list[mx.array] = []
        self._values: list[mx.array] = []
        gpu = mx.default_device() == mx.gpu
        compiled = gpu if compiled is None else compiled
        self._before = mx.compile(self._before_attention) if compiled else self._before_attention
        self._after = mx.compile(self._after_attention) if compiled else self._after_attention
        # A GPU may round the factors of a float32 product to 10 bits.
        self._rounding = weights.head_width * 2.0**-23 + (2.0**-9 if gpu else 0)
        self._cancelled = False
        self._failed: DeviceError | None = None
        self._hidden: mx.array | None = None
        self._hidden_values: NDArray[np.float32] | None = None
        self._taken = False

    @property
    def n_threads(self) -> int:
        return self._head.n_threads

    def cancel(self) -> None:
        self._cancelled = True

    def forward(
        self,
        token_ids: NDArray[np.int32],
        block_tables: Sequence[Sequence[int]],
        starts: Sequence[int],
        lengths: Sequence[int],
        outputs: Sequence[int],
    ) -> None:
        n = len(token_ids)
        check_step(n, lengths, self.max_batch_tokens)
        self._hidden = self._hidden_values = None
        self._taken = False
        with self._computing():
            self._step(token_ids, block_tables, starts, lengths, outputs)

    def _step(
        self,
        token_ids: NDArray[np.int32],
        block_tables: Sequence[Sequence[int]],
        starts: Sequence[int],
        lengths: Sequence[int],
        outputs: Sequence[int],
    ) -> None:
        n = len(token_ids)
        n_rows = rows_computed(n)  # each number of rows is described once
        embedded = np.zeros((n_rows, self._model.hidden_size), np.float32)
        embedded[:n] = self._model.embedding_rows(token_ids)
        x = mx.array(embedded)
        positions = np.concatenate(
            [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
        )
        angles = np.zeros((n_rows, 1, len(self._frequencies)))
        angles[:n, 0] = positions[:, None] * self._frequencies
        cos, sin = mx.array(np.cos(angles).astype(np.float32)), mx.array(np.sin(angles).astype(np.float32))
        slices = list(self._slices(block_tables, starts, lengths))
        slots = mx.array(np.concatenate([part.new_slots for part in slices]))
        if not self._keys:
            self._keys = [mx.zeros(self._slots) for _ in range(self._model.n_layers)]
            self._values = [mx.zeros(self._slots) for _ in range(self._model.n_layers)]
        under_way: deque[mx.array] = deque()
        for index, layer in enumerate(self._weights.layers):
            q, k, v = self._before(x, cos, sin, layer)
            keys, values = self._keys[index], self._values[index]
            keys[slots] = k[:n]
            values[slots] = v[:n]
            attended = [part.attend(q, keys, values) for part in slices]
            rows = attended[0] if len(attended) == 1 else mx.concatenate(attended)
            if n_rows > n:
                rows = mx.pad(rows, [(0, n_rows - n), (0, 0)])
            x = self._after(x, rows, layer)
            if index % LAYERS_PER_GROUP == LAYERS_PER_GROUP - 1 or index == self._model.n_layers - 1:
                first = index - index % LAYERS_PER_GROUP
                mx.async_eval(x, *self._keys[first : index + 1], *self._values[first : index + 1])
                under_way.append(x)
                if len(under_way) > MAX_GROUPS:
                    mx.eval(under_way.popleft())
                if self._cancelled:
                    self._cancelled = False
                    raise CancelledError("the step was cancelled")
        if len(outputs):
            x = x[mx.array(np.asarray(outputs, np.int32))]
            self._hidden = mx.fast.rms_norm(x, self._weights.output_norm, self._model.norm_eps)
            mx.async_eval(self._hidden)

    def _slices(
        self, block_tables: Sequence[Sequence[int]], starts: Sequence[int], lengths: Sequence[int]
    ) -> Iterator[_Slice]:
        model = self._model
        first = 0
        for blocks, start, length in zip(block_tables, starts, lengths, strict=True):
            yield _Slice(blocks, first, start, length, model.head_dim, model.n_kv_heads)
            first += length

    def _before_attention(
        self, x: mx.array, cos: mx.array, sin: mx.array, layer: Weights
    ) -> tuple[mx.array, mx.array, mx.array]:
        """x [n, hidden] -> q [n, n_heads, head_dim], k, v [n, n_kv_heads, head_dim]"""
        model = self._model
        joined = self._linear("qkv", self._norm(x, layer, "attn_norm"), layer)
        q_size, kv_size = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
        q, k, v = mx.split(joined, [q_size, q_size + kv_size], axis=-1)
        n = x.shape[0]
        q = self._norm(q.reshape(n, model.n_heads, model.head_dim), layer, "q_head_norm")
        k = self._norm(k.reshape(n, model.n_kv_heads, model.head_dim), layer, "k_head_norm")
        v = v.reshape(n, model.n_kv_heads, model.head_dim)
        return self._rotate(q, cos, sin), _as_f16(self._rotate(k, cos, sin)), _as_f16(v)

    def _rotate(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        """Rotary positions, halves: x [n, heads, head_dim]; cos, sin [n, 1, n_rot / 2]."""
        half, n_rot = self._model.n_rot // 2, self._model.n_rot
        a, b = x[..., :half], x[..., half:n_rot]
        rotated = [a * cos - b * sin, b * cos + a * sin]
        if n_rot < self._model.head_dim:
            rotated.append(x[..., n_rot:])
        return mx.concatenate(rotated, axis=-1)

    def _after_attention(self, x: mx.array, attended: mx.array, layer: Weights) -> mx.array:
        """x [n, hidden], attended [n, n_heads * head_dim] -> the next layer's x"""
        x = x + self._norm(self._linear("o", attended, layer), layer, "post_attn_norm")
        joined = self._linear("gate_up", self._norm(x, layer, "ffn_norm"), layer)
        gate, up = mx.split(joined, 2, axis=-1)
        product = ACTIVATIONS[self._model.activation](gate) * up
        return x + self._norm(self._linear("down", product, layer), layer, "post_ffn_norm")

    def _linear(self, name: str, x: mx.array, layer: Weights) -> mx.array:
        return self._weights.linears[name](x, layer[name], self._model.norm_eps)

    def _norm(self, x: mx.array, layer: Weights, name: str) -> mx.array:
        """RMSNorm of the last axis, if the layer has it."""
        return mx.fast.rms_norm(x, layer[name], self._model.norm_eps) if name in layer else x

    def _head_scores(self, hidden: mx.array) -> mx.array:
        """[n, hidden] -> [n, vocab], with the head in 8 bits"""
        weights = self._weights
        pad = weights.head_width - hidden.shape[1]
        if pad:
            hidden = mx.pad(hidden, [(0, 0), (0, pad)])
        return mx.quantized_matmul(
            hidden,
            weights.head,
            weights.head_scales,
            weights.head_biases,
            group_size=weights.head_group,
            bits=8,
        )

    def hidden(self) -> NDArray[np.float32]:
        if self._hidden_values is None:
            if self._hidden is None:
                return np.empty((0, self._model.hidden_size), np.float32)
            with self._computing():
                mx.eval(self._hidden)
                values: NDArray[np.float32] = np.array(self._hidden)
            check_finite(values)
            self._hidden_values = values
        return self._hidden_values

    def logits(self) -> NDArray[np.float32]:
        return self._head.logits(self.hidden())

    def logprobs(self, target_ids: NDArray[np.int32], first_output: int = 0) -> list[float]:
        return [
            math.nan if target < 0 else logprob(self._head.logits(hidden[None])[0], target)
            for target, hidden in zip(target_ids.tolist(), self.hidden()[first_output:], strict=False)
        ]

    def sample(self, output: int, sampler: _native.Sampler, logprobs: int = -1) -> _native.Sampled:
        if not self._taken:
            with self._computing():
                assert self._hidden is not None
                scores = self._head_scores(self._hidden)
                mx.eval(scores)
                values = np.array(scores)
            self._head.take(self.hidden(), values, rounding=self._rounding)
            self._taken = True
        return self._head.sample(output, sampler, logprobs)

    def copy_block(self, source: int, target: int) -> None:
        size = KV_BLOCK_SIZE
        with self._computing():
            for pool in (*self._keys, *self._values):
                pool[target * size : (target + 1) * size] = pool[source * size : (source + 1) * size]
            mx.eval(*self._keys, *self._values)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """What goes wrong within, other than that it was cancelled, leaves keys and values unknown."""
        if self._failed is not None:
            raise self._failed
        try:
            yield
        except BitNetError:
            raise
        except Exception as error:
            self._failed = DeviceError(
                f"MLX ({self.kernels}) failed: {str(error).rstrip('.')}. If its memory was not enough, load "
                "the model with a smaller n_ctx or n_batch, or set engine to native to compute on the CPU"
            )
            raise self._failed from error


def rows_computed(n: int) -> int:
    """Rows of a step of n tokens: few different numbers, because MLX describes a step anew for each."""
    step = 1 if n <= 16 else 8 if n <= 64 else 32
    return -(-n // step) * step


def _as_f16(x: mx.array) -> mx.array:
    return x.astype(mx.float16).astype(mx.float32)


def _relu2(x: mx.array) -> mx.array:
    positive = mx.maximum(x, 0.0)
    return positive * positive


def _silu(x: mx.array) -> mx.array:
    return x / (1.0 + mx.exp(-x))


def _gelu_tanh(x: mx.array) -> mx.array:
    return x / (1.0 + mx.exp(-2.0 * math.sqrt(2.0 / math.pi) * x * (1.0 + 0.044715 * x * x)))


# By what the native model calls them.
ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "relu2": _relu2,
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
}


class _Slice:
    """The new tokens of one sequence within a step: rows first to first + length, from position start on."""

    def __init__(
        self,
        blocks: Sequence[int],
        first: int,
        start: int,
        length: int,
        head_dim: int,
        n_kv_heads: int,
    ) -> None:
        self._rows = slice(first, first + length)
        self._length = length
        self._n_positions = start + length
        self._scale = 1 / math.sqrt(head_dim)
        self._shape = (KV_BLOCK_SIZE, n_kv_heads, head_dim)
        table = np.asarray(blocks[: -(-self._n_positions // KV_BLOCK_SIZE)], np.int64)
        positions = np.arange(start, start + length)
        self.new_slots = (
            table[positions // KV_BLOCK_SIZE] * KV_BLOCK_SIZE + positions % KV_BLOCK_SIZE
        ).astype(np.int32)
        # Blocks that follow each other, as they mostly do, are read where they are.
        self._first_slot = int(table[0]) * KV_BLOCK_SIZE if (np.diff(table) == 1).all() else None
        self._blocks = None if self._first_slot is not None else mx.array(table.astype(np.int32))

    def attend(self, q: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """q [n, n_heads, head_dim] of the whole step -> [length, n_heads * head_dim]"""
        # One sequence at a time, so that no result depends on who else is in the step.
        q = q[self._rows].transpose(1, 0, 2)[None]
        attended = mx.fast.scaled_dot_product_attention(
            q,
            self._of_sequence(keys),
            self._of_sequence(values),
            scale=self._scale,
            mask="causal" if self._length > 1 else None,
        )
        return attended[0].transpose(1, 0, 2).reshape(self._length, -1)

    def _of_sequence(self, pool: mx.array) -> mx.array:
        """[1, n_kv_heads, positions, head_dim]"""
        if self._first_slot is not None:
            rows = pool[self._first_slot : self._first_slot + self._n_positions]
        else:
            gathered = pool.reshape(-1, *self._shape)[self._blocks]
            rows = gathered.reshape(-1, *self._shape[1:])[: self._n_positions]
        return rows.transpose(1, 0, 2)[None]
