"""The layouts of ternary tensors a second time, in NumPy, from their definitions: where each byte's weights
stand in the matrix. Used to write files that nothing here can write, and to check what can.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int8]
Index = NDArray[np.int64]
Tiles = tuple[int, int, int]  # row block, column block, rows of a SIMD block

TAIL = 32  # bytes that begin with the scale


def _digits(n: Index, *sizes: int) -> list[Index]:
    """n in a mixed base, fastest first; the last digit takes all that is left."""
    digits = []
    for size in sizes:
        digits.append(n % size)
        n = n // size
    return [*digits, n]


def _with_scale(body: NDArray[np.uint8], scale: float, declared: int | None = None) -> bytes:
    size = -(-(declared or body.size) // 32) * 32
    tail = np.zeros(size - body.size + TAIL, np.uint8)
    tail[size - body.size :][:4] = np.frombuffer(np.float32(scale).tobytes(), np.uint8)
    return body.tobytes() + tail.tobytes()


def _in_fields(codes: Codes, places: list[Index], shifts: tuple[int, ...]) -> NDArray[np.uint8]:
    """Bytes whose 2-bit fields at `shifts` hold the codes at flat `places`, plus one."""
    flat = codes.reshape(-1).astype(np.int64) + 1
    fields = [flat[place] << shift for place, shift in zip(places, shifts, strict=True)]
    return sum(fields).astype(np.uint8)  # type: ignore[union-attr]


def i2_s(codes: Codes, scale: float, block: int = 128) -> bytes:
    """block: 128, or 64 for the order of ARM builds."""
    quarter = block // 4
    b, number = _digits(np.arange(-(-codes.size // block) * quarter), quarter)
    padded = np.zeros(-(-codes.size // block) * block, np.int8)
    padded[: codes.size] = codes.reshape(-1)
    places = [number * block + b + part * quarter for part in range(4)]
    return _with_scale(_in_fields(padded, places, (6, 4, 2, 0)), scale)


def i2_s_row4(codes: Codes, scale: float) -> bytes:
    rows, columns = codes.shape
    k, group = _digits(np.arange(rows // 4 * columns), columns)
    return _with_scale(
        _in_fields(codes, [(4 * group + r) * columns + k for r in range(4)], (6, 4, 2, 0)), scale
    )


def _pairs(codes: Codes, row: Index, column: Index) -> NDArray[np.uint8]:
    """Bytes of the four weights from (row, column) on."""
    four = [codes[row, column + i].astype(np.int64) for i in range(4)]
    return ((3 * four[0] + four[1] + 4) << 4 | (3 * four[2] + four[3] + 4)).astype(np.uint8)


def tl1(codes: Codes, scale: float, tiles: Tiles) -> bytes:
    (_, columns), (bm, bk, bmm) = codes.shape, tiles
    by = 256 // bmm
    r, k2, i2, k1, i1, k0, i0 = _digits(
        np.arange(codes.size // 4), 16, by // 4, bmm // 16, bk // by, bm // bmm, columns // bk
    )
    row = i0 * bm + i1 * bmm + i2 * 16 + r
    return _with_scale(_pairs(codes, row, k0 * bk + k1 * by + k2 * 4), scale)


_OCTET = np.array([0, 2, 1, 3])


def _lane(c: Index) -> Index:
    return _OCTET[c // 8] * 8 + c % 8


def tl2(codes: Codes, scale: float, tiles: Tiles) -> bytes:
    (rows, columns), (bm, bk, _) = codes.shape, tiles
    three = columns // bk * bk
    two = columns - three
    wide = codes.astype(np.int64)

    def triple(row: Index, column: Index) -> Index:
        return 9 * wide[row, column] + 3 * wide[row, column + 1] + wide[row, column + 2]

    c, k1, i1, k0, i0 = _digits(np.arange(rows * three // 6), 32, bk // 6, bm // 32, three // bk)
    row, column = i0 * bm + i1 * 32 + _lane(c), k0 * bk + 6 * k1
    magnitudes = np.abs(triple(row, column)) << 4 | np.abs(triple(row, column + 3))

    c, g24, i1, k0, i0 = _digits(np.arange(rows * three // 48), 16, bk // 24, bm // 32, three // bk)
    words = np.zeros(len(c), np.int64)
    for s in range(16):
        row = i0 * bm + i1 * 32 + s % 2 * 16 + c
        words |= (triple(row, k0 * bk + 24 * g24 + 3 * (s // 2)) < 0).astype(np.int64) << (15 - s)

    pairs = np.zeros(0, np.uint8)
    if two:
        c, k1, i1, k0, i0 = _digits(np.arange(rows * two // 4), 32, 8, bm // 32, two // 32)
        pairs = _pairs(codes, i0 * bm + i1 * 32 + _lane(c), three + 32 * k0 + 4 * k1)
    body = np.concatenate([magnitudes.astype(np.uint8), words.astype("<u2").view(np.uint8), pairs])
    declared = (columns - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8
    return _with_scale(body, scale, declared)


def _blocks(codes: Codes, elements: int) -> tuple[Index, NDArray[np.bool_]]:
    blocks = codes.reshape(-1, elements).astype(np.int64)
    return blocks + 1, blocks.any(axis=1)


def _f16(scale: float, nonzero: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(nonzero, scale, 0).astype("<f2").reshape(-1, 1).view(np.uint8)


def tq1_0(codes: Codes, scale: float) -> bytes:
    digits, nonzero = _blocks(codes, 256)
    powers = np.array([81, 27, 9, 3, 1])
    parts = []
    for first, width, count in ((0, 32, 5), (160, 16, 5), (240, 4, 4)):
        part = digits[:, first : first + width * count].reshape(-1, count, width)
        parts.append(((powers[:count, None] * part).sum(axis=1) * 256 + 242) // 243)
    return np.concatenate([*(p.astype(np.uint8) for p in parts), _f16(scale, nonzero)], axis=1).tobytes()


def tq2_0(codes: Codes, scale: float) -> bytes:
    digits, nonzero = _blocks(codes, 256)
    fields = digits.reshape(-1, 2, 4, 32) << np.array([0, 2, 4, 6])[:, None]
    body = fields.sum(axis=2).reshape(-1, 64).astype(np.uint8)
    return np.concatenate([body, _f16(scale, nonzero)], axis=1).tobytes()


def q2_0(codes: Codes, scale: float) -> bytes:
    digits, nonzero = _blocks(codes, 64)
    body = (digits.reshape(-1, 16, 4) << np.array([0, 2, 4, 6])).sum(axis=2).astype(np.uint8)
    return np.concatenate([_f16(scale, nonzero), body], axis=1).tobytes()


# name -> (tensor type id, layout option, encoder). TL1 and TL2 need tiles besides.
LAYOUTS: dict[str, tuple[int, str, Callable[..., bytes]]] = {
    "i2_s": (36, "x128", i2_s),
    "i2_s-arm64": (36, "arm64", lambda codes, scale: i2_s(codes, scale, 64)),
    "i2_s-row4": (36, "row4", i2_s_row4),
    "tl1": (38, "x128", tl1),
    "tl2": (39, "x128", tl2),
    "tq1_0": (34, "x128", tq1_0),
    "tq2_0": (35, "x128", tq2_0),
    "q2_0": (42, "x128", q2_0),
}
