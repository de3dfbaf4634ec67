"""The small model inside the package: a real BitNet b1.58, made by examples/train_tiny."""

from __future__ import annotations

from pathlib import Path

from bitnet.errors import ModelNotFoundError

NAME = "bitnet-tiny"  # what it is called where it must have a name
FILE_NAME = f"{NAME}.gguf"


def path() -> Path:
    """Raises ModelNotFoundError if the package was installed without its model."""
    file = Path(__file__).with_name(FILE_NAME)
    if not file.is_file():
        raise ModelNotFoundError(f"the bundled model {file} is missing; reinstall bitnet-cpp")
    return file
