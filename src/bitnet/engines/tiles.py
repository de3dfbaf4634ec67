"""How the ternary products of a loaded model are cut into pieces: sizes shipped for this processor, measured
here, or given by the user. Results are the same bits whatever they are; only the speed differs.

    table_min_tokens   tokens computed together from which on products look up tables instead of multiplying;
                       1 = always, 0 = never
    row_block          rows whose sums one table lookup keeps at hand; a multiple of 32, up to 2560
    pieces_per_thread  pieces a multiply-add product is cut into for each compute thread
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from bitnet import _native
from bitnet.errors import ValidationError
from bitnet.models import weight_cache
from bitnet.values import QuantType, as_integer, nearest

logger = logging.getLogger("bitnet.tiles")

ROW_STEP, MOST_ROWS = 32, 2560
MOST_PIECES = 64
_NEVER = 2**31 - 1


class Tiles(TypedDict, total=False):
    """Options of _native.Runner."""

    table_min_tokens: int
    row_block: int
    pieces_per_thread: int


# What a measurement chooses from.
_ROW_BLOCKS = (640, 1280, 2560)
_PIECES = (4, 8, 16)
_TOKENS = (8, 10, 12, 14, 16, 24, 32)
_ROUNDS = 3
# A measured size replaces the default only if it is faster by more than what machines differ from run to run.
_WORTH = 0.97


def check_sizes(sizes: Mapping[str, Any]) -> Tiles:
    """Tile sizes given by a user. Raises ValidationError naming the field."""
    limits = {
        "table_min_tokens": (0, 2**20),
        "row_block": (ROW_STEP, MOST_ROWS),
        "pieces_per_thread": (1, MOST_PIECES),
    }
    checked: dict[str, int] = {}
    for name, value in sizes.items():
        if name not in limits:
            raise ValidationError(
                f"unknown kernel parameter {name!r}; {nearest(str(name), limits)}", field="kernel_params"
            )
        checked[name] = as_integer(f"kernel_params.{name}", value, *limits[name])
    if checked.get("row_block", ROW_STEP) % ROW_STEP:
        raise ValidationError(
            f"kernel_params.row_block must be a multiple of {ROW_STEP}, not {checked['row_block']}",
            field="kernel_params.row_block",
        )
    return cast(Tiles, checked)


def choose(
    model: _native.Model,
    *,
    quant_type: QuantType,
    use_pretuned: bool,
    custom: Tiles,
    n_threads: int,
) -> Tiles:
    """The sizes for a model.

    quant_type: "i2_s" multiplies and adds, except that many tokens together look up tables where that is
    faster; "tl1" always looks up. custom: sizes that are used as they are.
    """
    sizes = shipped() if use_pretuned else measured(model, n_threads)
    if quant_type == "tl1":
        sizes["table_min_tokens"] = 1
    sizes = {**sizes, **custom}
    if sizes.get("table_min_tokens") == 0:
        sizes["table_min_tokens"] = _NEVER
    return sizes


def shipped() -> Tiles:
    """What comes with the package for this processor; empty = the safe sizes built into the kernels."""
    text = (resources.files("bitnet.engines") / "tuned_tiles.json").read_text("utf-8")
    return check_sizes(json.loads(text).get(_kernels(), {}).get(processor(), {}))


def measured(model: _native.Model, n_threads: int) -> Tiles:
    """What is fastest here: measured once for each processor, thread count and shape of model, and kept in
    the cache folder."""
    n_threads = n_threads or _native.physical_cores()
    shape = f"{model.n_layers}x{model.hidden_size}x{model.ffn_size}"
    file = _cache_file(f"tiles-{processor()}-{_kernels()}-{shape}-{n_threads}.json")
    if file is not None and (kept := _read(file)) is not None:
        logger.debug("tile sizes from %s: %s", file, kept)
        return kept
    start = time.perf_counter()
    sizes = measure(model, n_threads)
    logger.info("measured tile sizes in %.1f s: %s", time.perf_counter() - start, sizes)
    if file is not None:
        _write(file, sizes)
    return sizes


def measure(model: _native.Model, n_threads: int) -> Tiles:
    """Time what there is to choose from, on whole forward passes of the model."""

    def seconds(n_tokens: int, name: str, values: tuple[int, ...], fixed: Tiles) -> dict[int, float]:
        token_ids = np.arange(n_tokens, dtype=np.int32) % model.vocab_size
        n_blocks = -(-n_tokens // ROW_STEP)
        runners = {
            value: _native.Runner(
                model,
                n_blocks=n_blocks,
                max_batch_tokens=n_tokens,
                n_threads=n_threads,
                **cast(Tiles, {**fixed, name: value}),
            )
            for value in values
        }
        best = dict.fromkeys(values, float("inf"))
        for _ in range(1 + _ROUNDS):  # the first one warms up; in turn, so that disturbances hit all of them
            for value, runner in runners.items():
                start = time.perf_counter()
                runner.forward(token_ids, [range(n_blocks)], [0], [n_tokens], [n_tokens - 1])
                best[value] = min(best[value], time.perf_counter() - start)
        return best

    sizes: Tiles = {}
    times = seconds(1, "pieces_per_thread", _PIECES, {"table_min_tokens": _NEVER})
    sizes["pieces_per_thread"] = _fastest(times, default=8)
    times = seconds(2 * ROW_STEP, "row_block", _ROW_BLOCKS, {"table_min_tokens": 1})
    sizes["row_block"] = _fastest(times, default=MOST_ROWS)
    sizes["table_min_tokens"] = 0
    for n_tokens in _TOKENS:
        times = seconds(n_tokens, "table_min_tokens", (1, _NEVER), {"row_block": sizes["row_block"]})
        if times[1] < times[_NEVER]:
            sizes["table_min_tokens"] = n_tokens
            break
    return sizes


def _fastest(times: Mapping[int, float], default: int) -> int:
    best = min(times, key=times.__getitem__)
    return best if times[best] < _WORTH * times[default] else default


@functools.cache
def processor() -> str:
    """The processor, fit for a file name: "AuthenticAMD-25-1" (vendor, family, model) where it is known."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):  # not on Linux: named below by what Python knows
        for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    parts = [found.get(name, "") for name in ("vendor_id", "cpu family", "model")]
    name = "-".join(parts) if all(parts) else platform.processor() or platform.machine() or "unknown"
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def _kernels() -> str:
    return _native.build_info()["kernels"]


def _cache_file(name: str) -> Path | None:
    try:
        return weight_cache.own_folder() / name
    except (OSError, RuntimeError) as error:
        logger.debug("no cache for tile sizes: %s", error)
        return None


def _read(file: Path) -> Tiles | None:
    """None: there is none, or it is damaged, which is no reason to fail."""
    try:
        sizes = json.loads(file.read_text("utf-8"))
        return check_sizes(sizes) if isinstance(sizes, dict) and sizes else None
    except (OSError, ValueError):
        return None


def _write(file: Path, sizes: Tiles) -> None:
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as out:
            temporary = out.name
            json.dump(sizes, out)
        os.replace(temporary, file)
    except OSError as error:
        logger.debug("the measured tile sizes are not kept: %s", error)
        with contextlib.suppress(OSError):
            os.unlink(temporary)
