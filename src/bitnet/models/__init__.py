"""Model files: where they are, and how they are written. Loading and computing them is the engines' work."""

from __future__ import annotations

import os
from pathlib import Path

from bitnet.errors import ModelNotFoundError


def find(model: str | os.PathLike[str] | None) -> Path:
    """The file a user means by `model`: a path, or None for the bundled model. Raises ModelNotFoundError."""
    if model is None:
        from bitnet.models import bundled

        return bundled.path()
    path = Path(model).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        files = sorted(entry.name for entry in path.glob("*.gguf"))
        found = f"it holds {', '.join(files)}" if files else "it holds no .gguf file"
        raise ModelNotFoundError(f"{path} is a directory ({found}); give the path of a .gguf file")
    raise ModelNotFoundError(
        f"there is no model file {str(path)!r}; give the path of a .gguf file, or none for the bundled model"
    )
