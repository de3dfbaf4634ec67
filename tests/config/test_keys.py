"""What each key of the schema does: one test a key, with a configuration that differs in that key alone."""

from __future__ import annotations

import importlib.util
import logging
import pickle
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet import BitNet, BitNetError, DeadlineError, ModelFileError, ValidationError, _native, logs, models
from bitnet.engines import deadline
from bitnet.engines import http as http_engine
from bitnet.models import weight_cache
from bitnet.testing import FakeEngine

IDS = [1, 5, 9, 2] * 8
WILD = {"temperature": 100, "top_k": 0, "top_p": 1}  # the random models are sure of themselves


@pytest.fixture
def make(random_path: Path) -> Iterator[Callable[..., BitNet]]:
    """Models of one file, from a mapping."""
    made: list[BitNet] = []

    def from_config(**keys: Any) -> BitNet:
        made.append(BitNet.from_config({"model_path": str(random_path), **keys}))
        return made[-1]

    yield from_config
    for model in made:
        model.close()


@pytest.fixture
def http(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for the engine of mode api; what it was made with."""
    made: list[dict[str, Any]] = []

    def engine(**options: Any) -> FakeEngine:
        made.append(options)
        return FakeEngine("from the server")

    monkeypatch.setattr(http_engine, "connected_engine", engine)
    return made


def tokens(model: BitNet, **options: Any) -> tuple[int, ...]:
    return model.generate("Hello", **{"ignore_eos": True, "max_tokens": 24, **options}).token_ids


def test_mode(make: Callable[..., BitNet], http: list[dict[str, Any]], random_path: Path) -> None:
    assert make(mode="direct").info.path == str(random_path)
    with BitNet.from_config({"mode": "api"}) as model:
        assert model.generate("x").text == "from the server"
    assert len(http) == 1


def test_model_path_and_model(random_path: Path, http: list[dict[str, Any]]) -> None:
    with BitNet.from_config({"model_path": str(random_path), "model": "a label"}) as model:
        assert model.info.path == str(random_path)
    with BitNet.from_config({"model": str(random_path)}) as model:
        assert model.info.path == str(random_path)
    with BitNet.from_config({}) as model:
        assert model.info.path == str(models.find(None))
    BitNet.from_config({"mode": "api", "model": "bitnet-2b"}).close()
    assert http[0]["model"] == "bitnet-2b"


def test_quant_type(make: Callable[..., BitNet]) -> None:
    multiply, look_up = make(quant_type="i2_s"), make(quant_type="tl1")
    assert look_up.info.tiles["table_min_tokens"] == 1
    assert multiply.info.tiles["table_min_tokens"] > 1
    assert (multiply.info.quant_type, look_up.info.quant_type) == ("i2_s", "tl1")
    assert multiply.logits(IDS).tobytes() == look_up.logits(IDS).tobytes()
    assert tokens(multiply, seed=1) == tokens(look_up, seed=1)


def test_use_pretuned(make: Callable[..., BitNet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_CACHE_DIR", str(tmp_path))
    shipped = make()
    assert list(tmp_path.iterdir()) == []
    measured = make(use_pretuned=False)
    (kept,) = tmp_path.glob("tiles-*.json")
    kept.write_text('{"row_block": 96, "pieces_per_thread": 5, "table_min_tokens": 7}')
    again = make(use_pretuned=False, n_batch=3)
    assert again.info.tiles == {"row_block": 96, "pieces_per_thread": 5, "table_min_tokens": 7}
    for model in (measured, again):
        assert model.logits(IDS).tobytes() == shipped.logits(IDS).tobytes()


def test_kernel_params(make: Callable[..., BitNet]) -> None:
    sizes = {"table_min_tokens": 5, "row_block": 64, "pieces_per_thread": 3}
    custom = make(kernel_params={"enable_custom": True, **sizes})
    assert custom.info.tiles == sizes
    not_enabled = make(kernel_params=sizes)
    assert not_enabled.info.tiles == make().info.tiles
    assert custom.logits(IDS).tobytes() == make().logits(IDS).tobytes()
    never = make(kernel_params={"enable_custom": True, "table_min_tokens": 0}, quant_type="tl1")
    assert never.info.tiles["table_min_tokens"] > 2**30
    with pytest.raises(ValidationError, match=r"kernel_params\.tile: unknown key"):
        make(kernel_params={"enable_custom": True, "tile": 5})


def test_kernel_params_seed(make: Callable[..., BitNet]) -> None:
    seeded, random = make(kernel_params={"seed": 7}, **WILD), make(**WILD)
    assert tokens(seeded) == tokens(seeded) == tokens(random, seed=7)
    assert len({tokens(random) for _ in range(3)}) > 1


def test_quant_embd(make: Callable[..., BitNet], models_folder: Path) -> None:
    from bitnet.models.gguf_writer import TensorType
    from reference.model_factory import ModelSpec, make_model

    path = make_model(ModelSpec(embedding=TensorType.F32), models_folder)
    as_is, half = make(model_path=str(path)), make(model_path=str(path), quant_embd=True)
    assert (as_is.info.embd_type, half.info.embd_type) == ("F32", "F16")
    values = as_is.info.vocab_size * as_is.info.hidden_size
    assert as_is.info.head_bytes - half.info.head_bytes == 2 * values
    assert half.info.memory_bytes < as_is.info.memory_bytes
    difference = np.abs(as_is.logits(IDS) - half.logits(IDS)).max()
    assert 0 < difference < 0.5


def test_embd_type(make: Callable[..., BitNet]) -> None:
    sizes = {}
    for kind in ("f32", "f16", "q8_0", "q4_0"):
        model = make(embd_type=kind, quant_embd=True)  # embd_type wins
        assert model.info.embd_type == kind.upper()
        sizes[kind] = model.info.head_bytes
    assert sizes["f32"] > sizes["f16"] > sizes["q8_0"] > sizes["q4_0"]
    with pytest.raises(ValidationError, match="rows of 320 cannot be divided"):
        make(embd_type="q6_k")


def test_layout(make: Callable[..., BitNet]) -> None:
    assert make().info.layout == make(layout="x128").info.layout == "x128"
    other = make(layout="arm64")  # of a file that has another
    assert other.info.layout == "arm64"
    assert other.logits(IDS).tobytes() != make().logits(IDS).tobytes()
    with pytest.raises(ValidationError, match="layout='preset' is for TL1"):
        make(layout="preset")


def test_tl_config(make: Callable[..., BitNet], tmp_path: Path) -> None:
    """What it holds is tested with the layouts; here, that it is found beside the configuration."""
    (tmp_path / "tiles.ini").write_text("[a]\nm=1\nk=1\nbm=1\nbk=1\nbmm=1\n")
    with pytest.raises(ValidationError, match="tl_config is for TL1 and TL2"):
        make(tl_config=str(tmp_path / "tiles.ini"))
    file = tmp_path / "bitnet.yaml"
    for name, message in (("tiles.ini", "tl_config is for TL1"), ("none.ini", "there is no file 'none.ini'")):
        file.write_text(f"tl_config: {name}\n")
        with pytest.raises(BitNetError, match=message):
            BitNet.from_config(file)


def test_activation(make: Callable[..., BitNet]) -> None:
    relu2, silu = make(), make(activation="silu")
    assert (relu2.info.activation, silu.info.activation) == ("relu2", "silu")
    assert relu2.logits(IDS).tobytes() != silu.logits(IDS).tobytes()


def test_layout_and_scales(
    make: Callable[..., BitNet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rewritten_model import rewrite

    monkeypatch.setenv("BITNET_CACHE_DIR", str(tmp_path / "cache"))
    path = str(rewrite(tmp_path / "model.gguf", layout="arm64", scale=lambda scale: 1 / scale))
    assert make(model_path=path, layout="auto").info.losses.keys() > {"arm64", "x128 divide"}
    said = make(model_path=path, layout="arm64", scales="divide")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert said.chat(question, temperature=0).text == "The capital of France is Paris."
    found = make(model_path=path, layout="arm64", scales="auto")
    assert (found.info.scales, len(found.info.losses)) == ("divide", 2)


def test_metadata_overrides(make: Callable[..., BitNet]) -> None:
    template = "{% for message in messages %}<{{ message.content }}>{% endfor %}"
    model = make(metadata_overrides={"tokenizer.chat_template": template, "pooling_type": "last"})
    assert model.render([{"role": "user", "content": "Hi"}]).endswith("<Hi>")
    assert model.info.pooling == "last"
    with pytest.raises(ValidationError, match=r"did you mean 'tokenizer\.ggml\.pre'"):
        make(metadata_overrides={"tokenizer.ggml.pree": "x"})


def test_n_ctx(make: Callable[..., BitNet]) -> None:
    assert make(n_ctx=64).info.n_ctx == 64
    assert make(n_ctx=0).info.n_ctx == 512
    assert make(n_ctx=2048).info.n_ctx == make().info.n_ctx == 512
    with pytest.raises(ValidationError, match="n_ctx=600 is more than the 512"):
        make(n_ctx=600)


def test_n_threads(make: Callable[..., BitNet], caplog: pytest.LogCaptureFixture) -> None:
    cores = _native.physical_cores()
    assert make(n_threads=1).info.n_threads == 1
    assert make(n_threads=0).info.n_threads == cores
    with caplog.at_level(logging.INFO, "bitnet"):
        assert make(n_threads=cores + 5).info.n_threads == cores
    assert f"n_threads={cores + 5} is more than the {cores} cores there are; using {cores}" in caplog.messages


def test_n_batch(make: Callable[..., BitNet]) -> None:
    one, three = make(n_batch=1).info, make(n_batch=3).info
    assert (one.n_batch, three.n_batch) == (1, 3)
    assert three.kv_bytes == 3 * one.kv_bytes


def test_kv_type(make: Callable[..., BitNet]) -> None:
    full, half = make().info, make(kv_type="q8_0").info
    assert (full.kv_type, half.kv_type) == ("f16", "q8_0")
    assert half.kv_bytes < 0.6 * full.kv_bytes


def test_speculate(make: Callable[..., BitNet]) -> None:
    prompt = "one two three four five six seven eight nine ten. " * 4
    options = {"temperature": 0, "max_tokens": 40, "ignore_eos": True}
    plain = make(speculate=False).generate(prompt, **options)
    guessed = make(speculate=True).generate(prompt, **options)
    assert plain.timings.drafted_tokens == 0
    assert guessed.timings.drafted_tokens > 0
    assert guessed.token_ids == plain.token_ids


def test_engine(make: Callable[..., BitNet]) -> None:
    assert make(engine="native").info.engine == make(engine="auto").info.engine == "native"
    with pytest.raises(ValidationError, match="engine"):
        make(engine="metal")
    # Where the package mlx is missing, the error says so; where it is there, it computes.
    if importlib.util.find_spec("mlx") is None:
        with pytest.raises(ValidationError, match=r"pip install 'bitnet-cpp\[mlx\]'"):
            make(engine="mlx")
    else:
        assert make(engine="mlx").info.engine == "mlx"


@pytest.mark.parametrize("layers", [-1, 1, 99])
def test_n_gpu_layers(make: Callable[..., BitNet], layers: int) -> None:
    with pytest.raises(
        ValidationError, match=r"computes on the CPU only: set n_gpu_layers to 0, or install"
    ) as e:
        make(n_gpu_layers=layers)
    assert e.value.field == "n_gpu_layers"


def test_main_gpu_and_low_vram_need_a_gpu_to_matter(make: Callable[..., BitNet]) -> None:
    assert tokens(make(main_gpu=3, low_vram=True), seed=1) == tokens(make(), seed=1)
    for keys in ({"main_gpu": -1}, {"low_vram": "a little"}):
        with pytest.raises(ValidationError, match=next(iter(keys))):
            make(**keys)


def test_use_mmap(make: Callable[..., BitNet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(weight_cache, "path_for", partial(weight_cache.path_for, min_bytes=0))
    private = make(use_mmap=False, embd_type="f32")
    assert list(tmp_path.glob("*.packed")) == []
    mapped = make(use_mmap=True, embd_type="f32")
    (packed,) = tmp_path.glob("*.packed")
    assert packed.stat().st_size > mapped.info.head_bytes
    assert mapped.logits(IDS).tobytes() == private.logits(IDS).tobytes()


def test_use_mlock(make: Callable[..., BitNet]) -> None:
    def locked_kilobytes() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmLck:")[1].split()[0])

    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    before = locked_kilobytes()
    model = make(use_mlock=True)
    refused = any("use_mlock" in warning for warning in model.info.warnings)
    assert refused or (locked_kilobytes() - before) * 1024 >= model.info.ternary_bytes


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 100, "top_k": 2}, {"temperature": 100, "top_k": 2}),
        ({"temperature": 100, "top_p": 0.01}, {"temperature": 100, "top_p": 0.01}),
        ({"temperature": 100, "top_k": 0, "top_p": 1}, {"temperature": 100, "top_k": 0, "top_p": 1}),
    ],
)
def test_sampling_defaults(
    make: Callable[..., BitNet], keys: dict[str, Any], options: dict[str, Any]
) -> None:
    assert tokens(make(**keys), seed=3) == tokens(make(), seed=3, **options)
    assert tokens(make(**keys), seed=3, temperature=0) == tokens(make(), temperature=0)
    assert tokens(make(**WILD), seed=3) != tokens(make(), seed=3)


def test_max_tokens(make: Callable[..., BitNet]) -> None:
    reply = make(max_tokens=5).generate("Hello", ignore_eos=True)
    assert (len(reply.token_ids), reply.finish_reason) == (5, "length")


def test_stop() -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    with BitNet.from_config({"stop": [" of", "zzz"], "temperature": 0}) as model:
        reply = model.chat(question)
        assert (reply.text, reply.stop_string) == ("The capital", " of")
        assert "Paris" in model.chat(question, stop=[]).text


def test_timeout_total_bounds_an_answer_where_it_is_written(
    slow_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"model_path": str(slow_path), "max_tokens": 4000, "n_ctx": 4096, "stop": []}
    with BitNet.from_config({**keys, "timeout": {"total": 150}}) as model:
        start = time.monotonic()
        with pytest.raises(
            DeadlineError, match=r"not complete after 0.15 s; allow more time .timeout.total."
        ) as e:
            model.generate("Hello", ignore_eos=True)
        assert time.monotonic() - start < 5
        assert (e.value.status, isinstance(e.value, TimeoutError)) == (504, True)
        assert len(model.generate("Hello", max_tokens=1).token_ids) <= 1
    watched: list[float] = []
    monkeypatch.setattr(deadline, "watch", lambda generation, seconds: watched.append(seconds))
    for written in ({}, {"timeout": {"connect": 5}}, {"timeout": {"total": 0}}, {"timeout": {"total": 5}}):
        with BitNet.from_config({**keys, **written}) as model:
            model.generate("Hello", max_tokens=1)
    assert watched == [0.005]


def test_server_keys_reach_the_http_engine(http: list[dict[str, Any]]) -> None:
    keys = {
        "mode": "api",
        "base_url": "https://example.org/v1",
        "api_key": "sk-secret",
        "model": "m",
        "timeout": {"connect": 1, "total": 2},
        "retry": {"max_retries": 9, "jitter": False},
    }
    with BitNet.from_config(keys) as model:
        assert "sk-secret" not in repr(model)
    (made,) = http
    assert (made["base_url"], made["model"]) == ("https://example.org/v1", "m")
    assert made["api_key"].reveal() == "sk-secret"
    assert made["timeout"] == http_engine.Timeout(connect=1, total=2)
    assert made["retry"] == http_engine.Retry(max_retries=9, jitter=False)


def test_generation_defaults_reach_the_http_engine(http: list[dict[str, Any]]) -> None:
    with BitNet.from_config({"mode": "api", "temperature": 0.25, "max_tokens": 3, "stop": ["x"]}) as model:
        model.generate("Hello", max_tokens=4)
        engine = model._engine
        assert isinstance(engine, FakeEngine)
        (request,) = engine.requests
    assert (request.sampling.temperature, request.max_tokens, request.stop) == (0.25, 4, ("x",))


def test_a_model_of_mode_api_is_pickled_by_its_configuration(http: list[dict[str, Any]]) -> None:
    model = BitNet.from_config({"mode": "api", "api_key": "sk"}, model="m")
    with pickle.loads(pickle.dumps(model)) as copy:
        assert copy.generate("x").text == "from the server"
        assert copy._arguments == model._arguments
    model.close()


def test_verbose(make: Callable[..., BitNet], monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("bitnet")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    make(verbose=False)
    assert logger.level == logging.NOTSET
    make(verbose=True)
    assert logger.level == logging.DEBUG


@pytest.mark.parametrize(
    ("value", "verbose"), [("1", True), ("true", True), ("0", False), ("", False), ("off", False)]
)
def test_bitnet_verbose(value: str, verbose: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_VERBOSE", value)
    assert logs.verbose_wanted() == verbose


def test_defaults_are_below_what_a_call_says(make: Callable[..., BitNet]) -> None:
    from bitnet import Sampling

    model = make(temperature=0, max_tokens=4)
    greedy = model.generate("Hello", ignore_eos=True).token_ids
    assert len(greedy) == 4
    sampling = Sampling(**WILD, seed=1)  # type: ignore[arg-type]
    other = model.generate("Hello", ignore_eos=True, sampling=sampling).token_ids
    assert (
        other
        == make().generate("Hello", ignore_eos=True, sampling=sampling, max_tokens=4).token_ids
        != greedy
    )
    assert model.generate("Hello", ignore_eos=True, sampling=sampling, temperature=0).token_ids == greedy


def test_a_model_of_mode_direct_is_pickled_with_everything(make: Callable[..., BitNet]) -> None:
    model = make(embd_type="q8_0", kernel_params={"enable_custom": True, "row_block": 64}, max_tokens=3)
    with pickle.loads(pickle.dumps(model)) as copy:
        assert copy.info == model.info
        assert len(copy.generate("Hello", ignore_eos=True).token_ids) == 3
    shared = make(embd_type="q8_0", kernel_params={"enable_custom": True, "row_block": 64}, max_tokens=9)
    assert shared._engine is model._engine


def test_options_of_the_constructor_are_checked(random_path: Path) -> None:
    for options in (
        {"quant_type": "tl2"},
        {"embd_type": "q5_0"},
        {"layout": "x64"},
        {"scales": "add"},
        {"metadata_overrides": {"general.architecture": "llama"}},
        {"kernel_params": {"row_block": 31}},
        {"kernel_params": {"row_blocks": 32}},
        {"use_pretuned": 1},
        {"main_gpu": -1},
        {"low_vram": None},
        {"timeout": -1},
        {"defaults": {"temprature": 1}},
    ):
        with pytest.raises(ValidationError):
            BitNet(random_path, **options)  # type: ignore[arg-type]


def test_values_too_large_for_the_type_are_refused(models_folder: Path) -> None:
    from dataclasses import replace

    from bitnet.models.gguf_writer import TensorType
    from reference.model_factory import Dense, ModelSpec, random_model, write_gguf

    spec = ModelSpec(embedding=TensorType.F32, seed=5)
    model = random_model(spec)
    values = model.embedding.values.copy()
    values[7, 7] = 1e30
    path = write_gguf(replace(model, embedding=Dense(values, values.tobytes())), models_folder / "large.gguf")
    BitNet(path).close()
    with pytest.raises(ModelFileError, match=r"too large for F16; keep it in another type"):
        BitNet(path, embd_type="f16")
