"""kernel_config.ini of bitnet.cpp: the tiles of TL1 and TL2 files, which the files themselves do not say."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Final

from bitnet.errors import ValidationError
from bitnet.models.tensor_codec import TlTile

_MAX_BYTES: Final = 1 << 20
_KEYS: Final = ("m", "k", "bm", "bk", "bmm")


def read_tl_config(path: Path) -> list[TlTile]:
    """One tile a section, with the keys m, k, bm, bk and bmm. Raises ValidationError."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValidationError(f"{path} is no kernel_config.ini: it has {path.stat().st_size} bytes")
        parser.read_string(path.read_text(encoding="utf-8"))
        tiles = [tuple(parser.getint(section, key) for key in _KEYS) for section in parser.sections()]
    except OSError as error:
        raise ValidationError(f"cannot read {path}: {error.strerror}") from None
    except (configparser.Error, ValueError) as error:
        raise ValidationError(f"{path} is no kernel_config.ini: {error}") from None
    if not tiles:
        raise ValidationError(f"{path} is no kernel_config.ini: it has no section with {', '.join(_KEYS)}")
    return tiles  # type: ignore[return-value]  # five numbers each
