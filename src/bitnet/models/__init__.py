"""Model files: where they are, and how they are written. Loading and computing them is the engines' work."""

from __future__ import annotations

import os
from pathlib import Path

from bitnet.errors import ModelNotFoundError


def find(model: str | os.PathLike[str] | None) -> Path:
    """The GGUF file a user means by `model`: a path, a short name of the catalog, org/name[:file] on the
    Hugging Face Hub, or None for the bundled model.

    Something of the hub that is not on this machine is downloaded, and a folder of safetensors is converted
    into the cache; both are logged. Raises ModelNotFoundError, DownloadError and ConversionError.
    """
    from bitnet.models import bundled, converted, reference

    if model is None:
        return bundled.path()
    path = Path(model).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return _of_folder(path)
    name = os.fspath(model)
    if name == bundled.NAME:
        return bundled.path()
    wanted = reference.parse(name)
    if wanted is not None:
        from bitnet.models import hub  # late: it needs a network client

        found = hub.fetch(wanted)
        return converted.converted(found, name=wanted.repository) if found.is_dir() else found
    what = "model" if reference.is_short_name(name) else "model file"
    raise ModelNotFoundError(f"there is no {what} {name!r}; {reference.hint(name)}")


def _of_folder(path: Path) -> Path:
    from bitnet.models import converted

    if converted.is_folder(path):
        return converted.converted(path)
    files = sorted(entry.name for entry in path.glob("*.gguf"))
    found = f"it holds {', '.join(files)}" if files else "it holds no .gguf file and no safetensors"
    raise ModelNotFoundError(f"{path} is a directory ({found}); give the path of a .gguf file")
