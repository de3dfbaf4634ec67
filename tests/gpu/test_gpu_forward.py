"""The forward pass on the emulated device against the CPU's: the same bits, whatever is computed together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet import ModelFileError, _native
from bitnet.models.gguf_writer import TensorType
from reference.cases import CASES
from reference.model_factory import ModelSpec, make_model, random_model, write_gguf

N_BLOCKS = 12


class Pair:
    """A runner on the CPU, and one with layers on the device."""

    def __init__(
        self, path: Path, library: str, *, n_layers: int = -1, low_vram: bool = False, kv_type: str = "f16"
    ):
        self.model = _native.Model(_native.ModelFile(str(path)), n_threads=1)
        options = {"n_blocks": N_BLOCKS, "max_batch_tokens": 160, "n_threads": 1, "kv_type": kv_type}
        self.cpu = _native.Runner(self.model, **options)
        self.gpu = _native.Runner(
            self.model, **options, n_gpu_layers=n_layers, low_vram=low_vram, gpu_library=library
        )
        self.random = np.random.default_rng(0)

    def step(
        self, tables: list[list[int]], starts: list[int], lengths: list[int], outputs: list[int] | None = None
    ) -> None:
        """Compute random tokens on both, and compare hidden states and logits bit by bit."""
        n = sum(lengths)
        token_ids = self.random.integers(0, self.model.vocab_size, n).astype(np.int32)
        outputs = list(range(n)) if outputs is None else outputs
        for runner in (self.cpu, self.gpu):
            runner.forward(token_ids, tables, starts, lengths, outputs)
        assert bits(self.gpu.hidden()) == bits(self.cpu.hidden())
        assert bits(self.gpu.logits()) == bits(self.cpu.logits())

    def samples(self, output: int, **options: object) -> list[list[int]]:
        """What each of them draws, ten times."""
        drawn = []
        for runner in (self.cpu, self.gpu):
            sampler = _native.Sampler(**options)  # type: ignore[arg-type]
            drawn.append([runner.sample(output, sampler).token_id for _ in range(10)])
        return drawn


def bits(values: NDArray[np.float32]) -> bytes:
    assert np.isfinite(values).all()
    return values.tobytes()


@pytest.mark.parametrize("case", CASES)
def test_every_architecture(emulated: str, models_folder: Path, case: str) -> None:
    pair = Pair(make_model(CASES[case], models_folder), emulated)
    pair.step([[3, 1]], [0], [37])  # a prompt
    pair.step([[3, 1]], [37], [1])  # a token, captured as a graph
    pair.step([[3, 1]], [38], [1])  # the graph again
    pair.step([[3, 1], [5], [7]], [39, 0, 0], [1, 1, 9])  # several sequences
    cpu, gpu = pair.samples(10, temperature=0)
    assert gpu == cpu


# A model of each kind of graph, and one with heads whose size is no multiple of 4.
KINDS = ["bitnet-q8_0-hd64", "bitnet-hd42", "llama-bf16-hd40-tied", "qwen3-f16-hd128", "gemma3-bf16-hd256"]


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("case", KINDS)
def test_low_vram_and_some_layers(emulated: str, models_folder: Path, case: str, kv_type: str) -> None:
    path = make_model(CASES[case], models_folder)
    for options in ({"low_vram": True}, {"n_layers": 1}, {"n_layers": 1, "low_vram": True}, {"n_layers": 99}):
        pair = Pair(path, emulated, kv_type=kv_type, **options)  # type: ignore[arg-type]
        pair.step([[3, 1]], [0], [35])
        pair.step([[3, 1], [5]], [35, 0], [1, 3])
        pair.step([[3, 1]], [36], [1])
        assert pair.gpu.n_gpu_layers == min(options.get("n_layers", 2), 2)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_more_heads_for_each_kv_head(emulated: str, models_folder: Path, kv_type: str) -> None:
    """Odd numbers of heads, queries that do not fill a tile, and contexts of several blocks."""
    wide, narrow = [(9, 3, 40), (7, 1, 72), (6, 6, 256)], [(5, 5, 2), (3, 1, 6), (4, 2, 10), (3, 3, 34)]
    for n_heads, n_kv_heads, head_dim in [*wide, *narrow, (40, 1, 14)]:
        spec = ModelSpec(
            "llama",
            n_layers=1,
            hidden_size=96,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            ffn_size=48,
        )
        pair = Pair(make_model(spec, models_folder), emulated, kv_type=kv_type)
        pair.step([[2, 0, 4, 9]], [0], [100])
        pair.step([[2, 0, 4, 9]], [100], [1])
        pair.step([[2, 0, 4, 9], [6]], [101, 0], [20, 2])


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_small_heads_with_norms(emulated: str, models_folder: Path, architecture: str) -> None:
    spec = ModelSpec(architecture, hidden_size=36, n_heads=3, n_kv_heads=1, head_dim=10, ffn_size=50)
    for kv_type in ("f16", "q8_0"):
        pair = Pair(make_model(spec, models_folder), emulated, kv_type=kv_type)
        pair.step([[2, 0]], [0], [40])
        pair.step([[2, 0], [5]], [40, 0], [1, 1])
        pair.step([[2, 0]], [41], [1])


def test_norms_of_only_some_projections(emulated: str, models_folder: Path) -> None:
    """Products of the same input, of which some have a norm for themselves; layers differ."""
    spec = ModelSpec("gemma3", n_layers=4, hidden_size=96, n_heads=3, n_kv_heads=3, head_dim=32)
    model = random_model(spec)
    kept = {
        "blk.0": ("attn_k", "ffn_gate"),
        "blk.1": ("attn_q", "attn_v", "ffn_up"),
        "blk.2": ("attn_output",),
        "blk.3": ("ffn_down",),
    }
    for name in [name for name in model.norms if name.endswith("_norm_in")]:
        block, _, stem = name.removesuffix("_norm_in").rpartition(".")
        if stem not in kept[block]:
            del model.norms[name]
    path = write_gguf(model, models_folder / "some-norms.gguf")
    for n_layers in (-1, 1, 2):
        pair = Pair(path, emulated, n_layers=n_layers)
        pair.step([[2, 0]], [0], [40])
        pair.step([[2, 0]], [40], [1])
        pair.step([[2, 0], [5]], [41, 0], [1, 1])


@pytest.mark.parametrize("architecture", ["bitnet", "gemma3"])
def test_rows_wider_than_shared_memory(
    emulated: str, models_folder: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITNET_EMULATED_CAPABILITY", "7.5")
    spec = ModelSpec(architecture, hidden_size=32, n_heads=2, n_kv_heads=2, head_dim=16, ffn_size=16500)
    path = make_model(spec, models_folder)
    for n_layers in (-1, 1):
        pair = Pair(path, emulated, n_layers=n_layers)
        pair.step([[2, 0]], [0], [5])
        pair.step([[2, 0]], [5], [1])


def test_a_head_too_wide_for_tiles(emulated: str, models_folder: Path) -> None:
    spec = ModelSpec("llama", n_layers=1, hidden_size=64, n_heads=2, n_kv_heads=1, head_dim=328, ffn_size=40)
    pair = Pair(make_model(spec, models_folder), emulated)
    pair.step([[2, 0]], [0], [40])


def test_a_context_of_more_than_one_segment(emulated: str, models_folder: Path) -> None:
    """Attention takes 64 blocks at a time; here are 66, most of which repeat."""
    spec = ModelSpec(
        n_layers=1, hidden_size=32, n_heads=2, n_kv_heads=1, head_dim=16, ffn_size=32, context_length=4096
    )
    pair = Pair(make_model(spec, models_folder), emulated)
    for block in range(N_BLOCKS):
        pair.step([[block]], [0], [32], [31])
    table = [block % N_BLOCKS for block in range(65)] + [0]
    pair.step([table], [65 * 32], [1])
    pair.step([table], [65 * 32 + 1], [5])


@pytest.mark.parametrize("case", KINDS)
def test_chunks_give_the_same_bits(emulated: str, models_folder: Path, case: str) -> None:
    pair = Pair(make_model(CASES[case], models_folder), emulated)
    token_ids = np.arange(90, dtype=np.int32)
    whole = None
    for chunks in ([90], [1, 40, 2, 30, 17], [32, 3, 3, 52]):
        rows, start = [], 0
        for length in chunks:
            pair.gpu.forward(token_ids[start : start + length], [[1, 2, 3]], [start], [length], range(length))
            rows.append(pair.gpu.logits())
            start += length
        logits = np.concatenate(rows)
        whole = logits if whole is None else whole
        assert bits(logits) == bits(whole)


def test_copied_blocks_and_rollback(emulated: str, random_path: Path) -> None:
    for n_layers in (-1, 1):
        pair = Pair(random_path, emulated, n_layers=n_layers)
        pair.step([[3, 1]], [0], [40])
        for runner in (pair.cpu, pair.gpu):
            runner.copy_block(3, 8)
            runner.copy_block(1, 9)
        pair.step([[8, 9]], [36], [1])  # what was computed behind is forgotten
        pair.step([[3, 1]], [40], [1])  # and the original is as it was


def test_many_sequences(emulated: str, random_path: Path) -> None:
    """More tokens than are captured as graphs, and more outputs than are scored together."""
    pair = Pair(random_path, emulated)
    n = 70
    pair.step([[i % N_BLOCKS] for i in range(n)], [i // N_BLOCKS for i in range(n)], [1] * n)
    for output in (0, 63, 64, 69):
        cpu, gpu = pair.samples(output, temperature=0)
        assert gpu == cpu


def test_no_output(emulated: str, random_path: Path) -> None:
    pair = Pair(random_path, emulated)
    pair.step([[0]], [0], [12], [])
    pair.step([[0]], [12], [3], [1])


SAMPLING: list[dict[str, object]] = [
    {"temperature": 0},
    {"temperature": 0.8, "top_k": 20, "top_p": 1.0},
    {"temperature": 1.5, "top_k": 200, "top_p": 0.95, "min_p": 0.01},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.9},  # the whole vocabulary
    {"temperature": 0.7, "repetition_penalty": 1.3, "prompt_ids": [1, 2, 3]},
    {"temperature": 0, "logit_bias": {17: 5.0, 3: -100.0}},
]


@pytest.mark.parametrize("options", SAMPLING, ids=str)
def test_sampling(emulated: str, random_path: Path, options: dict[str, object]) -> None:
    pair = Pair(random_path, emulated)
    pair.step([[0, 1]], [0], [3])
    for output in (0, 2):
        cpu, gpu = pair.samples(output, seed=5, **options)
        assert gpu == cpu


def test_masks(emulated: str, random_path: Path) -> None:
    pair = Pair(random_path, emulated)
    pair.step([[0]], [0], [2])
    for allowed in ([5], [0, 31, 32, 63, 100, 287], list(range(0, 288, 2))):
        mask = np.zeros(9, np.uint32)
        for token in allowed:
            mask[token // 32] |= np.uint32(1 << token % 32)
        drawn = []
        for runner in (pair.cpu, pair.gpu):
            sampler = _native.Sampler(temperature=0.9, seed=4)
            sampler.set_mask(mask.view(np.int32))
            drawn.append([runner.sample(1, sampler).token_id for _ in range(10)])
        assert drawn[0] == drawn[1]
        assert set(drawn[1]) <= set(allowed)


def test_logprobs(emulated: str, random_path: Path) -> None:
    pair = Pair(random_path, emulated)
    pair.step([[0]], [0], [4])
    for output in (0, 3):
        found = [runner.sample(output, _native.Sampler(temperature=0), 5) for runner in (pair.cpu, pair.gpu)]
        assert found[1].logprob == found[0].logprob
        assert found[1].top == found[0].top


def test_equal_logits_are_decided_as_on_the_cpu(emulated: str, models_folder: Path) -> None:
    """Rows of the head that are the same, hundreds of them: more candidates than are fetched."""
    spec = ModelSpec(embedding=TensorType.F32, vocab_size=900)
    model = random_model(spec)
    values = np.repeat(model.embedding.values[:9], 100, axis=0)
    model.embedding.values, model.embedding.data = values, values.tobytes()
    pair = Pair(write_gguf(model, models_folder / "equal-rows.gguf"), emulated)
    pair.step([[0]], [0], [2])
    for options in ({"temperature": 0}, {"temperature": 0.9, "top_k": 30, "seed": 2}):
        cpu, gpu = pair.samples(1, **options)
        assert gpu == cpu


def test_weights_that_give_no_finite_values(emulated: str, models_folder: Path) -> None:
    model = random_model(ModelSpec())
    model.norms["blk.1.ffn_norm"][:] = 3e38
    path = write_gguf(model, models_folder / "infinite.gguf")
    for n_layers in (-1, 1):
        pair = Pair(path, emulated, n_layers=n_layers)
        for runner in (pair.cpu, pair.gpu):
            with pytest.raises(ModelFileError, match="not finite: the file is damaged"):
                runner.forward(np.array([1, 2], np.int32), [[0]], [0], [2], [1])
