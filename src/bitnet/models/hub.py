"""Models of the Hugging Face Hub: finding, downloading, checking and removing their files.

Files lie in the hub's own cache (HF_HOME), as huggingface_hub puts them there, so that other programs share
them. What a server sends is not trusted: names and hashes are checked before they become paths, and a file
gets its name only when its checksum is right. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are obeyed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from urllib.parse import urlparse

from bitnet.errors import DownloadError, ModelNotFoundError
from bitnet.models.reference import HubReference, is_safe_file_name

if TYPE_CHECKING:
    from huggingface_hub.file_download import HfFileMetadata

logger = logging.getLogger("bitnet.hub")

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_ETAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PARTIAL: Final = ".bitnet-partial"
_SPARE_BYTES: Final = 64 << 20  # of the disk, left free after a download
_MAX_FILES: Final = 100_000  # listed by a repository
_MAX_SMALL_FILE: Final = 128 << 20  # of configurations and tokenizers
# What a folder of safetensors consists of; nothing else of a repository is downloaded, pickles least of all.
_SMALL_FILES: Final = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "added_tokens.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
        "modules.json",
        "1_Pooling/config.json",
        "config_sentence_transformers.json",
    }
)
_WEIGHTS: Final = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """n_bytes: None = the server does not tell."""

    name: str
    n_bytes: int | None


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model whose files are on this machine. path: the file, or the folder of safetensors."""

    reference: HubReference
    path: Path
    n_bytes: int


def local_path(reference: HubReference) -> Path | None:
    """The file or folder of a reference, if all of it is in the cache; never uses the network."""
    snapshot = _cached_snapshot(reference)
    if snapshot is None:
        return None
    if reference.file is not None:
        file = snapshot / reference.file
        return file if file.is_file() and _is_inside_cache(file) else None
    names = [file.relative_to(snapshot).as_posix() for file in _files(snapshot)]
    try:
        wanted = choose_files(str(reference), names)
    except ModelNotFoundError:
        return None
    if wanted[0].endswith(".gguf"):
        return snapshot / wanted[0] if _is_inside_cache(snapshot / wanted[0]) else None
    return snapshot if _is_complete(snapshot) else None


def fetch(reference: HubReference) -> Path:
    """The file or folder of a reference: from the cache, else downloaded, which is logged.

    Raises ModelNotFoundError if the hub has no such thing, DownloadError if it cannot be had.
    """
    return local_path(reference) or download(reference)


