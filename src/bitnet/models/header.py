"""What a model file says of itself in its header, for those who must know it before the model is loaded."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet import _native
from bitnet.errors import ModelFileError
from bitnet.models import overrides
from bitnet.models.overrides import Overrides
from bitnet.text.builtin_templates import choose_template
from bitnet.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """context_length: tokens the model was made for. has_chat_template: there is one; whether it can be used
    is found out when the model is loaded."""

    context_length: int
    has_chat_template: bool


def read_header(path: Path, user: Overrides = ()) -> ModelHeader:
    """Read once for each version of a file. user: what the user says against it.

    Raises ModelFileError, and OSError if there is no file."""
    status = os.stat(path)
    return _read(str(path), status.st_size, status.st_mtime_ns, user)


@functools.lru_cache(maxsize=64)
def _read(path: str, n_bytes: int, changed: int, user: Overrides) -> ModelHeader:
    metadata = overrides.apply(_native.ModelFile(path).metadata, user)
    key = f"{metadata.get('general.architecture')}.context_length"
    context_length = metadata.get(key)
    if not isinstance(context_length, int) or context_length < 1:
        raise ModelFileError(f"{path}: {key} is {context_length!r}; it must be a positive whole number")
    return ModelHeader(context_length, _has_chat_template(metadata))


def _has_chat_template(metadata: dict[str, Any]) -> bool:
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template.strip():
        return True
    # Known models have one all the same, which only their vocabulary may tell.
    return choose_template(metadata, Tokenizer.from_metadata(metadata)).source is not None
