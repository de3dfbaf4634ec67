"""Weights in floating point as ternary codes: taken exactly if ternary, else rounded as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import ConversionError


def to_ternary(
    name: str,
    shape: tuple[int, int],
    pieces: Callable[[], Iterator[NDArray[np.float32]]],
    *,
    latent: bool,
) -> tuple[NDArray[np.int8], float]:
    """Codes [rows, columns] and scale of weights that come some rows at a time, twice.

    Weights of the form -s, 0, s are taken as they are: to round them again would shrink s. Others are
    rounded by absmean (bitnet.models.ternary.absmean) if they are `latent`, which is to say that the model
    itself rounds them whenever it computes. Raises ConversionError if they are not, or not finite.
    """
    magnitude, total, is_ternary = np.float32(0), 0.0, True
    for piece in pieces():
        sizes = np.abs(piece)
        largest = sizes.max(initial=0)
        if not np.isfinite(largest):  # max hands NaN on
            raise ConversionError(f"{name} holds numbers that are not finite")
        total += float(sizes.sum(dtype=np.float64))
        if is_ternary and largest > 0:
            magnitude = magnitude or largest
            is_ternary = bool(np.all((sizes == 0) | (sizes == magnitude)))
    if not is_ternary and not latent:
        raise ConversionError(
            f"{name} is not ternary, and nothing declares it to be latent (rounded whenever the model "
            "computes). If it is, say --latent; a model not trained for ternary weights would be ruined"
        )
    scale = (
        magnitude if is_ternary else np.maximum(np.float32(total / (shape[0] * shape[1])), np.float32(1e-5))
    )
    codes = np.empty(shape, dtype=np.int8)
    first = 0
    for piece in pieces():
        part = codes[first : first + len(piece)]
        if is_ternary:
            np.sign(piece, out=part, casting="unsafe")
        else:
            np.clip(np.rint(piece * (np.float32(1) / scale)), -1, 1, out=part, casting="unsafe")
        first += len(piece)
    return codes, float(scale)
