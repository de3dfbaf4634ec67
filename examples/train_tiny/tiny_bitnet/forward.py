"""The exported file run in plain NumPy: its own GGUF reader, exact integer products, greedy generation.

Slow and short on purpose: it shows that the file alone, without the training code, gives the answers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models

from .corpus import Message
from .tokenizer import LLAMA_SPLIT, prompt_ids, split_by

Floats = NDArray[np.float32]

_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_F32, _F16, _I2S = 0, 1, 36
_NORMAL = 1


class GgufFile:
    """Metadata and tensors of a GGUF v3 file; a ternary matrix is (codes, scale), any other an array."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self._at = 8
        tensor_count, metadata_count = self._unpack("QQ")
        self.metadata: dict[str, Any] = {}
        for _ in range(metadata_count):
            key = self._string()
            self.metadata[key] = self._value(*self._unpack("I"))
        infos = []
        for _ in range(tensor_count):
            name = self._string()
            dims = self._unpack(f"{self._unpack('I')[0]}Q")
            infos.append((name, dims, *self._unpack("IQ")))
        start = -(-self._at // 32) * 32
        self.tensors = {n: self._tensor(dims, kind, start + offset) for n, dims, kind, offset in infos}

    def _unpack(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self._data, self._at)
        self._at += struct.calcsize("<" + form)
        return values

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            element, count = self._unpack("IQ")
            return [self._value(element) for _ in range(count)]
        return self._unpack(_SCALARS[kind])[0]

    def _tensor(self, dims: tuple[int, ...], kind: int, offset: int) -> Any:
        shape, count = tuple(reversed(dims)), int(np.prod(dims))
        if kind == _F32:
            return np.frombuffer(self._data, np.float32, count, offset).reshape(shape)
        if kind == _F16:
            return np.frombuffer(self._data, np.float16, count, offset).reshape(shape).astype(np.float32)
        if kind != _I2S:
            raise ValueError(f"unexpected tensor type {kind}")
        packed = np.frombuffer(self._data, np.uint8, count // 4, offset).reshape(-1, 1, 32)
        fields = packed >> np.array([6, 4, 2, 0], np.uint8)[:, None] & 3
        (scale,) = struct.unpack_from("<f", self._data, offset + count // 4)
        return fields.reshape(shape).astype(np.float32) - 1, np.float32(scale)


def tokenizer_of(metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer that the file describes."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = split_by(LLAMA_SPLIT)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind != _NORMAL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def _rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    normed: Floats = x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + np.float32(eps)) * weight
    return normed


def _bit_linear(x: Floats, matrix: tuple[Floats, np.float32]) -> Floats:
    codes, scale = matrix
    factor = np.float32(127) / np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-5))
    integers = np.clip(np.rint(x * factor), -128, 127)
    # Sums of integers below 2^24 are exact in float32.
    product: Floats = integers @ codes.T / factor * scale
    return product


class NumpyModel:
    """A forward pass with a key-value cache over the tensors of a file."""

    def __init__(self, path: Path) -> None:
        file = GgufFile(path)
        self.metadata, self.tensors = file.metadata, file.tensors
        self.tokenizer = tokenizer_of(file.metadata)
        architecture = self.metadata["general.architecture"]
        get = {k.removeprefix(f"{architecture}."): v for k, v in self.metadata.items()}.__getitem__
        self.layers: int = get("block_count")
        self.eps: float = get("attention.layer_norm_rms_epsilon")
        self.heads: int = get("attention.head_count")
        self.kv_heads: int = get("attention.head_count_kv")
        self.head_dim: int = get("rope.dimension_count")
        self.context: int = get("context_length")
        half = np.arange(0, self.head_dim, 2, dtype=np.float32) / self.head_dim
        angles = np.arange(self.context, dtype=np.float32)[:, None] * get("rope.freq_base") ** -half
        self._cos, self._sin = np.cos(angles), np.sin(angles)
        self.reset()

    def reset(self) -> None:
        empty = np.zeros((self.kv_heads, 0, self.head_dim), np.float32)
        self._keys, self._values = [empty] * self.layers, [empty] * self.layers

    def _rotate(self, x: Floats, start: int) -> Floats:
        cos, sin = (table[start : start + x.shape[1]] for table in (self._cos, self._sin))
        first, second = np.split(x, 2, -1)
        rotated: Floats = np.concatenate((first * cos - second * sin, second * cos + first * sin), -1)
        return rotated

    def _heads(self, x: Floats, count: int) -> Floats:
        split: Floats = x.reshape(len(x), count, self.head_dim).swapaxes(0, 1)
        return split

    def _attention(self, x: Floats, layer: int) -> Floats:
        weights = {n: self.tensors[f"blk.{layer}.attn_{n}.weight"] for n in ("q", "k", "v")}
        start = self._keys[layer].shape[1]
        q = self._rotate(self._heads(_bit_linear(x, weights["q"]), self.heads), start)
        k = self._rotate(self._heads(_bit_linear(x, weights["k"]), self.kv_heads), start)
        v = self._heads(_bit_linear(x, weights["v"]), self.kv_heads)
        self._keys[layer] = k = np.concatenate((self._keys[layer], k), 1)
        self._values[layer] = v = np.concatenate((self._values[layer], v), 1)
        group = self.heads // self.kv_heads
        scores = q @ np.repeat(k, group, 0).swapaxes(1, 2) / np.float32(self.head_dim**0.5)
        future = np.arange(k.shape[1]) > np.arange(start, k.shape[1])[:, None]
        scores = np.where(future, -np.inf, scores)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed: Floats = scores / scores.sum(-1, keepdims=True) @ np.repeat(v, group, 0)
        joined: Floats = mixed.swapaxes(0, 1).reshape(len(x), -1).astype(np.float32)
        return joined

    def logits(self, ids: Sequence[int]) -> Floats:
        """Append tokens to the sequence; the logits after the last of them."""

        def weight(name: str) -> Any:
            return self.tensors[f"blk.{layer}.{name}.weight"]

        x = self.tensors["token_embd.weight"][list(ids)]
        for layer in range(self.layers):
            mixed = self._attention(_rms_norm(x, weight("attn_norm"), self.eps), layer)
            x = x + _bit_linear(_rms_norm(mixed, weight("attn_sub_norm"), self.eps), weight("attn_output"))
            h = _rms_norm(x, weight("ffn_norm"), self.eps)
            gate, up = _bit_linear(h, weight("ffn_gate")), _bit_linear(h, weight("ffn_up"))
            gated = np.square(np.maximum(gate, 0)) * up
            x = x + _bit_linear(_rms_norm(gated, weight("ffn_sub_norm"), self.eps), weight("ffn_down"))
        last = _rms_norm(x[-1], self.tensors["output_norm.weight"], self.eps)
        result: Floats = self.tensors["token_embd.weight"] @ last
        return result

    def answer(self, messages: Sequence[Message], limit: int = 160) -> str:
        """The greedy answer to a conversation."""
        stops = {self.metadata[f"tokenizer.ggml.{kind}_token_id"] for kind in ("eos", "eot")}
        ids = prompt_ids(self.tokenizer, messages)
        self.reset()
        generated: list[int] = []
        pending = ids
        while len(generated) < min(limit, self.context - len(ids)):
            best = int(self.logits(pending).argmax())
            if best in stops:
                break
            generated.append(best)
            pending = [best]
        return self.tokenizer.decode(generated, skip_special_tokens=False)


def probes() -> list[dict[str, Any]]:
    """Conversations everybody would try first, each with a text that a right answer contains."""
    loaded: list[dict[str, Any]] = json.loads(Path(__file__).with_name("probes.json").read_text("utf-8"))
    return loaded
