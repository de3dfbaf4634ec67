"""What a model file cannot say of its ternary weights, found out by computing: the order of their codes, and
whether their scales multiply or divide.

A wrong order leaves every number plausible and every answer garbage. So each way to read the file predicts a
small text that comes with the package, and the one that predicts it best is kept, if it is better than the
usual one beyond doubt. The verdict is remembered beside the packed weights.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from bitnet import _native
from bitnet.errors import ModelFileError, ValidationError
from bitnet.models import layouts, weight_cache
from bitnet.text.tokenizer import Tokenizer
from bitnet.values import Layout, Scales, TernaryLayout

logger = logging.getLogger("bitnet")

_USUAL_SCALES = "multiply"
# A layout, None where the file leaves no choice, and whether scales multiply or divide.
_Way: TypeAlias = tuple[TernaryLayout | None, str]
_TEXT = (
    "The capital of France is Paris. The capital of Japan is Tokyo. The sun rises in the east and sets in "
    "the west. A dog is an animal, and a rose is a flower. The opposite of hot is cold. One day a little "
    "girl went to the park with her mother. She saw a big red ball under a tree. She was very happy, and "
    "she said thank you."
)
_MOST_TOKENS = 128
# How much better, in nats a token, another way must be than the usual one; and in standard errors of that
# difference. Wrong orders cost 1 to 10 nats.
_LEAST_GAIN = 0.05
_LEAST_CERTAINTY = 3.0
# Of the loss of guessing among all tokens alike: what predicts no better makes no sense of a text.
_HOPELESS = 0.95
_VERSION = 1


@dataclass(frozen=True)
class Verdict:
    """losses: nats a token by way, such as "arm64" or "x128 divide", of those the file can be read in."""

    layout: TernaryLayout | None
    scales: str
    losses: dict[str, float]
    hopeless: bool
    is_usual: bool

    @property
    def sentence(self) -> str:
        """One line for the user."""
        kept = _way(self.layout, self.scales)
        others = ", ".join(f"{way} {loss:.2f}" for way, loss in self.losses.items() if way != kept)
        return (
            f"The ternary weights are read as {kept}: so the model predicts a test text best, with a loss of "
            f"{self.losses[kept]:.2f} nats a token ({others})."
        )

    @property
    def repair(self) -> str | None:
        """The same, if it was found out and is not the usual way."""
        return None if self.is_usual or self.hopeless else self.sentence

    @property
    def warning(self) -> str | None:
        if not self.hopeless:
            return None
        return (
            "No way to read the ternary weights predicts a test text better than chance "
            f"({min(self.losses.values()):.2f} nats a token at best): the file is damaged, was converted "
            "wrongly, or its model was never trained for English text. They are read as "
            f"{_way(self.layout, self.scales)}."
        )


def choose(
    path: Path,
    file: _native.ModelFile,
    tokenizer: Callable[[], Tokenizer],
    *,
    layout: Layout | None,
    scales: Scales | None,
    **loading: Any,
) -> Verdict:
    """How to read the ternary weights of a file.

    tokenizer: the file's, made if there is something to be found out.
    layout, scales: as the user says, "auto" = to be found out; scales None = with layout="auto" to be found
    out, else "multiply". loading: further options of _native.Model that a trial needs.
    """
    orders = (layouts.candidates(file) or (None,)) if layout == "auto" else (layout,)
    directions: tuple[str, ...]
    if scales == "auto" or (scales is None and layout == "auto"):
        directions = ("multiply", "divide")
    else:
        directions = (scales or _USUAL_SCALES,)
    if len(orders) == len(directions) == 1:
        return Verdict(orders[0], directions[0], {}, hopeless=False, is_usual=True)
    tiles = [list(tile) for tile in loading.get("tl_tiles", ())]
    key = [_VERSION, list(orders), list(directions), tiles, loading.get("activation", "")]
    kept = _kept(path, key)
    if kept is not None:
        return kept
    verdict = _tried(file, tokenizer(), orders, directions, loading)
    _keep(path, key, verdict)
    if verdict.repair is None and verdict.warning is None:  # which are told with the others
        logger.warning("%s: %s", path.name, verdict.sentence)
    return verdict


def _tried(
    file: _native.ModelFile,
    tokenizer: Tokenizer,
    orders: tuple[TernaryLayout | None, ...],
    directions: tuple[str, ...],
    loading: dict[str, Any],
) -> Verdict:
    ids = tokenizer.encode(_TEXT, add_special=False)[: _MOST_TOKENS - 1]
    bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    token_ids = np.array([*bos, *ids], np.int32)

    # All of them: with inverted scales, a model may predict less with the right order than with a wrong one.
    found: dict[_Way, NDArray[np.float64]] = {}
    problem: Exception | None = None
    for way in itertools.product(orders, directions):
        try:
            found[way] = _losses(file, token_ids, *way, loading)
        except (ModelFileError, ValidationError) as error:  # cannot be read that way
            problem = problem or error
    if not found:
        assert problem is not None
        raise problem
    usual = orders[0], directions[0]
    means = {_way(*way): float(values.mean()) for way, values in found.items()}
    hopeless = min(means.values()) > _HOPELESS * math.log(tokenizer.vocab_size)
    best = usual if hopeless else _best(found, usual)
    return Verdict(*best, means, hopeless, is_usual=best == usual)


def _losses(
    file: _native.ModelFile,
    token_ids: NDArray[np.int32],
    order: TernaryLayout | None,
    direction: str,
    loading: dict[str, Any],
) -> NDArray[np.float64]:
    """Of every token but the first, in nats."""
    model = _native.Model(file, layout=order or "", divide_by_scales=direction == "divide", **loading)
    n_blocks = -(-_MOST_TOKENS // 32)
    runner = _native.Runner(
        model, n_blocks=n_blocks, max_batch_tokens=_MOST_TOKENS, n_threads=loading.get("n_threads", 0)
    )
    n = len(token_ids)
    runner.forward(token_ids, [range(n_blocks)], [0], [n], range(n))
    return -np.array(runner.logprobs(token_ids[1:]))


def _best(found: dict[_Way, NDArray[np.float64]], usual: _Way) -> _Way:
    """The usual way, unless another is better beyond doubt."""
    best = min(found, key=lambda way: float(found[way].mean()))
    if usual not in found or best == usual:
        return best
    gains = found[usual] - found[best]
    error = float(gains.std(ddof=1)) / math.sqrt(len(gains))
    gain = float(gains.mean())
    return best if gain > _LEAST_GAIN and gain > _LEAST_CERTAINTY * error else usual


def _way(layout: str | None, scales: str) -> str:
    return " ".join(part for part in (layout, "" if layout and scales == _USUAL_SCALES else scales) if part)


# ---- what is remembered ------------------------------------------------------------------------------


def _kept(path: Path, key: list[Any]) -> Verdict | None:
    """None: there is nothing for this version of the file, or it is damaged, which is no reason to fail."""
    try:
        stored = json.loads(weight_cache.note_path(path, "layout.json").read_text("utf-8"))
        if stored["file"] != _identity(path) or stored["ways"] != key:
            return None
        if stored["layout"] not in (None, *get_args(TernaryLayout)) or stored["scales"] not in (
            "multiply",
            "divide",
        ):
            return None
        losses = {str(way): float(loss) for way, loss in stored["losses"].items()}
        flags = {"hopeless": bool(stored["hopeless"]), "is_usual": bool(stored["is_usual"])}
        verdict = Verdict(stored["layout"], stored["scales"], losses, **flags)
        return verdict if _way(verdict.layout, verdict.scales) in losses else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _keep(path: Path, key: list[Any], verdict: Verdict) -> None:
    stored = {
        "file": _identity(path),
        "ways": key,
        "layout": verdict.layout,
        "scales": verdict.scales,
        "losses": verdict.losses,
        "hopeless": verdict.hopeless,
        "is_usual": verdict.is_usual,
    }
    with contextlib.suppress(OSError, RuntimeError):
        weight_cache.own_folder()
        file = weight_cache.note_path(path, "layout.json")
        temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(stored), "utf-8")
        os.replace(temporary, file)


def _identity(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]
