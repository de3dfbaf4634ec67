"""How the options of BitNet() are checked: what comes out can be hashed, shared and given again."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from bitnet import BitNet, ValidationError, _native, load_options

# Of all models, wherever they are, and of those on a server.
COMMON = {"self", "model", "keep_alive", "timeout", "defaults", "lazy", "base_url"}
REMOTE = {"api_key", "retry", "verify", "proxy"}
PARAMETERS = inspect.signature(BitNet.__init__).parameters
TL_CONFIG = "[Kernels_0]\nm = 64\nk = 128\nbm = 32\nbk = 64\nbmm = 32\n"


def given(**options: Any) -> dict[str, Any]:
    return {name: PARAMETERS[name].default for name in load_options.NAMES} | options


def test_every_option_is_known_here() -> None:
    assert len(set(load_options.NAMES)) == len(load_options.NAMES)
    assert set(load_options.NAMES) == PARAMETERS.keys() - COMMON - REMOTE
    checked = load_options.check(given())
    assert checked.arguments.keys() == set(load_options.NAMES)
    assert checked.arguments == given(n_threads=0, kernel_params={}, metadata_overrides={})
    assert checked.engine == "auto"
    assert checked.gpu == {"n_gpu_layers": 0, "main_gpu": 0, "low_vram": False}
    # Of tl_config only the tiles matter, not which file has them.
    assert checked.model.keys() == set(load_options.NAMES) - {"engine", "tl_config", *checked.gpu} | {
        "tl_tiles"
    }


def test_what_means_the_same_is_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernel_config.ini").write_text(TL_CONFIG)
    monkeypatch.chdir(tmp_path)
    one = load_options.check(
        given(
            n_threads=1000,  # more than there are
            kernel_params={"row_block": 64, "pieces_per_thread": 2},
            metadata_overrides={"pooling_type": "last", "tokenizer.ggml.add_bos_token": True},
            tl_config="kernel_config.ini",
        )
    )
    other = load_options.check(
        given(
            n_threads=_native.physical_cores(),
            kernel_params={"pieces_per_thread": 2, "row_block": 64},
            metadata_overrides={"tokenizer.ggml.add_bos_token": True, "pooling_type": "last"},
            tl_config=tmp_path / "kernel_config.ini",
        )
    )
    assert one == other
    assert hash(tuple(one.model.items())) == hash(tuple(other.model.items()))
    assert one.model["tl_tiles"] == ((64, 128, 32, 64, 32),)
    assert one.arguments["tl_config"] == str(tmp_path / "kernel_config.ini")
    monkeypatch.chdir("/")
    assert load_options.check(one.arguments) == one  # what a pickled object does


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("n_ctx", -1, "n_ctx must be "),
        ("n_threads", True, "n_threads must be "),
        ("n_batch", 257, "n_batch must be "),
        ("kv_tokens", 0, "kv_tokens must be "),
        ("max_waiting", 1.5, "max_waiting must be "),
        ("n_gpu_layers", -2, "n_gpu_layers must be "),
        ("kv_type", "f32", "kv_type must be one of f16, q8_0, not 'f32'"),
        ("layout", "x64", "layout must be one of x128, arm64, row4, preset, auto, not 'x64'"),
        ("scales", "mul", "scales must be one of multiply, divide, auto, not 'mul'"),
        ("use_mmap", 1, "use_mmap must be "),
        ("low_vram", "no", "low_vram must be "),
    ],
)
def test_what_is_wrong_is_named(option: str, value: object, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        load_options.check(given(**{option: value}))
    assert str(caught.value).startswith(message)
    assert caught.value.field == option


def test_options_that_were_given() -> None:
    def function(a: int = 1, b: object = None) -> None: ...

    load_options.refuse_given(function, {"a": 1, "b": None}, "does not matter")
    with pytest.raises(ValidationError, match="b is of no use") as caught:
        load_options.refuse_given(function, {"a": 1, "b": 0}, "is of no use")
    assert caught.value.field == "b"
