"""The forward pass once more, in NumPy and float64, from the bytes of the file: written from the format
description, not from the engine, and using none of its code.

Two things are rounded as the engine must round them, because they are the arithmetic of these models:
activations to int8 per token, and K and V as they are stored: to f16, or to 8 bits (q8_0). All else is
float64.

A number next to a rounding tie may go the other way in f32. One int8 step among a few hundred moves the
logits by 1e-3 or so, and every later token sees it, so no two float implementations agree there. `decided`
tells whether noise of the size of f32's changes nothing; comparisons are strict on such sequences.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

F32_NOISE = 1e-6
"""Relative. Measured: f32 passes differ from this one by 3e-7 where no tie is near."""
NOISE_POSITIONS = 32
"""The longest sequence that noise can be added to."""


@dataclass
class Tensor:
    dims: tuple[int, ...]  # GGUF order
    type_id: int
    raw: NDArray[np.uint8]  # from its first byte to the end of the file


def relative_error(logits: NDArray[Any], reference: NDArray[Any]) -> Float:
    """Per position: norm of the difference over norm of the reference."""
    difference = logits.astype(np.float64) - reference
    return np.linalg.norm(difference, axis=-1) / np.linalg.norm(reference, axis=-1)


class GgufReader:
    """Just enough of the container: no checks, for files made by our own tests."""

    def __init__(self, path: Path | str) -> None:
        with open(path, "rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 8  # behind magic and version
        n_tensors, n_keys = self._take("<QQ")
        self.metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._string()
            self.metadata[key] = self._value(*self._take("<I"))
        infos = []
        for _ in range(n_tensors):
            name = self._string()
            (n_dims,) = self._take("<I")
            dims = self._take(f"<{n_dims}Q")
            infos.append((name, dims, *self._take("<IQ")))
        start = -(-self._at // 32) * 32
        everything = np.frombuffer(self._data, dtype=np.uint8)
        self.tensors = {
            name: Tensor(dims, type_id, everything[start + offset :]) for name, dims, type_id, offset in infos
        }

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values

    def _string(self) -> str:
        (length,) = self._take("<Q")
        (text,) = self._take(f"<{length}s")
        return bytes(text).decode()

    def _value(self, kind: int) -> Any:
        if kind == 8:
            return self._string()
        if kind == 9:
            element, count = self._take("<IQ")
            return [self._value(element) for _ in range(count)]
        return self._take("<" + "BbHhIif?__Qqd"[kind])[0]


def decode_ternary(tensor: Tensor) -> tuple[Float, float]:
    """Codes -1, 0, 1 [out, in] and scale of an I2_S tensor, element by element as the format has them."""
    cols, rows = tensor.dims
    e = np.arange(rows * cols)
    position = e % 128
    codes = tensor.raw[32 * (e // 128) + position % 32] >> (6 - 2 * (position // 32)).astype(np.uint8) & 3
    assert codes.max() <= 2
    scale_at = 32 * -(-rows * cols // 128)
    (scale,) = struct.unpack_from("<f", tensor.raw[scale_at : scale_at + 4].tobytes())
    return (codes.astype(np.float64) - 1).reshape(rows, cols), scale


def decode_dense(tensor: Tensor) -> Float:
    """A float or block-quantised tensor, [dims[-1], .., dims[0]]."""
    n = prod(tensor.dims)
    shape = tensor.dims[::-1]
    if tensor.type_id == 0:
        return tensor.raw[: 4 * n].view("<f4").astype(np.float64).reshape(shape)
    if tensor.type_id == 1:
        return tensor.raw[: 2 * n].view("<f2").astype(np.float64).reshape(shape)
    if tensor.type_id == 30:
        bits = tensor.raw[: 2 * n].view("<u2").astype(np.uint32) << 16
        return bits.view(np.float32).astype(np.float64).reshape(shape)
    if tensor.type_id == 8:
        blocks = tensor.raw[: n // 32 * 34].reshape(-1, 34)
        d = blocks[:, :2].copy().view("<f2").astype(np.float64)
        return (d * blocks[:, 2:].view(np.int8)).reshape(shape)
    if tensor.type_id == 14:
        return _decode_q6_k(tensor.raw[: n // 256 * 210].reshape(-1, 210)).reshape(shape)
    raise ValueError(f"type {tensor.type_id}")


def _decode_q6_k(blocks: NDArray[np.uint8]) -> Float:
    out = np.empty((len(blocks), 256))
    d = blocks[:, 208:].copy().view("<f2").astype(np.float64)[:, 0]
    scales = blocks[:, 192:208].view(np.int8).astype(np.float64)
    for half in range(2):
        ql = blocks[:, 64 * half : 64 * half + 64]
        qh = blocks[:, 128 + 32 * half : 160 + 32 * half]
        for index in range(32):
            high = qh[:, index].astype(int)
            low_a, low_b = ql[:, index].astype(int), ql[:, index + 32].astype(int)
            codes = (
                low_a & 15 | (high & 3) << 4,
                low_b & 15 | (high >> 2 & 3) << 4,
                low_a >> 4 | (high >> 4 & 3) << 4,
                low_b >> 4 | (high >> 6) << 4,
            )
            for quarter, code in enumerate(codes):
                scale = scales[:, 8 * half + index // 16 + 2 * quarter]
                out[:, 128 * half + 32 * quarter + index] = d * scale * (code - 32)
    return out


def round_to_f16(x: Float) -> Float:
    return x.astype(np.float16).astype(np.float64)


def round_to_q8_0(x: Float) -> Float:
    """Whole multiples of a scale for each 32 of the last axis: their largest / 127, rounded up to an f16."""
    out = np.empty_like(x)
    for first in range(0, x.shape[-1], 32):
        group = x[..., first : first + 32]
        largest = np.abs(group).max(axis=-1, keepdims=True) / 127
        scale = largest.astype(np.float16)
        scale = np.where(scale < largest, np.nextafter(scale, np.float16(np.inf)), scale).astype(np.float64)
        out[..., first : first + 32] = np.rint(group / np.where(scale == 0, 1, scale)) * scale
    return out


def _relu2(x: Float) -> Float:
    return np.maximum(x, 0) ** 2


def _silu(x: Float) -> Float:
    return x / (1 + np.exp(-x))


def _gelu(x: Float) -> Float:
    """By tanh."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class NumpyModel:
    """One model file, computed whole: no cache, no batches, the attention of all positions at once."""

    def __init__(self, path: Path | str, kv_type: str = "f16") -> None:
        self._stored = {"f16": round_to_f16, "q8_0": round_to_q8_0}[kv_type]
        file = GgufReader(path)
        meta = file.metadata
        arch = meta["general.architecture"]
        self.is_llama = arch == "llama"
        self.is_gemma = arch == "gemma3"
        self._activate = {"bitnet-b1.58": _relu2, "bitnet-25": _relu2, "gemma3": _gelu}.get(arch, _silu)
        self.n_layers: int = meta[f"{arch}.block_count"]
        self.n_heads: int = meta[f"{arch}.attention.head_count"]
        self.n_kv_heads: int = meta[f"{arch}.attention.head_count_kv"]
        default_head_dim = meta[f"{arch}.embedding_length"] // self.n_heads
        self.head_dim: int = meta.get(f"{arch}.attention.key_length", default_head_dim)
        self.eps: float = meta[f"{arch}.attention.layer_norm_rms_epsilon"]
        self.rope_base: float = meta[f"{arch}.rope.freq_base"]
        self._ternary = {n: decode_ternary(t) for n, t in file.tensors.items() if t.type_id == 36}
        self._dense = {n: decode_dense(t) for n, t in file.tensors.items() if t.type_id != 36}
        self.embedding = self._dense["token_embd.weight"]
        self.head = self._dense.get("output.weight", self.embedding)

    def forward(self, token_ids: Sequence[int], noise: np.random.Generator | None = None) -> Float:
        """Logits [n, vocab]; with `noise`, as they may come out in f32."""
        self._noise = noise
        return self._norm(self._stream(token_ids), "output_norm") @ self.head.T

    def hidden(self, token_ids: Sequence[int]) -> Float:
        """What embeddings are made of: [n, hidden], after the final norm."""
        self._noise = None
        return self._norm(self._stream(token_ids), "output_norm")

    def _stream(self, token_ids: Sequence[int]) -> Float:
        x = self.embedding[list(token_ids)]
        if self.is_gemma:
            x = x * np.sqrt(x.shape[-1])
        for layer in range(self.n_layers):
            attended = self._attention(layer, self._norm(x, f"blk.{layer}.attn_norm"))
            x = x + self._norm_if_any(attended, f"blk.{layer}.post_attention_norm")
            fed = self._feed_forward(layer, self._norm(x, f"blk.{layer}.ffn_norm"))
            x = x + self._norm_if_any(fed, f"blk.{layer}.post_ffw_norm")
        return x

    def decided(self, token_ids: Sequence[int]) -> bool:
        """Whether f32 noise moves no logits by more than 1e-4, that is, no rounding hangs on it, and every
        arg max leads by enough to survive an error of 1e-2.
        """
        exact = self.forward(token_ids)
        second, first = np.sort(exact, axis=-1)[:, -2:].T
        if np.any(first - second < 0.05 * exact.std(axis=-1)):
            return False
        noisy = (self.forward(token_ids, noise=np.random.default_rng(draw)) for draw in range(8))
        return all(relative_error(logits, exact).max() < 1e-4 for logits in noisy)

    def decided_sequence(self, length: int, seed: int) -> list[int]:
        """Random token ids that are decided, found token by token."""
        random = np.random.default_rng(seed)
        token_ids: list[int] = []
        while len(token_ids) < length:
            token_ids.append(int(random.integers(len(self.embedding))))
            if not self.decided(token_ids):
                token_ids.pop()
        return token_ids

    def _before_rounding(self, x: Float) -> Float:
        if self._noise is None:
            return x
        # Drawn for a fixed number of positions: the noise of one does not depend on how many follow.
        noise = self._noise.uniform(-1, 1, (NOISE_POSITIONS, *x.shape[1:]))
        return x * (1 + F32_NOISE * noise[: len(x)])

    def _norm(self, x: Float, name: str) -> Float:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps) * self._dense[f"{name}.weight"]

    def _norm_if_any(self, x: Float, name: str) -> Float:
        return self._norm(x, name) if f"{name}.weight" in self._dense else x

    def _linear(self, x: Float, *names: str) -> list[Float]:
        """BitLinear: quantise each token's activations to int8, multiply exactly, scale. Some have a norm of
        their own before that.
        """
        outputs = []
        for name in names:
            x32 = self._before_rounding(self._norm_if_any(x, f"{name}_norm_in")).astype(np.float32)
            largest = np.maximum(np.abs(x32).max(axis=-1, keepdims=True), np.float32(1e-5))
            # As float64, whose products are fast, and exact as long as sums stay below 2^53.
            quantised = np.rint(x32 * (np.float32(127) / largest)).clip(-128, 127).astype(np.float64)
            codes, scale = self._ternary[f"{name}.weight"]
            dots = quantised @ codes.T
            outputs.append(dots * (scale * largest.astype(np.float64) / 127))
        return outputs

    def _attention(self, layer: int, x: Float) -> Float:
        names = (f"blk.{layer}.attn_{which}" for which in "qkv")
        n = len(x)
        q, k, v = (y.reshape(n, -1, self.head_dim) for y in self._linear(x, *names))
        q = self._rotate(self._norm_if_any(q, f"blk.{layer}.attn_q_norm"))
        k = self._rotate(self._norm_if_any(k, f"blk.{layer}.attn_k_norm"))
        k = self._stored_keys(self._before_rounding(k))
        v = self._stored(self._before_rounding(v))
        visible = np.tril(np.ones((n, n), dtype=bool))
        out = np.empty_like(q)
        for head in range(self.n_heads):
            shared = head * self.n_kv_heads // self.n_heads
            scores = q[:, head] @ k[:, shared].T / np.sqrt(self.head_dim)
            scores = np.where(visible, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[:, head] = weights / weights.sum(axis=-1, keepdims=True) @ v[:, shared]
        joined = out.reshape(n, -1)
        joined = self._norm_if_any(joined, f"blk.{layer}.attn_sub_norm")
        return self._linear(joined, f"blk.{layer}.attn_output")[0]

    def _stored_keys(self, k: Float) -> Float:
        """The engine keeps the halves of a head together, which decides whom a scale is shared with."""
        if not self.is_llama:
            return self._stored(k)
        halves = self._stored(np.concatenate([k[..., 0::2], k[..., 1::2]], axis=-1))
        return np.stack(np.split(halves, 2, axis=-1), axis=-1).reshape(k.shape)

    def _rotate(self, x: Float) -> Float:
        """Rotary embedding of [n, heads, head_dim]: neighbours are pairs in llama files (their rows are
        permuted), halves elsewhere.
        """
        half = self.head_dim // 2
        angles = np.arange(len(x))[:, None] * self.rope_base ** (-np.arange(half) / half)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        a, b = (x[..., 0::2], x[..., 1::2]) if self.is_llama else (x[..., :half], x[..., half:])
        rotated = a * cos - b * sin, a * sin + b * cos
        if self.is_llama:
            return np.stack(rotated, axis=-1).reshape(x.shape)
        return np.concatenate(rotated, axis=-1)

    def _feed_forward(self, layer: int, x: Float) -> Float:
        gate, up = self._linear(x, f"blk.{layer}.ffn_gate", f"blk.{layer}.ffn_up")
        hidden = self._norm_if_any(self._activate(gate) * up, f"blk.{layer}.ffn_sub_norm")
        return self._linear(hidden, f"blk.{layer}.ffn_down")[0]
