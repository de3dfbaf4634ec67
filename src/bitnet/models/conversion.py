"""Writes a model source as a GGUF file, with the types of tensors that were asked for.

Ternary weights keep their codes whatever the type; nothing is rounded here but the embedding and the head, if
a narrower type is asked for, and the scales of types that store them as f16.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import BitNetError, ConversionError
from bitnet.models.gguf_writer import GgufWriter, Kind, TensorType, tensor_bytes
from bitnet.models.model_source import DenseTensor, ModelSource, TernaryTensor
from bitnet.models.tensor_codec import TlTile, encode_dense, encode_ternary
from bitnet.text.builtin_templates import choose_template
from bitnet.text.byte_level import SPLITTERS, choose_splitter
from bitnet.text.tokenizer import Tokenizer
from bitnet.text.vocabulary import Vocabulary
from bitnet.values import EmbdType

FileType = Literal["i2_s", "tl1", "tq1_0", "tq2_0", "q2_0"]

# general.file_type, a label that nobody should decide by: bitnet.cpp's for its own types, else llama.cpp's.
_FILE_TYPES: Final = {"i2_s": 40, "tl1": 38, "tq1_0": 36, "tq2_0": 37, "q2_0": 41}
# Keys that say how tensors are stored.
_OF_TENSORS: Final = ("general.file_type", "general.quantization_version", "general.alignment")
_F16_MAX: Final = 65504.0
_END_OF_TURN: Final = ("<|eot_id|>", "<|im_end|>", "<|end_of_turn|>", "<end_of_turn>", "<|end|>")
_MEAN, _LAST_TOKEN = 1, 3

Progress = Callable[[int], None]


def write_model(
    source: ModelSource,
    path: Path,
    *,
    file_type: FileType = "i2_s",
    embd_type: EmbdType | None = None,
    tiles: Sequence[TlTile] = (),
    progress: Callable[[int], Progress] | None = None,
    repair: bool = True,
) -> list[str]:
    """Write a file, which appears under its name only when it is complete.

    file_type: of ternary tensors. embd_type: of embedding and head; None = as they are. tiles: what tl1 cuts
    matrices into; empty = what bitnet.cpp has for their shapes. progress: is called
    with the bytes of all tensors, and returns what is then told each time some of them are written.
    repair: put right what is known to be wrong in the metadata.
    Returns sentences on what was decided. Raises ConversionError.
    """
    metadata = {key: value for key, value in source.metadata.items() if key not in _OF_TENSORS}
    notes: list[str] = []
    if repair:
        metadata, notes = repaired(metadata, {tensor.name for tensor in source.dense})
    writer = GgufWriter(path)
    for key, (value, kind) in metadata.items():
        writer.add_metadata(key, value, kind)
    writer.add_metadata("general.file_type", _FILE_TYPES[file_type], "u32")
    writer.add_metadata("general.quantization_version", 2, "u32")
    ternary_type = TensorType[file_type.upper()]
    n_bytes = 0
    shape: tuple[int, ...]
    tensors: list[TernaryTensor | DenseTensor] = [*source.dense, *source.ternary]
    for tensor in sorted(tensors, key=lambda one: one.name != "token_embd.weight"):
        if isinstance(tensor, TernaryTensor):
            stored, shape = ternary_type, (tensor.rows, tensor.columns)
            data: Callable[[], Any] = _ternary(tensor, ternary_type, tiles)
        else:
            stored, shape = _dense_type(tensor, embd_type), tensor.shape
            data = (
                tensor.raw if tensor.raw is not None and stored == tensor.stored else _dense(tensor, stored)
            )
        try:
            n_bytes += tensor_bytes(stored, shape[::-1])
            writer.add_tensor(tensor.name, shape[::-1], stored, data)
        except ValueError as error:
            raise ConversionError(f"{tensor.name}: {error}; choose another type") from None
    _check_space(path, n_bytes)
    writer.write(progress(n_bytes) if progress is not None else None)
    if file_type in ("tq1_0", "tq2_0", "q2_0"):
        notes.append(
            f"{file_type} keeps the scale of each matrix as f16: it is rounded, the ternary weights are not."
        )
    return [*source.notes, *notes]


def repaired(
    metadata: dict[str, tuple[Any, Kind]], tensors: set[str]
) -> tuple[dict[str, tuple[Any, Kind]], list[str]]:
    """The metadata with what is missing or wrong in published files put right, and sentences on that.

    Raises ConversionError if it is not that of a model.
    """
    fixed = dict(metadata)
    plain = {key: value for key, (value, _) in fixed.items()}
    notes: list[str] = []
    try:
        vocabulary = Vocabulary.from_metadata(plain)
        tokenizer = Tokenizer(vocabulary)
        choice = choose_template(plain, tokenizer)
        if vocabulary.model == "gpt2" and vocabulary.pre is None:
            splitter = choose_splitter(vocabulary, notes)
            name = next(name for name in ("llama-bpe", "gpt-2") if SPLITTERS[name] is splitter)
            fixed["tokenizer.ggml.pre"] = (name, "string")
    except BitNetError as error:
        raise ConversionError(str(error)) from None
    if choice.repair is not None:
        fixed["tokenizer.chat_template"] = (choice.source, "string")
        notes.append(choice.repair)
    ends = {tokenizer.token_text(token_id): token_id for token_id in tokenizer.end_ids}
    turn = next((text for text in _END_OF_TURN if text in ends), None)
    if "eot" not in vocabulary.named_ids and turn is not None and ends[turn] != tokenizer.eos_id:
        fixed["tokenizer.ggml.eot_token_id"] = (ends[turn], "u32")
    architecture = plain.get("general.architecture")
    key = f"{architecture}.pooling_type"
    if any(name.endswith("attn_q_norm_in.weight") for name in tensors) and plain.get(key, _MEAN) == _MEAN:
        fixed[key] = (_LAST_TOKEN, "u32")
        notes.append("The vector of a text is that of its last token, as in the model cards, not a mean.")
    return fixed, notes


def _ternary(tensor: TernaryTensor, kind: TensorType, tiles: Sequence[TlTile]) -> Callable[[], bytes]:
    def data() -> bytes:
        codes, scale = tensor.read()
        try:
            return encode_ternary(codes, scale, kind, tiles=tiles)
        except BitNetError as error:
            raise ConversionError(f"{tensor.name}: {error}") from None

    return data


def _dense_type(tensor: DenseTensor, embd_type: EmbdType | None) -> TensorType:
    if not tensor.is_embedding:
        return TensorType.F32
    return tensor.stored if embd_type is None else TensorType[embd_type.upper()]


def _dense(tensor: DenseTensor, kind: TensorType) -> Callable[[], Iterator[bytes | NDArray[Any]]]:
    def data() -> Iterator[bytes | NDArray[Any]]:
        for piece in tensor.pieces():
            if kind == TensorType.F32:
                yield np.ascontiguousarray(piece, dtype="<f4")
                continue
            if kind == TensorType.F16 and np.abs(piece).max(initial=0) > _F16_MAX:
                raise ConversionError(f"{tensor.name} has numbers above {_F16_MAX:g}; choose --embd-type f32")
            yield encode_dense(piece, kind)

    return data


def _check_space(path: Path, n_bytes: int) -> None:
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise ConversionError(
            f"{path} will have {n_bytes / 1e9:.2f} GB, and there are {free / 1e9:.2f} GB left"
        )