def download(reference: HubReference) -> Path:
    """Bring the newest version of a reference into the cache. What is there already is not downloaded again,
    but its checksum is verified.

    Raises ModelNotFoundError and DownloadError. An interrupted download goes on where it ended.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise DownloadError(f"{reference} is not on this machine, and HF_HUB_OFFLINE forbids downloading it")
    with _explained(reference):
        files = _wanted_files(reference)
        metadata = {file.name: _metadata(reference, file.name) for file in files}
        commits = {found.commit_hash for found in metadata.values()}
        if len(commits) != 1:
            raise DownloadError(f"{reference} was changed while its files were listed; try again")
        for file in files:
            size = metadata[file.name].size
            if file.name in _SMALL_FILES and size is not None and size > _MAX_SMALL_FILE:
                raise DownloadError(f"{reference}: {file.name} has {size} bytes, which no such file needs")
        missing = [file.name for file in files if not _blob(reference, metadata[file.name]).exists()]
        _check_space(reference, metadata, missing)
        paths = []
        for file in files:
            _complete_blob(reference, file.name, metadata[file.name])
            paths.append(_point_at_blob(reference, file.name, _blob(reference, metadata[file.name])))
    if reference.file is not None or files[0].name.endswith(".gguf"):
        return paths[0]
    snapshots = {path.parents[name.name.count("/")] for path, name in zip(paths, files, strict=True)}
    if len(snapshots) != 1:
        raise DownloadError(f"{reference} was changed while it was downloaded; try again")
    return snapshots.pop()


def choose_files(reference: str, names: list[str]) -> list[str]:
    """Which of a repository's files make the model: one GGUF file, or a folder of safetensors.

    Raises ModelNotFoundError if that is not clear.
    """
    for name in names:
        if not is_safe_file_name(name) and name.endswith(
            (".gguf", ".safetensors", ".json", ".model", ".jinja")
        ):
            raise ModelNotFoundError(f"{reference} lists a file with the name {name!r}, which is not safe")
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        ternary = [name for name in gguf if "i2_s" in name.lower()] if len(gguf) > 1 else gguf
        if len(ternary) == 1:
            return ternary
        raise ModelNotFoundError(
            f"{reference} has several model files; name one, as in {reference}:{sorted(gguf)[0]} "
            f"(there are {', '.join(sorted(gguf)[:20])})"
        )
    weights = sorted(name for name in names if _WEIGHTS.fullmatch(name))
    if "config.json" in names and weights:
        return sorted(_SMALL_FILES.intersection(names)) + weights
    raise ModelNotFoundError(
        f"{reference} has neither a .gguf file nor config.json and safetensors: no model"
    )


def cached_models() -> list[CachedModel]:
    """All models in the hub's cache that this package may be able to load."""
    found = []
    for folder in sorted(_cache().glob("models--*--*")):
        repository = folder.name.removeprefix("models--").replace("--", "/", 1)
        for name in _files_below(folder / "refs"):
            revision = None if name == "main" else name
            base = HubReference(repository, None, revision)
            snapshot = _cached_snapshot(base)
            if snapshot is None:
                continue
            files = [file for file in _files(snapshot) if _is_inside_cache(file)]
            for file in files:
                if file.suffix == ".gguf":
                    relative = file.relative_to(snapshot).as_posix()
                    reference = HubReference(repository, relative, revision)
                    found.append(CachedModel(reference, file, file.stat().st_size))
            if _is_complete(snapshot) and _is_bitnet(snapshot / "config.json"):
                found.append(CachedModel(base, snapshot, sum(file.stat().st_size for file in files)))
    return found


def remove(reference: HubReference) -> tuple[list[Path], int]:
    """Remove a reference from the cache: the file it names, else the whole repository.

    Returns the paths of the models that were there, and the bytes that are free now. Raises
    ModelNotFoundError if there is nothing.
    """
    from huggingface_hub import scan_cache_dir

    wanted = reference.repository.lower()
    repos = scan_cache_dir(_cache()).repos if _cache().is_dir() else ()
    repo = next(
        (repo for repo in repos if repo.repo_type == "model" and repo.repo_id.lower() == wanted), None
    )
    if repo is None:
        raise ModelNotFoundError(f"{reference} is not on this machine; bitnet list shows what is")
    models = [one.path for one in cached_models() if one.reference.repository.lower() == wanted]
    others = [name for path in repo.repo_path.glob("snapshots/*/**/*.gguf") if (name := path.name)]
    if reference.file is None or set(others) == {Path(reference.file).name}:
        before = _bytes_below(repo.repo_path)
        shutil.rmtree(repo.repo_path)
        return models, before
    pointers = [path for path in repo.repo_path.glob("snapshots/*") if (path / reference.file).exists()]
    if not pointers:
        raise ModelNotFoundError(f"{reference} is not on this machine; bitnet list shows what is")
    freed = 0
    for snapshot in pointers:
        file = snapshot / reference.file
        blob = Path(os.path.realpath(file))
        file.unlink()
        if blob.is_relative_to(repo.repo_path) and blob.exists() and not _is_used(blob, repo.repo_path):
            freed += blob.stat().st_size
            blob.unlink()
    return [path for path in models if not path.exists()], freed


def _wanted_files(reference: HubReference) -> list[RemoteFile]:
    if reference.file is not None:
        return [RemoteFile(reference.file, None)]
    from huggingface_hub import HfApi

    info = HfApi().model_info(reference.repository, revision=reference.revision, files_metadata=True)
    siblings = info.siblings or []
    if len(siblings) > _MAX_FILES:
        raise DownloadError(f"{reference} lists {len(siblings)} files, which no model needs")
    sizes = {str(one.rfilename): one.size for one in siblings}
    return [RemoteFile(name, sizes[name]) for name in choose_files(str(reference), list(sizes))]


