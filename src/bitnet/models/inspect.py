"""What a model file says about itself: metadata and tensors, read without loading the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitnet import _native


@dataclass(frozen=True)
class TensorReport:
    """shape: GGUF order, the fastest dimension (in features) first. offset: from the start of the tensor
    data."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class FileReport:
    """version: of the GGUF format. n_bytes: size of the file."""

    path: str
    version: int
    n_bytes: int
    metadata: dict[str, Any]
    tensors: tuple[TensorReport, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(path: Path) -> FileReport:
    """Raises ModelFileError if the file is not a sound GGUF file."""
    file = _native.ModelFile(str(path))
    tensors = tuple(
        TensorReport(tensor.name, tensor.type_name, tuple(tensor.shape), tensor.offset, tensor.n_bytes)
        for tensor in file.tensors
    )
    return FileReport(file.path, file.version, file.size, file.metadata, tensors)
