"""What no model file says of its ternary tensors, and users may: the order of I2_S, the tiles of TL1 and TL2.

The names of the layouts are explained in `tensor_codec`, which also decodes them.
"""

from __future__ import annotations

import configparser
import os
from collections import Counter
from math import prod

from bitnet import _native
from bitnet.errors import ModelNotFoundError, ValidationError
from bitnet.models.tensor_codec import TERNARY_TYPES, TlTile
from bitnet.values import TernaryLayout

_TYPES_OF: dict[TernaryLayout, tuple[str, ...]] = {
    "x128": ("I2_S", "TL1"),
    "arm64": ("I2_S",),
    "row4": ("I2_S",),
    "preset": ("TL1",),
}
TERNARY_NAMES = frozenset(kind.name for kind in TERNARY_TYPES)
_TILE_KEYS = ("m", "k", "bm", "bk", "bmm")  # of a section of kernel_config.ini


def ternary_types(file: _native.ModelFile) -> tuple[str, ...]:
    """The ternary types of a file's tensors, such as ("I2_S",), most frequent first."""
    counts = Counter(tensor.type_name for tensor in file.tensors)
    return tuple(name for name, _ in counts.most_common() if name in TERNARY_NAMES)


def candidates(file: _native.ModelFile) -> tuple[TernaryLayout, ...]:
    """The layouts that the tensors of a file may have, the default first; empty = the file leaves no choice.

    Each can be given to BitNet(layout=...). Only what a model makes of a text tells which is right.
    """
    types = ternary_types(file)
    if "I2_S" in types:
        shapes = [tensor.shape for tensor in file.tensors if tensor.type_name == "I2_S"]
        if any(prod(shape) % 128 for shape in shapes):
            return ("x128",)
        return (
            ("x128", "arm64", "row4")
            if all(prod(shape[1:]) % 4 == 0 for shape in shapes)
            else ("x128", "arm64")
        )
    return ("x128", "preset") if "TL1" in types else ()


def check(file: _native.ModelFile, layout: TernaryLayout | None, tl_tiles: tuple[TlTile, ...]) -> None:
    """Raises ValidationError for choices that nothing in the file depends on: they would be ignored.

    A file without ternary tensors is the model's to refuse.
    """
    types = ternary_types(file)
    if not types:
        return
    found = f"{file.path} has {' and '.join(types)}; leave it out"
    if layout is not None and not set(_TYPES_OF[layout]) & set(types):
        wanted = " or ".join(_TYPES_OF[layout])
        raise ValidationError(f"layout={layout!r} is for {wanted}, and {found}", field="layout")
    if tl_tiles and not {"TL1", "TL2"} & set(types):
        raise ValidationError(f"tl_config is for TL1 and TL2, and {found}", field="tl_config")


def read_tl_config(path: str | os.PathLike[str]) -> tuple[TlTile, ...]:
    """The tiles of a kernel_config.ini, as bitnet.cpp's setup_env.py writes it: one section for each shape.

    Raises ModelNotFoundError, and ValidationError naming the section.
    """
    name = os.fspath(path)
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as error:
        raise ModelNotFoundError(f"cannot read tl_config {name!r}: {error.strerror}") from None
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ValidationError(f"tl_config {name!r} is no ini file: {error}", field="tl_config") from None
    tiles = [_tile(name, section, parser[section]) for section in parser.sections()]
    if not tiles:
        raise ValidationError(
            f"tl_config {name!r} has no sections; it must be the kernel_config.ini that the model "
            f"was made with, with {', '.join(_TILE_KEYS)} for each shape",
            field="tl_config",
        )
    return tuple(tiles)


def _tile(path: str, name: str, section: configparser.SectionProxy) -> TlTile:
    values = []
    for key in _TILE_KEYS:
        text = section.get(key, "").strip()
        if not text.isascii() or not text.isdigit() or not 0 < int(text[:11]) < 2**31:
            raise ValidationError(
                f"tl_config {path!r}: {key} of [{name}] must be a positive whole number, not {text!r}",
                field="tl_config",
            )
        values.append(int(text))
    m, k, bm, bk, bmm = values
    return m, k, bm, bk, bmm