def _metadata(reference: HubReference, name: str) -> HfFileMetadata:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(reference.repository, name, revision=reference.revision)
    found = get_hf_file_metadata(url)
    if not _COMMIT.fullmatch(found.commit_hash or "") or not _ETAG.fullmatch(found.etag or ""):
        raise DownloadError(
            f"{reference}: the server gives no usable commit and checksum for {name}; it is not a Hugging "
            "Face Hub (see HF_ENDPOINT)"
        )
    return found


def _check_space(reference: HubReference, metadata: dict[str, HfFileMetadata], missing: list[str]) -> None:
    """Before anything is downloaded. Says that it is going to be."""
    if not missing:
        return
    present = sum(
        _partial(_blob(reference, metadata[name])).stat().st_size
        for name in missing
        if _partial(_blob(reference, metadata[name])).exists()
    )
    n_bytes = sum(metadata[name].size or 0 for name in missing) - present
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if n_bytes + _SPARE_BYTES > free:
        raise DownloadError(
            f"{reference} needs {_gb(n_bytes)}, and {cache} has {_gb(free)} left; make room, or set HF_HOME "
            "to a folder on another disk"
        )
    resumed = f", of which {_gb(present)} are there already" if present else ""
    logger.warning("downloading %s (%s%s) into %s", reference, _gb(n_bytes + present), resumed, cache)


def _complete_blob(reference: HubReference, name: str, metadata: HfFileMetadata) -> None:
    """Make the content of a file complete and right, under its checksum, which is how the cache names it."""
    from filelock import FileLock

    blob = _blob(reference, metadata)
    assert metadata.etag is not None
    if blob.exists():
        if not _matches(blob, metadata.etag):
            blob.unlink()
            raise DownloadError(f"{blob} was damaged, and is removed; {reference} has to be downloaded again")
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(blob)
    locks = _cache() / ".locks" / blob.parents[1].name
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{partial.name}.lock"):
        if blob.exists():  # another process was faster
            return
        with partial.open("ab") as file:
            _transfer(file, name, metadata)
            file.flush()
            os.fsync(file.fileno())
        if not _matches(partial, metadata.etag):
            partial.unlink()
            raise DownloadError(
                f"{name} of {reference} arrived damaged: its checksum is not {metadata.etag}. It is removed; "
                "try again"
            )
        os.replace(partial, blob)


def _transfer(file: BinaryIO, name: str, metadata: HfFileMetadata) -> None:
    """Append what is missing. huggingface_hub tries again where a connection breaks."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    n_present = file.tell()
    if metadata.size is not None and n_present > metadata.size:
        file.seek(0)
        file.truncate()
        n_present = 0
    if n_present == metadata.size:
        return
    headers = build_hf_headers()
    from huggingface_hub import constants

    if urlparse(metadata.location).netloc != urlparse(constants.ENDPOINT).netloc:
        headers.pop("authorization", None)  # a token is for the hub, not for those who keep its files
    with _progress_on_terminals():
        http_get(
            metadata.location,
            file,
            resume_size=n_present,
            headers=headers,
            expected_size=metadata.size,
            displayed_filename=Path(name).name,
        )


def _point_at_blob(reference: HubReference, name: str, blob: Path) -> Path:
    """The file under its own name; its content is there already."""
    from huggingface_hub import hf_hub_download

    with _progress_on_terminals():
        path = Path(hf_hub_download(reference.repository, name, revision=reference.revision))
    if not _is_inside_cache(path):
        raise DownloadError(f"{name} of {reference} would lie at {path}, outside of the cache")
    if path.is_symlink() and os.path.realpath(path) != os.path.realpath(blob):
        raise DownloadError(f"{reference} was changed while it was downloaded; try again")
    return path


def _matches(file: Path, etag: str) -> bool:
    """Whether a file has its checksum: SHA-256 of large files, git's SHA-1 of small ones; others are not
    known, and cannot be checked."""
    if len(etag) == 64:
        digest: Any = hashlib.sha256()
    elif len(etag) == 40:
        digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    else:
        logger.warning("the server gives no checksum for %s", file.name)
        return True
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return bool(digest.hexdigest() == etag)


@contextlib.contextmanager
def _progress_on_terminals() -> Iterator[None]:
    """huggingface_hub's progress bars are for people, not for logs."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextlib.contextmanager
