"""Tile sizes: checked, chosen, measured and kept; and no size changes a bit."""

from __future__ import annotations

import itertools
import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from bitnet import ValidationError, _native
from bitnet.engines import tiles

IDS = (np.arange(100, dtype=np.int32) * 7) % 288


@pytest.fixture(scope="module")
def native(random_path: Path) -> _native.Model:
    return _native.Model(_native.ModelFile(str(random_path)))


def run(native: _native.Model, n_tokens: int, **options: int | str) -> tuple[bytes, tuple[int, int]]:
    runner = _native.Runner(native, n_blocks=4, **options)  # type: ignore[arg-type]
    runner.forward(IDS[:n_tokens], [range(4)], [0], [n_tokens], range(n_tokens))
    return runner.hidden().tobytes(), runner.n_products


@pytest.mark.parametrize("kernels", _native.cpu_kernels())
@pytest.mark.parametrize("n_threads", [1, 2])
def test_no_size_changes_a_bit(native: _native.Model, kernels: str, n_threads: int) -> None:
    for n_tokens in (1, 3, 31, 32, 33, 45, 100):
        expected, _ = run(native, n_tokens, kernels="scalar", n_threads=1)
        for table_min_tokens, row_block, pieces in itertools.product(
            (1, 40, 2**31 - 1), (32, 96, 2560), (1, 64)
        ):
            found, _ = run(
                native,
                n_tokens,
                kernels=kernels,
                n_threads=n_threads,
                table_min_tokens=table_min_tokens,
                row_block=row_block,
                pieces_per_thread=pieces,
            )
            assert found == expected


def test_products_are_computed_as_asked(native: _native.Model) -> None:
    n = 7 * native.n_layers
    assert run(native, 5, table_min_tokens=2**31 - 1)[1] == (n, 0)
    assert run(native, 5, table_min_tokens=1)[1] == (0, n)
    assert run(native, 5, table_min_tokens=6)[1] == (n, 0)
    assert run(native, 5, table_min_tokens=5)[1] == (0, n)


@pytest.mark.parametrize(
    "wrong",
    [
        {"row_block": 0},
        {"row_block": 33},
        {"row_block": 2592},
        {"pieces_per_thread": 0},
        {"table_min_tokens": -1},
    ],
)
def test_the_runner_checks_its_tiles(native: _native.Model, wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="row_block a multiple of 32"):
        run(native, 1, **wrong)


def choose(native: _native.Model, **changes: object) -> tiles.Tiles:
    options = {"quant_type": "i2_s", "use_pretuned": True, "custom": {}, "n_threads": 1, **changes}
    return tiles.choose(native, **options)  # type: ignore[arg-type]


def test_what_is_chosen(native: _native.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "shipped", lambda: {"table_min_tokens": 9, "row_block": 64})
    monkeypatch.setattr(tiles, "measured", lambda model, n_threads: {"table_min_tokens": 0, "row_block": 96})
    assert choose(native) == {"table_min_tokens": 9, "row_block": 64}
    assert choose(native, quant_type="tl1") == {"table_min_tokens": 1, "row_block": 64}
    assert choose(native, use_pretuned=False) == {"table_min_tokens": 2**31 - 1, "row_block": 96}
    custom = {"row_block": 128, "table_min_tokens": 3}
    assert choose(native, quant_type="tl1", use_pretuned=False, custom=custom) == custom


def test_what_is_shipped_is_sound() -> None:
    shipped = json.loads((resources.files("bitnet.engines") / "tuned_tiles.json").read_text("utf-8"))
    assert set(shipped) <= {"avx2", "avx512vnni", "scalar"}
    for processors in shipped.values():
        for name, sizes in processors.items():
            assert re.fullmatch(r"[A-Za-z0-9_.-]+", name)
            assert sizes == tiles.check_sizes(sizes) != {}
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", tiles.processor())


def test_an_unknown_processor_gets_the_safe_sizes(
    native: _native.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "processor", lambda: "unheard-of")
    assert choose(native) == {}
    runner = _native.Runner(native, n_blocks=1)
    assert runner.tiles["row_block"] == 2560


def test_measured_sizes_are_kept_and_damage_is_measured_again(
    native: _native.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITNET_CACHE_DIR", str(tmp_path / "cache"))
    sizes = tiles.measured(native, 1)
    assert sizes == tiles.check_sizes(sizes)
    assert set(sizes) == {"table_min_tokens", "row_block", "pieces_per_thread"}
    (file,) = (tmp_path / "cache").iterdir()
    assert f"{tiles.processor()}-" in file.name
    assert json.loads(file.read_text()) == sizes
    calls: list[int] = []
    monkeypatch.setattr(
        tiles, "measure", lambda model, n_threads: calls.append(n_threads) or {"row_block": 64}
    )
    assert tiles.measured(native, 1) == sizes
    assert calls == []
    for damage in ("", "{", "[1]", '{"row_block": 31}', '{"other": 1}'):
        file.write_text(damage)
        assert tiles.measured(native, 1) == {"row_block": 64}
    assert calls == [1] * 5
    assert tiles.measured(native, 2) == {"row_block": 64}  # another thread count, another file
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_no_cache_folder_is_no_error(native: _native.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_CACHE_DIR", "/proc/nowhere")
    monkeypatch.setattr(tiles, "measure", lambda model, n_threads: {"row_block": 64})
    assert tiles.measured(native, 1) == {"row_block": 64}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"row_blok": 64}, "unknown kernel parameter 'row_blok'; did you mean 'row_block'?"),
        ({"row_block": 65}, "kernel_params.row_block must be a multiple of 32, not 65"),
        ({"row_block": 4096}, "kernel_params.row_block must be from 32 to 2560, not 4096"),
        ({"pieces_per_thread": 0}, "kernel_params.pieces_per_thread must be from 1 to 64, not 0"),
        ({"table_min_tokens": "12"}, "kernel_params.table_min_tokens must be a whole number, not '12'"),
    ],
)
def test_wrong_sizes_are_named(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        tiles.check_sizes(sizes)
