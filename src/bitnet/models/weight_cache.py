"""Where packed weights are kept between loads: which directory, which file name, for how long.

The native engine writes the files, atomically, and checks that one belongs to its source (size, time of
change) and to the present layout. A cache only saves time: whatever is wrong with it, the answer is to do
without.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import sys
import time
from pathlib import Path

logger = logging.getLogger("bitnet.weight_cache")

# Smaller files are packed anew at each load: that takes less than a tenth of a second, and private memory
# is cheap.
MIN_BYTES = 64 * 2**20
# Nobody tells when a model file was deleted; its packed weights go once nothing has loaded them for this
# long.
UNUSED_SECONDS = 90 * 24 * 3600
_SUFFIX = ".packed"


def directory() -> Path:
    """$BITNET_CACHE_DIR, or bitnet-cpp in the user's cache directory. RuntimeError if there is no home."""
    if own := os.environ.get("BITNET_CACHE_DIR"):
        return Path(own)
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # the specification says to ignore relative ones
        return Path(xdg) / "bitnet-cpp"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "bitnet-cpp"
    return Path.home() / ".cache" / "bitnet-cpp"


def own_folder() -> Path:
    """The directory, made if it is not there. Raises OSError, also if anybody may write to it."""
    folder = directory()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.name == "posix" and folder.stat().st_mode & stat.S_IWOTH:
        logger.warning("no cache: anybody may write to %s", folder)
        raise PermissionError(f"anybody may write to {folder}")
    return folder


def path_for(model: Path, variant: str = "", *, min_bytes: int = MIN_BYTES) -> str:
    """The cache file for a model file, in a directory that exists; "" = do without a cache.

    variant: what distinguishes several ways to pack the same file.
    """
    try:
        if model.stat().st_size < min_bytes:
            return ""
        folder = own_folder()
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", model.stem)[:60] + (variant and f"-{variant}")
        file = folder / f"{stem}-{_digest(model)}{_SUFFIX}"
        if not os.access(folder, os.W_OK):
            return str(file) if os.access(file, os.R_OK) else ""
        if file.exists():
            os.utime(file)
        _remove_unused(folder)
        return str(file)
    except (OSError, RuntimeError) as error:
        logger.debug("no cache for packed weights: %s", error)
        return ""


def note_path(model: Path, ending: str) -> Path:
    """Where something found out of a model file is remembered. Raises RuntimeError if there is no home."""
    return directory() / f"{_digest(model)}.{ending}"


def remove(model: Path) -> int:
    """Remove the packed weights of a model file, which may be gone, and what was found out of it.

    Returns the bytes that are free now."""
    freed = 0
    with contextlib.suppress(OSError, RuntimeError):
        digest = _digest(model)
        folder = directory()
        for file in (*folder.glob(f"*-{digest}{_SUFFIX}*"), *folder.glob(f"{digest}.*")):
            freed += file.stat().st_size
            file.unlink()
    return freed


def _digest(model: Path) -> str:
    return hashlib.sha256(os.fsencode(os.path.realpath(model))).hexdigest()[:24]


def _remove_unused(folder: Path) -> None:
    """Also what an interrupted writer left behind, under a name that begins with the final one."""
    oldest = time.time() - UNUSED_SECONDS
    for file in folder.glob(f"*{_SUFFIX}*"):
        if file.stat().st_mtime < oldest:
            logger.debug("removing %s, unused since long", file)
            file.unlink(missing_ok=True)