def _explained(reference: HubReference) -> Iterator[None]:
    """Turns what huggingface_hub and the network raise into errors of this package."""
    from huggingface_hub import errors

    where = f"{reference.repository} on the Hugging Face Hub"
    try:
        yield
    except errors.GatedRepoError:
        raise DownloadError(
            f"{where} asks for consent: accept its terms on its page there, and set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFoundError(
            f"there is no model {reference.repository}, neither as a path nor on the Hugging Face Hub, or it "
            "is private (then set HF_TOKEN)"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelNotFoundError(f"{where} has no revision {reference.revision!r}") from None
    except errors.EntryNotFoundError:
        raise ModelNotFoundError(f"{where} has no file {reference.file!r}") from None
    except errors.HFValidationError as error:
        raise ModelNotFoundError(f"{reference}: {error}") from None
    except (errors.OfflineModeIsEnabled, errors.FileMetadataError) as error:
        raise DownloadError(f"{reference} cannot be downloaded: {error}") from None
    except (ModelNotFoundError, DownloadError):
        raise
    except Exception as error:
        # Network errors have the classes of the HTTP client, which differs between versions.
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("httpx", "requests")):
            raise
        raise DownloadError(
            f"{reference} cannot be downloaded: {_first_line(error)}. What has arrived is kept; try again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _folder(reference: HubReference) -> Path:
    """Of the repository in the cache. Names are case-insensitive on the hub."""
    wanted = f"models--{reference.repository.replace('/', '--')}"
    folder = _cache() / wanted
    if folder.is_dir():
        return folder
    alike = [path for path in _cache().glob("models--*") if path.name.lower() == wanted.lower()]
    return alike[0] if alike else folder


def _blob(reference: HubReference, metadata: HfFileMetadata) -> Path:
    assert metadata.etag is not None
    return _cache() / f"models--{reference.repository.replace('/', '--')}" / "blobs" / metadata.etag


def _partial(blob: Path) -> Path:
    return blob.with_name(blob.name + _PARTIAL)


def _cached_snapshot(reference: HubReference) -> Path | None:
    folder = _folder(reference)
    revision = reference.revision or "main"
    try:
        if not _COMMIT.fullmatch(revision):
            revision = (folder / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = folder / "snapshots" / revision
    return snapshot if _COMMIT.fullmatch(revision) and snapshot.is_dir() else None


def _is_inside_cache(file: Path) -> bool:
    """Links must not lead out of the cache."""
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(_cache()))


def _is_complete(snapshot: Path) -> bool:
    """Whether all safetensors of a folder are there."""
    names = {file.name for file in snapshot.glob("*.safetensors") if _is_inside_cache(file)}
    split = [match for name in names if (match := re.fullmatch(r"model-\d{5}-of-(\d{5})\.safetensors", name))]
    if split:
        return len(split) == int(split[0][1])
    return "model.safetensors" in names and (snapshot / "config.json").is_file()


def _is_bitnet(config: Path) -> bool:
    from bitnet.models.hf_config import looks_like_bitnet

    return looks_like_bitnet(config)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _files_below(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in _files(folder)] if folder.is_dir() else []


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _is_used(blob: Path, folder: Path) -> bool:
    return any(Path(os.path.realpath(path)) == blob for path in (folder / "snapshots").rglob("*"))


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e7 else f"{n_bytes / 1e6:.2f} MB"
