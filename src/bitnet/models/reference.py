"""What a user may mean by the name of a model: a path, a short name of the catalog, or org/name[:file].

Parsing only: nothing here looks at the disk or at a network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from bitnet.errors import ModelNotFoundError
from bitnet.models import bundled, catalog

_HUB: Final = re.compile(
    rf"(?P<repository>{catalog.REPOSITORY})"
    r"(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._-]{0,99}))?"
    r"(?::(?P<file>[^:]+))?"
)
_SHORT: Final = re.compile(catalog.NAME, re.IGNORECASE)
_FILE_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._+=@()\[\]-]*")
_MAX_FILE_NAME: Final = 300


@dataclass(frozen=True, slots=True)
class HubReference:
    """A model on the Hugging Face Hub. file: None = whichever the repository has. revision: a branch, tag or
    commit; None = main."""

    repository: str
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        file = "" if self.file is None else f":{self.file}"
        return f"{self.repository}{revision}{file}"


def parse(name: str) -> HubReference | None:
    """The reference that `name` stands for; None = it can only be a path.

    Raises ModelNotFoundError for the name of a file that no repository should have, such as ../x.
    """
    entry = catalog.named(name)
    if entry is not None:
        return HubReference(entry.repository, entry.file)
    match = _HUB.fullmatch(name)
    # models/my-model.gguf is a path that does not exist, not a repository.
    if match is None or (match["file"] is None and match["repository"].lower().endswith(".gguf")):
        return None
    file = match["file"]
    if file is not None and not is_safe_file_name(file):
        raise ModelNotFoundError(f"{file!r} is no name of a file in a repository")
    if file is not None and not file.endswith(".gguf"):
        raise ModelNotFoundError(
            f"{name}: {file!r} is no .gguf file; leave it out for a folder of safetensors"
        )
    entry = catalog.published_at(match["repository"])
    if entry is not None and file is None and match["revision"] is None:
        file = entry.file
    return HubReference(match["repository"], file, match["revision"])


def is_safe_file_name(name: str) -> bool:
    """Whether a file of a repository may be stored under its name: relative, going nowhere but down, and
    without characters that a file system or a terminal takes for something else."""
    parts = name.split("/")
    return len(name) <= _MAX_FILE_NAME and all(_FILE_PART.fullmatch(part) for part in parts)


def is_short_name(name: str) -> bool:
    """Whether `name` looks like a short name, and so may be a misspelt one."""
    return _SHORT.fullmatch(name) is not None


def hint(name: str) -> str:
    """How to go on where there is no model called `name`."""
    from bitnet.values import nearest

    known = [model.name for model in catalog.known_models()]
    if is_short_name(name):
        return f"{nearest(name.lower(), known)} (bitnet list --remote shows them)"
    return (
        "give the path of a .gguf file or of a Hugging Face folder, a name that bitnet list --remote shows, "
        "or org/name; or none for the bundled model"
    )


def is_known(name: str) -> bool:
    """Whether `name` need not be a path."""
    return name == bundled.NAME or parse(name) is not None
