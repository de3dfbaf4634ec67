"""The numbers of the engine mlx: exact whole numbers in every product, and the CPU engine's logits."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet import _native
from bitnet.models.gguf_writer import TensorType
from bitnet.models.tensor_codec import decode_ternary
from reference.cases import CASES
from reference.engine import Engine
from reference.model_factory import ModelSpec, make_model

mx = pytest.importorskip("mlx.core", reason="the package mlx is not installed")
from bitnet.engines import mlx_check  # noqa: E402
from bitnet.engines.mlx_runner import (  # noqa: E402
    KV_BLOCK_SIZE,
    MAX_WIDTH,
    Linear,
    MlxRunner,
    MlxWeights,
    Units,
    group_size,
)

pytestmark = pytest.mark.mlx


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, models_folder: Path) -> Engine:
    return Engine(make_model(CASES[request.param], models_folder))


def on_mlx(engine: Engine, *, compiled: bool = False) -> Engine:
    """The same model, its steps computed by MLX."""
    other = Engine.__new__(Engine)
    other.__dict__.update(engine.__dict__)
    other.runner = MlxRunner(
        engine.model,
        MlxWeights(engine.model),
        n_blocks=engine.runner.n_blocks,
        max_batch_tokens=256,
        compiled=compiled,
    )
    return other


def token_ids(engine: Engine, n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, engine.model.vocab_size, n).tolist()


def assert_alike(computed: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert (computed.argmax(axis=1) == expected.argmax(axis=1)).all()
    assert np.abs(computed - expected).max() < 0.005 * np.abs(expected).max()


def test_the_codes_are_those_of_the_file(case: Engine) -> None:
    file = _native.ModelFile(str(case.path))
    tensors = {tensor.name: tensor for tensor in file.tensors}
    raw = Path(file.path).read_bytes()
    # The data section is the last one, and whole tensors of 32 bytes' alignment fill it.
    start = len(raw) - max(tensor.offset + -(-tensor.n_bytes // 32) * 32 for tensor in file.tensors)
    names = {"v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
    for layer in range(case.model.n_layers):
        for name, stored in names.items():
            tensor = tensors[f"blk.{layer}.{stored}.weight"]
            width, rows = tensor.shape[:2]
            data = raw[start + tensor.offset :][: tensor.n_bytes]
            stored_matrix = decode_ternary(data, TensorType.I2_S, rows, width)
            words, own_scale = case.model.ternary_rows(layer, name, 4)
            assert words.shape[1] % 4 == 0
            unpacked = mlx_check.unpack(words)
            assert np.array_equal(unpacked[:, :width], stored_matrix.codes)
            assert not unpacked[:, width:].any()
            assert own_scale == stored_matrix.scale


def test_every_product_is_exact(case: Engine) -> None:
    weights = MlxWeights(case.model)
    random = np.random.default_rng(1)
    for index, layer in enumerate(weights.layers):
        for name, linear in weights.linears.items():
            matrices = [mlx_check.unpack(case.model.ternary_rows(index, part)[0]) for part in linear.names]
            codes = np.vstack(matrices)[:, : linear.width].astype(np.int64)
            q = random.integers(-128, 128, (33, linear.width))
            q[0], q[1] = 127 * codes[0], np.where(codes[-1] > 0, -128, 127)
            for rows in (q[:1], q[:5], q):
                operand = mx.array(rows.astype(np.float32))
                computed = [np.array(linear.integers(operand, part)) for part in layer[name]]
                assert np.array_equal(np.concatenate(computed, axis=1), rows @ codes.T)


class _OneMatrix:
    """Stands in for a model: one matrix of nothing but one code."""

    def norm(self, layer: int, name: str) -> None:
        return None

    def __init__(self, rows: int, width: int, code: int) -> None:
        self._shape = rows, width
        self._code = code

    def ternary_rows(self, layer: int, name: str, multiple: int) -> tuple[NDArray[np.uint32], float]:
        rows, width = self._shape
        fields = np.full((rows, -(-width // (16 * multiple)) * multiple, 16), 1, np.uint32)
        fields.reshape(rows, -1)[:, :width] = self._code + 1
        return (fields << np.arange(0, 32, 2, dtype=np.uint32)).sum(axis=2, dtype=np.uint32), 0.5


@pytest.mark.parametrize("width", [24, 320, 2560, 6912, 27648, MAX_WIDTH])
@pytest.mark.parametrize("code", [-1, 1])
def test_the_largest_sums_are_exact(width: int, code: int) -> None:
    linear = Linear(["o"], width)
    (part,) = linear.weights(_OneMatrix(8, width, code), 0, Units())  # type: ignore[arg-type]
    for value in (127, -128):
        for n in (1, 33):
            q = mx.array(np.full((n, width), value, np.float32))
            assert np.array_equal(np.array(linear.integers(q, part)), np.full((n, 8), width * value * code))


def test_groups_leave_nothing_to_fill_up_where_they_can() -> None:
    assert [group_size(width) for width in (2560, 320, 96, 24)] == [128, 64, 32, 32]


@pytest.mark.parametrize("chunks", [[40], [17, 1, 1, 1, 20], [33, 7]])
def test_logits_are_those_of_the_cpu(case: Engine, chunks: Sequence[int]) -> None:
    ids = token_ids(case, 40)
    assert_alike(on_mlx(case).logits(ids, chunks), case.logits(ids))


@pytest.mark.parametrize("name", ["bitnet-f16-hd64", "gemma3-bf16-hd256"])
def test_compiled_steps_compute_the_same(name: str, models_folder: Path) -> None:
    if mx.default_device() == mx.cpu and shutil.which("g++") is None:
        pytest.skip("MLX compiles with g++ on a CPU")
    engine = Engine(make_model(CASES[name], models_folder))
    ids = token_ids(engine, 40)
    assert_alike(on_mlx(engine, compiled=True).logits(ids, [20, 1, 19]), engine.logits(ids))


def test_a_token_computed_again_in_its_place(case: Engine) -> None:
    engine = on_mlx(case)
    ids = token_ids(case, 40)
    expected = engine.logits(ids, [20, 20])
    engine.logits([*ids[:30], *token_ids(case, 10, seed=1)], [20, 20])  # wrong from 30 on
    engine.step([ids[30:]], [30])
    assert_alike(engine.runner.logits(), expected[30:])


def test_sequences_beside_each_other(case: Engine) -> None:
    engine = on_mlx(case)
    texts = [token_ids(case, n, seed=n) for n in (30, 1, 17)]
    alone = [engine.logits(text) for text in texts]
    engine.step(texts, [0, 0, 0])
    together = engine.runner.logits()
    assert_alike(together, np.concatenate(alone))


def test_a_step_of_single_tokens_gives_the_same_bits_whoever_is_beside(case: Engine) -> None:
    engine = on_mlx(case)
    texts = [token_ids(case, n, seed=n) for n in (30, 12, 17)]
    engine.step([text[:-1] for text in texts], [0, 0, 0])
    engine.step([text[-1:] for text in texts], [len(text) - 1 for text in texts])
    together = engine.runner.hidden()
    engine.step([texts[0][-1:]], [len(texts[0]) - 1])
    assert np.allclose(engine.runner.hidden()[0], together[0], rtol=0, atol=1e-5 * np.abs(together).max())


def test_copied_blocks_hold_the_same(case: Engine) -> None:
    engine = on_mlx(case)
    ids = token_ids(case, 33)
    expected = engine.logits(ids, [32, 1])
    first = engine.block_tables[0]
    engine.runner.copy_block(first[0], engine.block_tables[1][0])
    engine.step([[ids[0]], ids[32:]], [0, 32])  # the first sequence's own token does not matter
    assert np.array_equal(engine.runner.logits()[1].argmax(), expected[32].argmax())
    assert_alike(engine.runner.logits()[1:], expected[32:])


def test_sampling_takes_the_likeliest_by_the_exact_head(case: Engine) -> None:
    engine = on_mlx(case)
    engine.logits(token_ids(case, 40))
    exact = engine.runner.logits()
    for row in range(40):
        sampled = engine.runner.sample(row, _native.Sampler(temperature=0), 3)
        assert sampled.token_id == exact[row].argmax()
        assert [token for token, _ in sampled.top] == np.argsort(-exact[row], kind="stable")[:3].tolist()


def test_logprobs(case: Engine) -> None:
    engine = on_mlx(case)
    ids = token_ids(case, 12)
    targets = np.array([*ids[2:11], -1], np.int32)
    expected = engine.logits(ids)[1:11].astype(np.float64)
    expected -= np.log(np.exp(expected - expected.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    expected -= engine.runner.logits()[1:11].max(axis=1, keepdims=True)
    computed = engine.runner.logprobs(targets, 1)
    assert computed[:9] == pytest.approx(expected[np.arange(9), targets[:9]], abs=1e-4)
    assert np.isnan(computed[9])


def test_a_long_prompt(tmp_path: Path) -> None:
    """Through scattered and through neighbouring blocks, in pieces of different sizes."""
    spec = ModelSpec(
        "llama",
        hidden_size=256,
        n_heads=4,
        n_kv_heads=2,
        head_dim=64,
        ffn_size=384,
        untied=True,
        context_length=1024,
    )
    path = make_model(spec, tmp_path)
    model = _native.Model(_native.ModelFile(str(path)))
    n = 600
    ids = np.random.default_rng(5).integers(0, model.vocab_size, n).astype(np.int32)
    kept = [29, 299, n - 1]
    neighbours = list(range(-(-n // KV_BLOCK_SIZE)))
    scattered = np.random.default_rng(6).permutation(len(neighbours)).tolist()
    cpu = _native.Runner(model, n_blocks=len(neighbours), max_batch_tokens=n)
    cpu.forward(ids, [neighbours], [0], [n], kept)
    expected = cpu.logits()
    for blocks, piece in ((neighbours, 512), (scattered, 300)):
        runner = MlxRunner(model, MlxWeights(model), n_blocks=len(blocks))
        rows = []
        for start in range(0, n, piece):
            length = min(piece, n - start)
            outputs = [position - start for position in kept if start <= position < start + length]
            runner.forward(ids[start : start + length], [blocks], [start], [length], outputs)
            rows.append(runner.logits())
        off = np.abs(np.concatenate(rows) - expected).max(axis=1) / np.abs(expected).max(axis=1)
        # Some activation is rounded to the next of 256 values after a while, which moves what follows.
        assert off[0] < 1e-5
        assert off.max() < 0.01


def test_too_wide_a_model_is_refused(case: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet.engines.mlx_runner.MAX_WIDTH", 64)
    with pytest.raises(ValueError, match=r"up to 64 columns exactly, and this model has \d+; load it with"):
        MlxWeights(case.model)
