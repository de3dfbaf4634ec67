"""`bitnet list`, `bitnet pull`, `bitnet rm`: the models there are, and those on this machine."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet.cli.terminal import note, printable, size_text, table, write
from bitnet.errors import ValidationError

if TYPE_CHECKING:
    from bitnet.models.catalog import CatalogModel
    from bitnet.models.reference import HubReference

Reference = Annotated[
    str,
    typer.Argument(
        metavar="REF", help="A name that bitnet list --remote shows, or org/name[@revision][:file]."
    ),
]


@dataclasses.dataclass(frozen=True)
class Row:
    """reference: what to call the model by; name: the short one, if it has one."""

    name: str | None
    reference: str
    n_bytes: int
    path: str


def list_models(
    remote: Annotated[
        bool, typer.Option("--remote", help="The models this package knows, whether they are here or not.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List the models on this machine: the bundled one, and those in the Hugging Face cache.

    With --remote: the models that bitnet pull knows by a short name. No network is used.

    Example: bitnet list --remote
    """
    if remote:
        _list_known(as_json)
        return
    rows = _present()
    if as_json:
        write(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
        return
    cells = [(row.name or row.reference, size_text(row.n_bytes), row.path) for row in rows]
    write("\n".join(table([("NAME", "SIZE", "PATH"), *cells])) + "\n")


def pull(reference: Reference) -> None:
    """Download a model into the Hugging Face cache, and verify its checksum.

    An interrupted download goes on where it ended. HF_HOME says where the cache is, HF_ENDPOINT names
    another hub, HF_TOKEN lets you in where consent is needed.

    Example: bitnet pull 2b-4t
    """
    from bitnet.models import hub

    wanted = _parse(reference)
    path = hub.download(wanted)
    note(f"{reference} is here, complete and checked: {path}")


def remove(reference: Reference) -> None:
    """Remove a model from the Hugging Face cache, and what was made of it.

    Other programs that use the same cache lose it, too.

    Example: bitnet rm 2b-4t
    """
    from bitnet.models import converted, hub

    paths, freed = hub.remove(_parse(reference))
    freed += sum(converted.remove(path) for path in paths)
    note(f"removed {reference}; {size_text(freed)} are free now")


def _parse(reference: str) -> HubReference:
    from bitnet.models import bundled
    from bitnet.models import reference as references

    if reference == bundled.NAME:
        raise ValidationError(f"{reference} is part of the package")
    found = references.parse(reference)
    if found is None:
        raise ValidationError(f"{reference!r} is no model of the hub; {references.hint(reference)}")
    return found


def _present() -> list[Row]:
    from bitnet.models import bundled, catalog, hub

    path = bundled.path()
    rows = [Row(bundled.NAME, bundled.NAME, path.stat().st_size, str(path))]
    for model in hub.cached_models():
        entry = catalog.published_at(model.reference.repository)
        same = entry is not None and model.reference.revision is None and entry.file == model.reference.file
        rows.append(
            Row(entry.name if entry and same else None, str(model.reference), model.n_bytes, str(model.path))
        )
    return rows


def _list_known(as_json: bool) -> None:
    from bitnet.models import catalog

    present = {row.name for row in _present()}
    models = catalog.known_models()
    if as_json:
        everything = [
            {**model.model_dump(mode="json", exclude_none=True), "present": model.name in present}
            for model in models
        ]
        write(json.dumps(everything, indent=2) + "\n")
        return
    cells = [
        (model.name, known_size(model), "yes" if model.name in present else "", model.title, model.repository)
        for model in models
    ]
    write("\n".join(table([("NAME", "SIZE", "HERE", "MODEL", "REPOSITORY"), *cells])) + "\n")
    write("bitnet show NAME tells more; bitnet pull NAME downloads; -m NAME does so when it is not here.\n")


def known_size(model: CatalogModel) -> str:
    if model.n_bytes is not None:
        return size_text(model.n_bytes)
    return "" if model.about_bytes is None else f"about {size_text(model.about_bytes)}"


def describe(model: CatalogModel) -> list[str]:
    """What the catalog tells of a model, as lines."""
    lines: list[tuple[str, Any]] = [
        ("name", model.name),
        ("repository", model.reference),
        ("size", known_size(model)),
        ("licence", model.licence),
        (
            "stored as",
            {"gguf": "a GGUF file", "packed": "packed ternary safetensors"}.get(
                model.storage, "latent safetensors"
            ),
        ),
        ("architecture", model.architecture),
        ("chat format", model.chat_format),
        ("pooling", model.pooling and f"{model.pooling} token"),
    ]
    lines += [(f"{kind} prefix", repr(text)) for kind, text in model.embedding_prefixes.items()]
    if model.dimensions is not None:
        size = model.dimensions
        lines += [
            (
                "layers",
                f"{size.n_layers} of {size.hidden_size}, feed-forward {size.ffn_size}, {size.activation}",
            ),
            ("attention", f"{size.n_heads} heads of {size.head_dim}, {size.n_kv_heads} for keys and values"),
            ("vocabulary", size.vocab_size),
            ("context", size.context_length and f"{size.context_length} tokens"),
        ]
    lines += [("note", text) for text in model.notes]
    return [f"  {title:<13} {printable(str(value))}" for title, value in lines if value]
