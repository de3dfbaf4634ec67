"""Files that do not say how their ternary weights are to be read: found out by computing, once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitnet import BitNet, ModelFileError, ValidationError
from bitnet.engines import layout_detection as layouts
from bitnet.models import weight_cache
from bitnet.values import TernaryLayout
from rewritten_model import rewrite

I2S: tuple[TernaryLayout, ...] = ("x128", "arm64", "row4")
DIRECTIONS: dict[str, Callable[[float], float]] = {"multiply": lambda s: s, "divide": lambda s: 1 / s}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITNET_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _inverted_twice(scale: float) -> float:
    return float(1 / np.float32(1 / scale))


@pytest.mark.parametrize("scales", DIRECTIONS)
@pytest.mark.parametrize("layout", I2S)
def test_every_way_is_found_out(layout: TernaryLayout, scales: str, tmp_path: Path, model: BitNet) -> None:
    path = rewrite(tmp_path / "model.gguf", layout=layout, scale=DIRECTIONS[scales])
    ids = model.tokenize("The capital of France is")
    # Twice inverted, a scale may have another last bit, and a rounding to int8 go another way.
    as_read = _inverted_twice if scales == "divide" else DIRECTIONS["multiply"]
    with BitNet(rewrite(tmp_path / "as_read.gguf", scale=as_read)) as same:
        expected = same.logits(ids)
    with BitNet(path, layout="auto") as found:
        assert (found.info.layout, found.info.scales) == (layout, scales)
        assert len(found.info.losses) == 6
        assert min(found.info.losses, key=found.info.losses.__getitem__) == layouts._way(layout, scales)
        np.testing.assert_array_equal(found.logits(ids), expected)
    # The same as saying it.
    with BitNet(path, layout=layout, scales=scales) as said:  # type: ignore[arg-type]
        assert said.info.losses == {}
        np.testing.assert_array_equal(said.logits(ids), expected)


@pytest.mark.parametrize("written", I2S)
@pytest.mark.parametrize("read", I2S)
def test_a_wrong_layout_is_garbage(written: TernaryLayout, read: TernaryLayout, tmp_path: Path) -> None:
    path = rewrite(tmp_path / "model.gguf", layout=written)
    with BitNet(path, layout=read) as loaded:
        answer = loaded.chat(QUESTION, temperature=0, max_tokens=20).text
    assert (answer == "The capital of France is Paris.") == (written == read)


def test_only_what_is_auto_is_tried(tmp_path: Path) -> None:
    path = rewrite(tmp_path / "model.gguf", layout="arm64", scale=DIRECTIONS["divide"])
    with BitNet(path, layout="arm64", scales="auto") as found:
        assert (found.info.scales, set(found.info.losses)) == ("divide", {"arm64", "arm64 divide"})
    with BitNet(path, layout="auto", scales="divide") as found:
        assert found.info.layout == "arm64"
        assert set(found.info.losses) == {"x128 divide", "arm64 divide", "row4 divide"}


def test_the_user_is_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = rewrite(tmp_path / "model.gguf", layout="row4")
    with BitNet(path, layout="auto") as found:
        (repair,) = found.info.repairs
    losses = found.info.losses
    assert repair.startswith("The ternary weights are read as row4: ")
    for way, loss in losses.items():
        assert (f"a loss of {loss:.2f}" if way == "row4" else f"{way} {loss:.2f}") in repair
    assert caplog.messages == [f"model.gguf: {repair}"]
    assert "\n" not in repair


def test_the_usual_way_is_told_as_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = rewrite(tmp_path / "model.gguf")
    with BitNet(path, layout="auto") as found:
        assert (found.info.layout, found.info.scales, found.info.repairs) == ("x128", "multiply", ())
    (message,) = caplog.messages
    assert message.startswith("model.gguf: The ternary weights are read as x128: ")


def test_the_verdict_is_remembered(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = rewrite(tmp_path / "model.gguf", layout="arm64")
    with BitNet(path, layout="auto") as first:
        info = first.info
    (note,) = cache.glob("*.layout.json")
    caplog.clear()
    tried = []
    losses = layouts._losses
    monkeypatch.setattr(layouts, "_losses", lambda *a: (tried.append(a[2:4]), losses(*a))[1])
    with BitNet(path, layout="auto") as again:
        assert (again.info.layout, again.info.losses) == ("arm64", info.losses)
    assert tried == []
    assert caplog.messages == []  # told once in this process
    # Another question, a changed file and a damaged note are found out anew.
    BitNet(path, layout="auto", scales="divide").close()
    assert len(tried) == 3
    BitNet(path, layout="auto").close()
    assert len(tried) == 9
    rewrite(path, layout="row4")
    with BitNet(path, layout="auto") as changed:
        assert changed.info.layout == "row4"
    for damage in ("", "{", "[]", json.dumps({**json.loads(note.read_text()), "layout": "odd"})):
        note.write_text(damage)
        with BitNet(path, layout="auto") as repaired:
            assert repaired.info.layout == "row4"
    assert weight_cache.remove(path) > 0
    assert not list(cache.glob("*.layout.json"))


def test_without_a_cache_it_is_found_out_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rewrite(tmp_path / "model.gguf", layout="arm64")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BITNET_CACHE_DIR", str(tmp_path / "file"))
    for _ in range(2):
        with BitNet(path, layout="auto") as found:
            assert found.info.layout == "arm64"


def test_random_weights_keep_the_usual_way(random_path: Path) -> None:
    """No way makes sense of the text, and none is better beyond doubt."""
    with BitNet(random_path, layout="auto") as found:
        assert found.info.layout == "x128"
        assert any("better than chance" in warning for warning in found.info.warnings)


def test_a_way_that_cannot_be_read_is_left_out(tmp_path: Path, model: BitNet) -> None:
    """row4 needs rows in fours."""
    from reference.model_factory import ModelSpec, make_model

    path = make_model(ModelSpec(ffn_size=202), tmp_path)
    with BitNet(path, layout="auto") as found:
        assert {way.split()[0] for way in found.info.losses} == {"x128", "arm64"}
    with pytest.raises(ModelFileError, match="202 x 320"):
        BitNet(path, layout="row4")


@pytest.mark.parametrize("option", ["layout", "scales"])
def test_misspelt(option: str) -> None:
    with pytest.raises(ValidationError, match=f"{option} must be one of"):
        BitNet(**{option: "odd"})


def test_all_zero_tensors_are_named(tmp_path: Path) -> None:
    names = ("blk.0.ffn_gate.weight", "blk.2.attn_q.weight")
    with BitNet(rewrite(tmp_path / "model.gguf", zeros=names)) as loaded:
        (warning,) = loaded.info.warnings
    assert warning.startswith(f"2 tensors are entirely zero: {names[0]}, {names[1]}. ")
    everything = tuple(f"blk.{i}.ffn_{part}.weight" for i in range(4) for part in ("gate", "up", "down"))
    with BitNet(rewrite(tmp_path / "many.gguf", zeros=everything), scales="divide") as loaded:
        (warning,) = loaded.info.warnings
    assert "12 tensors are entirely zero" in warning
    assert " and 4 more. " in warning
