"""Small random models of every architecture the engine computes, as GGUF files that `BitNet(path)` opens.

The same spec gives the same bytes on every machine: numbers come from raw PCG64 words and exact arithmetic,
never from a library's idea of a normal distribution. Weights are kept as Hugging Face has them; only the file
is permuted.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitnet.models.gguf_writer import GgufWriter, TensorType
from bitnet.models.ternary import absmean
from reference.ternary_layouts import LAYOUTS, Tiles

BITNET_ARCHITECTURES = ("bitnet-b1.58", "bitnet-25", "bitnet")
EMBEDDING_ARCHITECTURES = ("qwen3", "gemma3")


@dataclass(frozen=True)
class ModelSpec:
    """What to make. `n_heads * head_dim` must equal `hidden_size` for BitNet's own architectures."""

    architecture: str = "bitnet-b1.58"
    n_layers: int = 2
    hidden_size: int = 320
    n_heads: int = 5
    n_kv_heads: int = 5
    head_dim: int = 64
    ffn_size: int = 200
    vocab_size: int = 288
    embedding: TensorType = TensorType.F16
    norm_type: TensorType = TensorType.F32
    layout: str = "i2_s"  # a name of ternary_layouts.LAYOUTS
    tiles: Tiles = (0, 0, 0)  # of TL1 and TL2, for all matrices
    f16_scales: bool = False  # scales that every layout holds exactly
    pooling: int | None = None  # pooling_type of the file
    untied: bool = False
    rope_base: float = 500000.0
    eps: float = 1e-5
    context_length: int = 512
    layer_gain: float = 0.12  # of what a layer adds to the residual stream, whose embeddings have size 1
    seed: int = 1

    @property
    def sub_norms(self) -> bool:
        return self.architecture in BITNET_ARCHITECTURES

    @property
    def embeds(self) -> bool:
        return self.architecture in EMBEDDING_ARCHITECTURES

    @property
    def activation(self) -> str:
        return {"bitnet-b1.58": "relu2", "bitnet-25": "relu2", "gemma3": "gelu_tanh"}.get(
            self.architecture, "silu"
        )

    @property
    def q_size(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.n_kv_heads * self.head_dim

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(out features, in features) of the matrices of one layer, under their GGUF stems."""
        return {
            "attn_q": (self.q_size, self.hidden_size),
            "attn_k": (self.kv_size, self.hidden_size),
            "attn_v": (self.kv_size, self.hidden_size),
            "attn_output": (self.hidden_size, self.q_size),
            "ffn_gate": (self.ffn_size, self.hidden_size),
            "ffn_up": (self.ffn_size, self.hidden_size),
            "ffn_down": (self.hidden_size, self.ffn_size),
        }

    def norm_sizes(self) -> dict[str, int]:
        sizes = {"attn_norm": self.hidden_size, "ffn_norm": self.hidden_size}
        if self.sub_norms:
            sizes |= {"attn_sub_norm": self.q_size, "ffn_sub_norm": self.ffn_size}
        if self.embeds:
            sizes |= {"attn_q_norm": self.head_dim, "attn_k_norm": self.head_dim}
            sizes |= {f"{stem}_norm_in": cols for stem, (_, cols) in self.linear_shapes().items()}
        if self.architecture == "gemma3":
            sizes |= {"post_attention_norm": self.hidden_size, "post_ffw_norm": self.hidden_size}
        return sizes


@dataclass
class Linear:
    latent: NDArray[np.float32]  # [out, in], what absmean made codes and scale from
    codes: NDArray[np.int8]  # [out, in]
    scale: float


@dataclass
class Dense:
    """Embedding or head: the rows as stored, and what they mean."""

    values: NDArray[np.float32]  # [vocab, hidden], exactly what `data` decodes to
    data: bytes


@dataclass
class RandomModel:
    spec: ModelSpec
    embedding: Dense
    output: Dense | None  # None = tied
    linears: dict[str, Linear] = field(default_factory=dict)  # "blk.0.attn_q" -> rows in Hugging Face order
    norms: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # "blk.0.attn_norm", "output_norm"


class ExactRandom:
    """Random numbers that are the same on every machine and NumPy version."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)  # raw streams of bit generators never change (NEP 19)

    def normal(self, *shape: int) -> NDArray[np.float32]:
        """Nearly normal, exactly reproducible: sums of 12 uniform 16-bit numbers."""
        n = int(np.prod(shape))
        words = self._bits.random_raw(3 * n).astype("<u8").view("<u2").reshape(n, 12)
        sums = words.sum(axis=1, dtype=np.int64) - 12 * 65535 // 2
        return (sums / 65536).astype(np.float32).reshape(shape)


def random_model(spec: ModelSpec) -> RandomModel:
    """Make the weights. Each matrix has its own scale; activations stay near unit size through the layers."""
    if spec.sub_norms and spec.q_size != spec.hidden_size:
        raise ValueError("BitNet models have heads * head_dim = hidden_size")
    random = ExactRandom(spec.seed)
    model = RandomModel(
        spec,
        embedding=encode_dense(spec.embedding, random.normal(spec.vocab_size, spec.hidden_size)),
        output=None,
    )
    if spec.untied:
        values = random.normal(spec.vocab_size, spec.hidden_size)
        model.output = encode_dense(spec.embedding, values)
    for layer in range(spec.n_layers):
        for stem, (rows, cols) in spec.linear_shapes().items():
            gain = 1.5 + 0.75 * float(np.clip(random.normal(1)[0], -1, 1))
            if stem in ("attn_output", "ffn_down"):
                gain *= spec.layer_gain
            latent = random.normal(rows, cols) * np.float32(gain / cols**0.5)
            model.linears[f"blk.{layer}.{stem}"] = Linear(latent, *absmean(latent))
        for stem, size in spec.norm_sizes().items():
            gain = spec.layer_gain if stem.startswith("post_") else 1
            norm = np.float32(gain) * (1 + np.float32(0.2) * random.normal(size))
            model.norms[f"blk.{layer}.{stem}"] = norm
    model.norms["output_norm"] = 1 + np.float32(0.2) * random.normal(spec.hidden_size)
    for name, norm in model.norms.items():
        model.norms[name] = encode_dense(spec.norm_type, norm).values
    if spec.f16_scales:
        for linear in model.linears.values():
            linear.scale = float(np.float16(linear.scale))
    return model


def write_gguf(model: RandomModel, path: Path) -> Path:
    """Write the model as the converters do; returns `path`."""
    spec = model.spec
    writer = GgufWriter(path)
    _add_metadata(writer, spec)
    _add_tokenizer(writer, spec)
    dims = [spec.hidden_size, spec.vocab_size]
    writer.add_tensor("token_embd.weight", dims, spec.embedding, model.embedding.data)
    for name, norm in model.norms.items():
        writer.add_tensor(
            f"{name}.weight", norm.shape, spec.norm_type, encode_dense(spec.norm_type, norm).data
        )
    for name, linear in model.linears.items():
        codes = linear.codes
        if spec.architecture == "llama" and name.endswith(("attn_q", "attn_k")):
            codes = _permute_for_interleaved_rope(codes, spec.head_dim)
        type_id, _, encode = LAYOUTS[spec.layout]
        tiles = (spec.tiles,) if spec.layout.startswith("tl") else ()
        writer.add_tensor(f"{name}.weight", codes.shape[::-1], type_id, encode(codes, linear.scale, *tiles))
    if model.output is not None:
        writer.add_tensor("output.weight", dims, spec.embedding, model.output.data)
    writer.write()
    return path


def make_model(spec: ModelSpec, folder: Path) -> Path:
    """The file of a spec, made once per folder."""
    path = folder / f"{spec.architecture}-{zlib.crc32(repr(spec).encode()):08x}.gguf"
    return path if path.exists() else write_gguf(random_model(spec), path)


def encode_dense(kind: TensorType, values: NDArray[np.float32]) -> Dense:
    """Store rows as `kind`, with what they decode to."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if kind == TensorType.F32:
        return Dense(values, values.tobytes())
    if kind == TensorType.F16:
        half = values.astype(np.float16)
        return Dense(half.astype(np.float32), half.tobytes())
    if kind == TensorType.BF16:
        bits = values.view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # to nearest, ties to even
        return Dense((rounded << 16).view(np.float32), rounded.astype("<u2").tobytes())
    if kind == TensorType.Q8_0:
        return _encode_q8_0(values)
    if kind == TensorType.Q6_K:
        return _encode_q6_k(values)
    raise ValueError(f"no dense encoding for {kind.name}")


def _encode_q8_0(values: NDArray[np.float32]) -> Dense:
    blocks = values.reshape(-1, 32)
    d = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    scale = d.astype(np.float32)
    codes = np.rint(blocks / np.maximum(scale, 1e-12)).clip(-127, 127).astype(np.int8)
    data = np.concatenate([d.view(np.uint8), codes.view(np.uint8)], axis=1)
    return Dense((codes * scale).reshape(values.shape), data.tobytes())


def _encode_q6_k(values: NDArray[np.float32]) -> Dense:
    """Blocks of 256 with 16 sub-scales; plain rounding, where llama.cpp searches for the best scales."""
    blocks = values.reshape(-1, 16, 16)
    ideal = np.abs(blocks).max(axis=2) / 31  # [n, 16]
    d = (ideal.max(axis=1, keepdims=True) / 127).astype(np.float16)
    sub = np.rint(ideal / np.maximum(d.astype(np.float32), 1e-12)).clip(1, 127).astype(np.int8)
    scale = (d.astype(np.float32) * sub)[:, :, None]
    codes = np.rint(blocks / np.maximum(scale, 1e-12)).clip(-32, 31).astype(np.int8)
    halves = (codes.reshape(-1, 2, 4, 32) + 32).astype(np.uint8)  # [n, half, quarter, 32]
    low, high = halves & 15, halves >> 4
    ql = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], axis=2)
    qh = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    n = len(blocks)
    parts = [ql.reshape(n, 128), qh.reshape(n, 64), sub.view(np.uint8), d.view(np.uint8)]
    return Dense((codes * scale).reshape(values.shape), np.concatenate(parts, axis=1).tobytes())


def _permute_for_interleaved_rope(codes: NDArray[np.int8], head_dim: int) -> NDArray[np.int8]:
    """Rows of q or k as the llama converter orders them: halves of a head become neighbours."""
    rows, cols = codes.shape
    halves = codes.reshape(rows // head_dim, 2, head_dim // 2, cols)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, cols))


def _add_metadata(writer: GgufWriter, spec: ModelSpec) -> None:
    writer.add_metadata("general.architecture", spec.architecture, "string")
    writer.add_metadata("general.name", f"random {spec.architecture}", "string")
    writer.add_metadata("general.file_type", 40, "u32")
    arch = spec.architecture
    for key, number in {
        "vocab_size": spec.vocab_size,
        "context_length": spec.context_length,
        "embedding_length": spec.hidden_size,
        "block_count": spec.n_layers,
        "feed_forward_length": spec.ffn_size,
        "rope.dimension_count": spec.head_dim,
        "attention.head_count": spec.n_heads,
        "attention.head_count_kv": spec.n_kv_heads,
    }.items():
        writer.add_metadata(f"{arch}.{key}", number, "u32")
    if spec.q_size != spec.hidden_size:
        writer.add_metadata(f"{arch}.attention.key_length", spec.head_dim, "u32")
        writer.add_metadata(f"{arch}.attention.value_length", spec.head_dim, "u32")
    writer.add_metadata(f"{arch}.attention.layer_norm_rms_epsilon", spec.eps, "f32")
    writer.add_metadata(f"{arch}.rope.freq_base", spec.rope_base, "f32")
    if spec.pooling is not None:
        writer.add_metadata(f"{arch}.pooling_type", spec.pooling, "u32")


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte 0..255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {byte: chr(byte) for byte in printable}
    stand_ins |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [stand_ins[byte] for byte in range(256)]


def _add_tokenizer(writer: GgufWriter, spec: ModelSpec) -> None:
    """256 byte tokens, a few merges, then control tokens up to the size of the vocabulary."""
    vocab_size = spec.vocab_size
    merges = ["t h", "i n", "th e", "e r"]
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    tokens = byte_alphabet() + [merge.replace(" ", "") for merge in merges]
    n_normal = len(tokens)
    n_reserved = vocab_size - n_normal - len(specials)
    if n_reserved < 0:
        raise ValueError(f"a vocabulary of {vocab_size} is too small for {n_normal + len(specials)} tokens")
    tokens += specials + [f"<|reserved_{i}|>" for i in range(n_reserved)]
    bos = n_normal
    writer.add_metadata("tokenizer.ggml.model", "gpt2", "string")
    writer.add_metadata("tokenizer.ggml.pre", "llama-bpe", "string")
    writer.add_metadata("tokenizer.ggml.tokens", tokens, ("array", "string"))
    types = [1] * n_normal + [3] * (vocab_size - n_normal)  # normal, control
    writer.add_metadata("tokenizer.ggml.token_type", types, ("array", "i32"))
    writer.add_metadata("tokenizer.ggml.merges", merges, ("array", "string"))
    writer.add_metadata("tokenizer.ggml.bos_token_id", bos, "u32")
    writer.add_metadata("tokenizer.ggml.eos_token_id", bos + 1, "u32")
    writer.add_metadata("tokenizer.ggml.padding_token_id", bos + 1, "u32")
    writer.add_metadata("tokenizer.ggml.add_bos_token", True, "bool")
    if spec.embeds:
        writer.add_metadata("tokenizer.ggml.add_eos_token", True, "bool")
