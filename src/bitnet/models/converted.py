"""Models in another form, in the cache: Hugging Face folders as GGUF files, and files with other types.

They are made once, and again when what they are made of changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bitnet.errors import ConversionError
from bitnet.models import weight_cache
from bitnet.models.progress import bar

if TYPE_CHECKING:
    from bitnet.models.conversion import FileType
    from bitnet.models.gguf_source import ScaleUse
    from bitnet.models.gguf_writer import Kind
    from bitnet.models.tensor_codec import TlTile
    from bitnet.values import EmbdType, TernaryLayout

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
    return _made_once(
        folder, f"{_stem(folder, name)}-{_digest(folder)}", lambda path: _convert(folder, path, name)
    )


def exported(
    file: Path,
    file_type: FileType,
    *,
    architecture: str | None,
    embd_type: EmbdType | None,
    layout: TernaryLayout | None,
    tiles: tuple[TlTile, ...],
    scales: ScaleUse,
) -> Path:
    """A GGUF file with its ternary tensors as another type, made now if it is not in the cache.

    architecture: what it is called there; None = as it is. The other options are those of read_gguf and
    write_model. Raises ModelFileError and ConversionError.
    """
    status = file.stat()
    choices = (_VERSION, file_type, architecture, embd_type, layout, tiles, scales)
    digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns} {choices!r}".encode()).hexdigest()[:16]

    def make(path: Path) -> None:
        from bitnet.models.conversion import write_model
        from bitnet.models.gguf_source import read_gguf

        logger.warning("writing %s as %s to %s, which is done once", file, file_type, path)
        source = read_gguf(file, layout=layout or "x128", tiles=tiles, scales=scales)
        if architecture is not None:
            source = replace(source, metadata=_renamed(source.metadata, architecture))
        with bar("writing") as progress:
            write_model(
                source, path, file_type=file_type, embd_type=embd_type, progress=progress, repair=False
            )

    return _made_once(file, f"{_stem(file, None)}-{digest}", make)


def _renamed(metadata: dict[str, tuple[Any, Kind]], architecture: str) -> dict[str, tuple[Any, Kind]]:
    before = f"{metadata['general.architecture'][0]}."
    renamed = {
        f"{architecture}.{key.removeprefix(before)}" if key.startswith(before) else key: value
        for key, value in metadata.items()
    }
    return {**renamed, "general.architecture": (architecture, "string")}


def _made_once(source: Path, stem: str, make: Callable[[Path], None]) -> Path:
    """A file in the cache. Raises ConversionError if there can be none."""
    from filelock import FileLock

    try:
        cache = weight_cache.own_folder()
        path = cache / f"{stem}.gguf"
        if _use(path):
            return path
        with FileLock(f"{path}.lock"):
            if not _use(path):  # else another process was faster
                make(path)
                _remove_unused(cache)
    except (OSError, RuntimeError) as error:
        raise ConversionError(
            f"{source} has to be converted, and the cache cannot be used ({error}); set BITNET_CACHE_DIR, or "
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
