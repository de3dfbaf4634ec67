"""Writes random models of the dimensions of BitNet b1.58 2B-4T: for this engine (bitnet-b1.58, I2_S), or for
llama.cpp (its `bitnet` architecture, TQ2_0). Their output is noise; their cost is real.

    python benchmarks/synthetic_2b.py model.gguf [--format i2_s|tq2_0] [--layers 30]
"""

from __future__ import annotations

import argparse
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitnet.models.gguf_writer import GgufWriter, TensorType

HIDDEN, FFN, LAYERS = 2560, 6912, 30
HEADS, KV_HEADS, HEAD_DIM = 20, 5, 128
VOCAB, CONTEXT = 128256, 4096
ZEROS = 0.4  # share of zero weights; trained models have 0.3 to 0.5

LINEARS = {  # (in features, out features)
    "attn_q": (HIDDEN, HEADS * HEAD_DIM),
    "attn_k": (HIDDEN, KV_HEADS * HEAD_DIM),
    "attn_v": (HIDDEN, KV_HEADS * HEAD_DIM),
    "attn_output": (HEADS * HEAD_DIM, HIDDEN),
    "ffn_gate": (HIDDEN, FFN),
    "ffn_up": (HIDDEN, FFN),
    "ffn_down": (FFN, HIDDEN),
}
NORMS = {"attn_norm": HIDDEN, "attn_sub_norm": HEADS * HEAD_DIM, "ffn_norm": HIDDEN, "ffn_sub_norm": FFN}

_DRAWS = 1 << 16  # random numbers are drawn from tables of this many, one 16-bit index each
_CHUNK = 1 << 24


def write_synthetic(
    path: Path, kind: TensorType = TensorType.I2_S, n_layers: int = LAYERS, seed: int = 0
) -> None:
    """Write the model; its tensors are made one at a time while the file is written."""
    random = np.random.default_rng(seed)
    writer = GgufWriter(path)
    _add_metadata(writer, "bitnet-b1.58" if kind == TensorType.I2_S else "bitnet", kind, n_layers)
    embeddings = random.standard_normal(_DRAWS, dtype=np.float32).astype(np.float16)
    embedding_rows = partial(_from_table, random, embeddings, VOCAB * HIDDEN)
    writer.add_tensor("token_embd.weight", [HIDDEN, VOCAB], TensorType.F16, embedding_rows)
    writer.add_tensor("output_norm.weight", [HIDDEN], TensorType.F32, np.ones(HIDDEN, np.float32))
    packed_codes = _packed_codes(random)
    for layer in range(n_layers):
        for stem, size in NORMS.items():
            writer.add_tensor(f"blk.{layer}.{stem}.weight", [size], TensorType.F32, np.ones(size, np.float32))
        for stem, (cols, rows) in LINEARS.items():
            draw = partial(_from_table, random, packed_codes, cols * rows // 4)
            scale = float(1 / np.sqrt((1 - ZEROS) * cols))  # keeps outputs as large as inputs
            pack = _i2s_tensor if kind == TensorType.I2_S else _tq2_0_tensor
            writer.add_tensor(f"blk.{layer}.{stem}.weight", [cols, rows], kind, partial(pack, draw, scale))
    writer.write()


def _packed_codes(random: np.random.Generator) -> NDArray[np.uint8]:
    """Random bytes of four ternary codes 0, 1, 2; both formats keep four in a byte."""
    codes = random.choice(3, p=[(1 - ZEROS) / 2, ZEROS, (1 - ZEROS) / 2], size=(_DRAWS, 4))
    return (codes << np.array([0, 2, 4, 6])).sum(axis=1).astype(np.uint8)


def _from_table(random: np.random.Generator, table: NDArray[np.generic], n: int) -> NDArray[np.generic]:
    values = np.empty(n, dtype=table.dtype)
    for first in range(0, n, _CHUNK):
        count = min(_CHUNK, n - first)
        values[first : first + count] = table[random.integers(_DRAWS, size=count, dtype=np.uint16)]
    return values


def _i2s_tensor(draw: Callable[[], NDArray[np.uint8]], scale: float) -> NDArray[np.uint8]:
    tail = np.frombuffer(struct.pack("<f28x", scale), dtype=np.uint8)
    return np.concatenate([draw(), tail])


def _tq2_0_tensor(draw: Callable[[], NDArray[np.uint8]], scale: float) -> NDArray[np.uint8]:
    """Blocks of 256 weights: 64 bytes of codes, and the scale once more in each."""
    codes = draw().reshape(-1, 64)
    blocks = np.empty((len(codes), 66), dtype=np.uint8)
    blocks[:, :64] = codes
    blocks[:, 64:] = np.array([scale], dtype="<f2").view(np.uint8)
    return blocks


def _add_metadata(writer: GgufWriter, arch: str, kind: TensorType, n_layers: int) -> None:
    writer.add_metadata("general.architecture", arch, "string")
    writer.add_metadata("general.name", f"synthetic 2B-4T, {n_layers} layers", "string")
    writer.add_metadata("general.file_type", 40 if kind == TensorType.I2_S else 37, "u32")
    for key, number in {
        "vocab_size": VOCAB,
        "context_length": CONTEXT,
        "embedding_length": HIDDEN,
        "block_count": n_layers,
        "feed_forward_length": FFN,
        "rope.dimension_count": HEAD_DIM,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
    }.items():
        writer.add_metadata(f"{arch}.{key}", number, "u32")
    writer.add_metadata(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5, "f32")
    writer.add_metadata(f"{arch}.rope.freq_base", 500000.0, "f32")
    _add_tokenizer(writer)


def _add_tokenizer(writer: GgufWriter) -> None:
    """As many tokens as the real one has: all bytes, all pairs of bytes, some triples, 256 control tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's stand-ins for bytes
    single = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    merges = [f"{a} {b}" for a in single for b in single]
    n_triples = VOCAB - len(single) - len(merges) - 256
    merges += [merge.replace(" ", "") + " " + single[i % 256] for i, merge in enumerate(merges[:n_triples])]
    tokens = single + [merge.replace(" ", "") for merge in merges]
    n_normal = len(tokens)
    specials = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        *(f"<|reserved_{i}|>" for i in range(253)),
        "<|eot_id|>",
    ]
    types = [1] * n_normal + [3] * len(specials)
    writer.add_metadata("tokenizer.ggml.model", "gpt2", "string")
    writer.add_metadata("tokenizer.ggml.pre", "llama-bpe", "string")
    writer.add_metadata("tokenizer.ggml.tokens", tokens + specials, ("array", "string"))
    writer.add_metadata("tokenizer.ggml.token_type", types, ("array", "i32"))
    writer.add_metadata("tokenizer.ggml.merges", merges, ("array", "string"))
    writer.add_metadata("tokenizer.ggml.bos_token_id", n_normal, "u32")
    writer.add_metadata("tokenizer.ggml.eos_token_id", n_normal + 1, "u32")
    writer.add_metadata("tokenizer.ggml.add_bos_token", True, "bool")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--format", choices=["i2_s", "tq2_0"], default="i2_s")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    write_synthetic(options.path, TensorType[options.format.upper()], options.layers, options.seed)
    size = options.path.stat().st_size
    print(f"{options.path}: {size / 1e9:.2f} GB in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
