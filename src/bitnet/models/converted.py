"""Hugging Face folders as GGUF files in the cache: converted once, and again when they change."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
from pathlib import Path
from typing import Final

from bitnet.errors import ConversionError
from bitnet.models import weight_cache
from bitnet.models.progress import bar

logger = logging.getLogger("bitnet.convert")

# Changes when the same folder would be converted to something else.
_VERSION: Final = 1


def is_folder(path: Path) -> bool:
    """Whether this is a folder that can be converted."""
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))


def converted(folder: Path, *, name: str | None = None) -> Path:
    """The GGUF file of a folder, made now if it is not in the cache, which is logged.

    name: of the model; None = the folder's. Raises ConversionError.
    """
    from filelock import FileLock

    try:
        cache = weight_cache.own_folder()
        path = cache / f"{_stem(folder, name)}-{_digest(folder)}.gguf"
        if _use(path):
            return path
        with FileLock(f"{path}.lock"):
            if not _use(path):  # else another process was faster
                _convert(folder, path, name)
                _remove_unused(cache)
    except (OSError, RuntimeError) as error:
        raise ConversionError(
            f"{folder} has to be converted, and the cache cannot be used ({error}); set BITNET_CACHE_DIR, or "
            "write a file with bitnet convert"
        ) from None
    return path


def remove(folder: Path) -> int:
    """Remove what was made of a folder or of a file from the cache. Returns the bytes that are free now."""
    freed = 0
    with contextlib.suppress(OSError, RuntimeError):
        cache = weight_cache.own_folder()
        for path in cache.glob(f"*-{_place(folder)}-*.gguf*"):
            freed += weight_cache.remove(path) + path.stat().st_size
            path.unlink()
    return freed + weight_cache.remove(folder)


def _convert(folder: Path, path: Path, name: str | None) -> None:
    from bitnet.models.conversion import write_model
    from bitnet.models.hf_folder import read_folder

    logger.warning("converting %s to %s, which is done once", folder, path)
    started_at = time.monotonic()
    source = read_folder(folder, name=name)
    with bar("converting") as progress:
        notes = write_model(source, path, progress=progress)
    for note in notes:
        logger.warning("%s: %s", folder.name, note)
    logger.info("converted in %.1f s", time.monotonic() - started_at)


def _use(path: Path) -> bool:
    """Whether there is a file; that it was used is noted, without a change to its time of change."""
    try:
        status = path.stat()
        with contextlib.suppress(OSError):
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
        return True
    except FileNotFoundError:
        return False


def _stem(folder: Path, name: str | None) -> str:
    readable = (name or folder.resolve().name).rsplit("/", 1)[-1]
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', readable)[:60] or 'model'}-{_place(folder)}"


def _place(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]


def _digest(folder: Path) -> str:
    """Of the version of all files that a conversion reads."""
    known = hashlib.sha256(f"{_VERSION}".encode())
    names = {*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("tokenizer.model")}
    names |= {*folder.glob("*.jinja"), *folder.glob("1_Pooling/config.json")}
    for path in sorted(names):
        status = path.stat()
        known.update(f"\0{path.name}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return known.hexdigest()[:16]


def _remove_unused(cache: Path) -> None:
    oldest = time.time() - weight_cache.UNUSED_SECONDS
    for path in cache.glob("*.gguf*"):
        status = path.stat()
        if max(status.st_atime, status.st_mtime) < oldest:
            logger.debug("removing %s, unused since long", path)
            path.unlink(missing_ok=True)
