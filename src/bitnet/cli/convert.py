"""`bitnet convert`: a Hugging Face folder or a GGUF file, written as a GGUF file of other types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from bitnet.cli.terminal import note, size_text
from bitnet.errors import ModelNotFoundError, ValidationError
from bitnet.values import EmbdType, TernaryLayout, as_choice

if TYPE_CHECKING:
    from bitnet.models.model_source import ModelSource
    from bitnet.models.tensor_codec import TlTile


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A Hugging Face folder, a GGUF file, or a name as -m takes it, which is downloaded.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The file to write.")],
    file_type: Annotated[
        str,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="How ternary weights are stored: i2_s (default), tl1, tq1_0, tq2_0 or q2_0. The last three "
            "are read by llama.cpp.",
        ),
    ] = "i2_s",
    embd_type: Annotated[
        str | None,
        typer.Option(
            "--embd-type",
            metavar="TYPE",
            help="How embedding and output head are stored: f32, f16, q8_0, q6_k or q4_0. Default: as they "
            "are in a GGUF file, f16 from a folder.",
        ),
    ] = None,
    latent: Annotated[
        bool,
        typer.Option(
            "--latent",
            help="Weights in floating point are BitNet master weights, to be rounded (absmean), although the "
            "model does not say so. Ruins models that were not trained for that.",
        ),
    ] = False,
    weight_scale: Annotated[
        str | None,
        typer.Option(
            "--weight-scale",
            metavar="mul|div",
            help="Whether scales of packed weights in a folder multiply or divide. Default: as config.json "
            "says.",
        ),
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(
            "--scales",
            metavar="HOW",
            help="Whether the scales in a GGUF file, which cannot say it, multiply (default) or divide.",
        ),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            metavar="NAME",
            help="The order of codes in a GGUF file that cannot say it: x128 (default), arm64, row4, preset.",
        ),
    ] = "x128",
    tl_config: Annotated[
        Path | None,
        typer.Option(
            "--tl-config",
            metavar="FILE",
            help="The kernel_config.ini that a TL1 or TL2 file was made with, or that --type tl1 is to use. "
            "Default: what bitnet.cpp has for its models.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.gguf if it is there.")] = False,
) -> None:
    """Write a model as a GGUF file. Ternary weights stay exactly what they are.

    Example: bitnet convert path/to/hf-folder model.gguf --type tq2_0 --embd-type q8_0
    """
    from bitnet.models.conversion import FileType, write_model
    from bitnet.models.layouts import read_tl_config
    from bitnet.models.progress import bar

    kind = as_choice("--type", file_type, get_args(FileType))
    embd = None if embd_type is None else as_choice("--embd-type", embd_type, get_args(EmbdType))
    if out.is_dir():
        raise ValidationError(f"{out} is a directory; name a file")
    if out.exists() and not overwrite:
        raise ValidationError(f"{out} is there already; --overwrite replaces it")
    tiles = () if tl_config is None else read_tl_config(tl_config)
    model = _open(source, latent=latent, weight_scale=weight_scale, scales=scales, layout=layout, tiles=tiles)
    with bar("writing") as progress:
        notes = write_model(model, out, file_type=kind, embd_type=embd, tiles=tiles, progress=progress)
    for text in notes:
        note(text)
    note(
        f"wrote {out}, {size_text(out.stat().st_size)}: {len(model.ternary)} ternary matrices as {file_type}"
    )


def _open(
    source: str,
    *,
    latent: bool,
    weight_scale: str | None,
    scales: str | None,
    layout: str,
    tiles: Sequence[TlTile],
) -> ModelSource:
    from bitnet.models import bundled, converted, hub, reference
    from bitnet.models.gguf_source import ScaleUse, read_gguf
    from bitnet.models.hf_config import WeightScale
    from bitnet.models.hf_folder import read_folder

    scale = None if weight_scale is None else as_choice("--weight-scale", weight_scale, get_args(WeightScale))
    use = None if scales is None else as_choice("--scales", scales, get_args(ScaleUse))
    order = as_choice("--layout", layout, get_args(TernaryLayout))
    path, name = Path(source).expanduser(), None
    if source == bundled.NAME:
        path = bundled.path()
    elif not path.exists():
        wanted = reference.parse(source)
        if wanted is None:
            raise ModelNotFoundError(f"there is no {source!r}; {reference.hint(source)}")
        path, name = hub.fetch(wanted), wanted.repository
    if path.is_dir():
        if not converted.is_folder(path):
            raise ModelNotFoundError(f"{path} is no Hugging Face folder: it lacks config.json or safetensors")
        if use is not None:
            raise ValidationError(
                "--scales is for GGUF files; the config.json of a Hugging Face folder says itself how scales "
                "are meant (if not, say --weight-scale mul or div)"
            )
        return read_folder(path, name=name, latent=latent, weight_scale=scale)
    if scale is not None:
        raise ValidationError(
            "--weight-scale is for Hugging Face folders; for a GGUF file, --scales multiply or divide says it"
        )
    return read_gguf(path, latent=latent, layout=order, tiles=tiles, scales=use or "multiply")
