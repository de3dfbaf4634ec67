"""The engine llama_cpp as users meet it: the native engine's answers, and what is refused."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet import BitNet, ContextOverflowError, EngineClosedError, ModelFileError, ValidationError, _native
from bitnet.models import converted, weight_cache
from bitnet.models.conversion import write_model
from bitnet.models.gguf_source import read_gguf
from bitnet.models.gguf_writer import GgufWriter, TensorType
from bitnet.models.tensor_codec import encode_dense
from reference.model_factory import ModelSpec, make_model
from rewritten_model import rewrite

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

pytestmark = [
    pytest.mark.llama_cpp,
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of llama-cpp-python's own import
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LLAMA = ModelSpec(
    "llama", hidden_size=256, n_heads=4, n_kv_heads=2, head_dim=64, ffn_size=512, untied=True, seed=1
)
FIRST_BITNET = ModelSpec(
    "bitnet", hidden_size=256, n_heads=4, n_kv_heads=2, head_dim=64, ffn_size=512, seed=1
)
TOKEN_IDS = [260, 3, 77, 150, 9, 200, 31, 258, 19, 44, 101, 7, 256, 88, 12, 63]
PROMPTS = ["the winner", "123 abc", "Once upon a time there was"]
OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
LOAD: dict[str, Any] = {"engine": "llama_cpp", "n_threads": 1}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(LLAMA, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def native(path: Path) -> Iterator[BitNet]:
    with BitNet(path, n_threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def theirs(path: Path) -> Iterator[BitNet]:
    with BitNet(path, n_batch=4, **LOAD) as loaded:
        yield loaded


def off(ours: np.ndarray, expected: np.ndarray) -> float:
    """The largest error of a row, as a share of its norm."""
    errors = np.linalg.norm(ours - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return float(errors.max())


def test_what_it_tells(theirs: BitNet, native: BitNet) -> None:
    info, same = theirs.info, native.info
    assert (info.engine, info.kernels, info.n_gpu_layers) == ("llama_cpp", "llama.cpp cpu", 0)
    for name in (
        "name",
        "path",
        "architecture",
        "n_layers",
        "hidden_size",
        "ffn_size",
        "n_heads",
        "head_dim",
    ):
        assert getattr(info, name) == getattr(same, name), name
    assert (info.n_ctx, info.vocab_size, info.tied_head) == (same.n_ctx, same.vocab_size, same.tied_head)
    assert info.ternary_type == "I2_S"
    # Keys and values of n_batch sequences, in f16.
    assert info.kv_bytes == 4 * info.n_ctx * 2 * info.n_layers * info.n_kv_heads * info.head_dim * 2


@pytest.mark.parametrize("prompt", PROMPTS)
def test_it_answers_as_the_native_engine(prompt: str, theirs: BitNet, native: BitNet) -> None:
    reply, expected = theirs.generate(prompt, **OPTIONS), native.generate(prompt, **OPTIONS)
    assert reply.token_ids == expected.token_ids
    assert len(set(reply.token_ids)) > 10  # not one token over and over, which anything might give
    assert reply.text == expected.text
    assert (reply.finish_reason, reply.usage.prompt_tokens) == ("length", expected.usage.prompt_tokens)
    assert reply.usage.completion_tokens == 24


def test_numbers(theirs: BitNet, native: BitNet) -> None:
    # They round activations otherwise: 0.2 % here.
    assert 0 < off(theirs.logits(TOKEN_IDS), native.logits(TOKEN_IDS)) < 0.005
    ours, expected = theirs.logprobs(TOKEN_IDS), native.logprobs(TOKEN_IDS)
    np.testing.assert_allclose(ours, expected, rtol=0.005)
    texts = ["a b c", "Hello there, you", "x" * 100]
    vectors, right = theirs.embed(texts), native.embed(texts)
    assert (vectors * right).sum(1).min() > 0.9995
    assert (vectors[0] * right[1]).sum() < 0.99  # so that a mix-up would be seen
    # What follows embeddings is computed as before.
    assert theirs.generate(PROMPTS[0], **OPTIONS).text == native.generate(PROMPTS[0], **OPTIONS).text


@pytest.mark.parametrize("architecture", ["bitnet", "bitnet-b1.58"])
def test_bitnets_with_silu(architecture: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = make_model(FIRST_BITNET, tmp_path)
    options = {}
    if architecture != "bitnet":
        metadata = _native.ModelFile(str(file)).metadata
        own = {key: value for key, value in metadata.items() if key.startswith("bitnet.")}
        renamed = {key.replace("bitnet.", f"{architecture}."): value for key, value in own.items()}
        changes = {**dict.fromkeys(own), **renamed, "general.architecture": architecture}
        file = rewrite(tmp_path / "renamed.gguf", source=file, metadata=changes)
        options = {"activation": "silu"}
    with caplog.at_level(logging.WARNING, "bitnet.convert"), BitNet(file, **LOAD, **options) as model:
        assert f"as tq2_0 to {weight_cache.directory()}" in caplog.text
        with BitNet(file, n_threads=1, **options) as native:
            assert off(model.logits(TOKEN_IDS), native.logits(TOKEN_IDS)) < 0.01
        assert model.info.activation == "silu"
    caplog.clear()
    with BitNet(file, **LOAD, **options):
        assert "as tq2_0" not in caplog.text  # once
    assert converted.remove(file) > 0
    assert not list(weight_cache.directory().glob(f"{file.stem}*.gguf"))


@pytest.mark.parametrize("kind", ["tq1_0", "tq2_0", "q2_0"])
def test_files_it_reads_itself(kind: Any, path: Path, native: BitNet, tmp_path: Path) -> None:
    file = tmp_path / f"{kind}.gguf"
    write_model(read_gguf(path), file, file_type=kind)
    before = set(weight_cache.directory().iterdir())
    with BitNet(file, **LOAD) as model:
        assert off(model.logits(TOKEN_IDS), native.logits(TOKEN_IDS)) < 0.005
    assert set(weight_cache.directory().iterdir()) == before  # nothing was written
    for option in ({"scales": "divide"}, {"embd_type": "q8_0"}, {"activation": "relu2"}):
        with pytest.raises(ValidationError, match="leave it out") as failure:
            BitNet(file, **LOAD, **option)
        assert failure.value.field == next(iter(option))


def test_a_model_that_is_no_bitnet(path: Path, tmp_path: Path) -> None:
    """With weights of 8 bits, against llama-cpp-python itself."""
    source, rng = read_gguf(path), np.random.default_rng(1)
    writer = GgufWriter(tmp_path / "dense.gguf")
    for key, (value, kind) in source.metadata.items():
        writer.add_metadata(key, value, kind)
    for dense in source.dense:
        writer.add_tensor(dense.name, dense.shape[::-1], dense.stored, dense.raw)
    for ternary in source.ternary:
        codes, scale = ternary.read()
        weights = (codes * scale + rng.normal(0, 0.3 * scale, codes.shape)).astype(np.float32)
        writer.add_tensor(
            ternary.name, codes.shape[::-1], TensorType.Q8_0, encode_dense(weights, TensorType.Q8_0)
        )
    writer.write()
    with pytest.raises(ModelFileError):
        BitNet(tmp_path / "dense.gguf")
    theirs = llama_cpp.Llama(
        str(tmp_path / "dense.gguf"), n_ctx=512, logits_all=True, verbose=False, n_threads=1
    )
    try:
        theirs.eval(TOKEN_IDS)
        expected = np.array(theirs.scores[: len(TOKEN_IDS)])
    finally:
        theirs.close()
    with BitNet(tmp_path / "dense.gguf", **LOAD) as model:
        logits = model.logits(TOKEN_IDS)
        assert off(logits[:1], expected[:1]) < 1e-6
        assert off(logits, expected) < 0.003  # Llama does not use flash attention, unless told to
        assert model.info.ternary_type == ""
        answer = model.generate(TOKEN_IDS, max_tokens=1, temperature=0).token_ids
        assert answer == (int(expected[-1].argmax()),)


def test_rows_of_64_and_keys_of_8_bits(tmp_path: Path) -> None:
    spec = ModelSpec(
        "llama", hidden_size=320, n_heads=5, n_kv_heads=5, head_dim=64, ffn_size=192, untied=True, seed=2
    )
    file = make_model(spec, tmp_path)
    with BitNet(file, n_threads=1) as native, BitNet(file, **LOAD) as model:
        assert off(model.logits(TOKEN_IDS), native.logits(TOKEN_IDS)) < 0.01
    with BitNet(file, n_threads=1, kv_type="q8_0") as native, BitNet(file, kv_type="q8_0", **LOAD) as model:
        assert 0 < off(model.logits(TOKEN_IDS), native.logits(TOKEN_IDS)) < 0.02


def test_streams_stop_strings_and_usage(theirs: BitNet, native: BitNet) -> None:
    whole = native.generate(PROMPTS[0], **OPTIONS).text
    pieces = [delta.text for delta in theirs.stream(PROMPTS[0], **OPTIONS)]
    assert "".join(pieces) == whole
    assert len(pieces) > 5
    stop = whole[6:9]
    reply = theirs.generate(PROMPTS[0], stop=[stop], **OPTIONS)
    assert (reply.text, reply.finish_reason) == (whole[: whole.index(stop)], "stop")
    # What a conversation began with is not computed again, and the answer is the same.
    prompt = "a long beginning that is asked for twice, word for word " * 3
    first, second = theirs.generate(prompt, **OPTIONS), theirs.generate(prompt, **OPTIONS)
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens > 0.9 * second.usage.prompt_tokens
    third = theirs.generate(prompt + "and more", **OPTIONS)
    assert third.usage.cached_tokens > 0.9 * first.usage.prompt_tokens
    assert first.token_ids == second.token_ids == native.generate(prompt, **OPTIONS).token_ids
    assert third.token_ids == native.generate(prompt + "and more", **OPTIONS).token_ids


def test_many_at_a_time(theirs: BitNet) -> None:
    prompts = [f"{prompt} {number}" for prompt in PROMPTS for number in range(3)]
    options = {**OPTIONS, "logprobs": True, "top_logprobs": 2}
    alone = [theirs.generate(prompt, **options) for prompt in prompts]
    streams = [theirs.stream(prompt, **options) for prompt in prompts]
    next(streams[3])
    assert theirs.health().running == 4
    for stream, expected in zip(streams, alone, strict=True):
        reply = stream.result()
        assert expected.logprobs is not None
        for token_id, entry in zip(reply.token_ids, expected.logprobs, strict=True):
            # llama.cpp sums in another order when there are more rows; after a tie that moves, texts part.
            if entry.top[0].logprob - entry.top[1].logprob < 0.02:
                break
            assert token_id == entry.token_id


def test_cancelling_stops_it(theirs: BitNet) -> None:
    stream = theirs.stream(PROMPTS[0], max_tokens=400, temperature=0, ignore_eos=True)
    next(stream)
    stream.cancel()
    reply = stream.result()
    assert reply.finish_reason == "cancelled"
    assert len(reply.token_ids) < 200
    steps = theirs.health().n_steps
    assert theirs.health().running == 0
    threading.Event().wait(0.05)
    assert theirs.health().n_steps == steps


def test_a_step_is_stopped_midway(path: Path, tmp_path: Path) -> None:
    from bitnet.engines.llama_cpp_runner import LlamaCppModel, LlamaCppRunner
    from bitnet.errors import CancelledError

    file = tmp_path / "llama.gguf"
    write_model(read_gguf(path), file, file_type="tq2_0")
    model = LlamaCppModel(str(file), n_gpu_layers=0, main_gpu=0, use_mmap=True, use_mlock=False)
    runner = LlamaCppRunner(
        model,
        block_size=512,
        n_blocks=1,
        n_threads=1,
        kv_type="f16",
        head_dim=64,
        n_gpu_layers=0,
        low_vram=False,
    )
    ids = np.array(TOKEN_IDS * 20, np.int32)
    runner.cancel()
    with pytest.raises(CancelledError):
        runner.forward(ids, [[0]], [0], [len(ids)], [len(ids) - 1])
    runner.forward(ids, [[0]], [0], [len(ids)], [len(ids) - 1])  # as if it had not been
    again = runner.logits()
    with BitNet(path, n_threads=1) as native:
        assert off(again, native.logits(ids.tolist(), first=len(ids) - 1)) < 0.005


def test_schemas_and_sampling(theirs: BitNet) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}
    wanted = {"type": "json_schema", "schema": schema}
    reply = theirs.generate("{", response_format=wanted, max_tokens=200, seed=3)
    assert isinstance(json.loads(reply.text)["n"], int)
    same = [theirs.generate("abc", seed=5, max_tokens=20, temperature=1.5).token_ids for _ in range(2)]
    assert same[0] == same[1] != theirs.generate("abc", seed=6, max_tokens=20, temperature=1.5).token_ids
    reply = theirs.generate("abc", max_tokens=3, logprobs=True, top_logprobs=2, temperature=0)
    assert reply.logprobs is not None
    assert [entry.token_id for entry in reply.logprobs] == [entry.top[0].token_id for entry in reply.logprobs]


def test_too_long(theirs: BitNet) -> None:
    with pytest.raises(ContextOverflowError):
        theirs.generate([5] * theirs.info.n_ctx)


def test_an_unknown_pre_tokenizer_is_llama_cpps(path: Path, tmp_path: Path) -> None:
    file = rewrite(tmp_path / "deepseek.gguf", source=path, metadata={"tokenizer.ggml.pre": "deepseek-llm"})
    with pytest.raises(ModelFileError, match="pre-tokenizer"):
        BitNet(file)
    with BitNet(file, **LOAD) as model:
        text = "the winner 123, {}"
        assert model.detokenize(model.tokenize(text)) == text


REFUSED = {
    "relu2": (ModelSpec(hidden_size=256, n_heads=4, n_kv_heads=4, ffn_size=256), "relu2"),
    "embeddings": (
        ModelSpec("qwen3", hidden_size=256, n_heads=4, n_kv_heads=4, ffn_size=256),
        "a norm of its own",
    ),
    "rows": (
        ModelSpec("llama", hidden_size=256, n_heads=4, n_kv_heads=4, ffn_size=200, untied=True),
        "rows of 200",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_compute_is_refused(name: str, tmp_path: Path) -> None:
    spec, reason = REFUSED[name]
    with pytest.raises(ValidationError, match=reason) as failure:
        BitNet(make_model(spec, tmp_path), **LOAD)
    assert failure.value.field == "engine"
    assert "set engine to native" in str(failure.value)


def test_options_it_cannot_obey(path: Path) -> None:
    for field, value in (("quant_type", "tl1"), ("kernel_params", {"row_block": 64})):
        with pytest.raises(ValidationError) as failure:
            BitNet(path, **LOAD, **{field: value})
        assert failure.value.field == field
    from bitnet.engines import llama_cpp as engine

    if not engine.has_gpu():
        with pytest.raises(ValidationError, match="built without one: build it for yours"):
            BitNet(path, n_gpu_layers=-1, **LOAD)


def test_what_llama_cpp_says_of_a_file(path: Path, tmp_path: Path) -> None:
    file = rewrite(tmp_path / "other.gguf", source=path, metadata={"general.architecture": "no-such"})
    with pytest.raises(ModelFileError, match=r"llama\.cpp cannot load it: unknown model architecture"):
        BitNet(file, **LOAD)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork_it_is_loaded_again(theirs: BitNet) -> None:
    expected = theirs.generate("a", max_tokens=4, temperature=0).text.encode()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, theirs.generate("a", max_tokens=4, temperature=0).text.encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1000) == expected
    for end in (read, write):
        os.close(end)


def test_a_gpu_does_not_survive_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitnet.engines import llama_cpp as engine

    monkeypatch.setattr(engine, "_gpu_used_by", os.getppid())
    with pytest.raises(EngineClosedError, match="'spawn'"):
        engine._refuse_after_fork(-1)
    engine._refuse_after_fork(0)
