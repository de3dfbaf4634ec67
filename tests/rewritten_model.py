"""The bundled model with something changed: the layout of its ternary weights, their scales, its metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitnet import _native
from bitnet.models import bundled
from bitnet.models.gguf_writer import GgufWriter, TensorType
from bitnet.models.tensor_codec import decode_ternary
from bitnet.values import TernaryLayout
from reference import ternary_layouts

_ENCODERS = {
    "x128": ternary_layouts.i2_s,
    "arm64": lambda codes, scale: ternary_layouts.i2_s(codes, scale, 64),
}
_ENCODERS["row4"] = ternary_layouts.i2_s_row4


def rewrite(
    path: Path,
    *,
    layout: TernaryLayout = "x128",
    scale: Callable[[float], float] = lambda scale: scale,
    zeros: tuple[str, ...] = (),
    metadata: Mapping[str, Any] | None = None,
    source: Path | None = None,
) -> Path:
    """scale: made of each scale. zeros: tensors whose weights become 0. metadata: keys to change; None =
    leave out."""
    source = source or bundled.path()
    file = _native.ModelFile(str(source))
    changes = dict(metadata or {})
    writer = GgufWriter(path)
    for key, value in {**file.metadata, **changes}.items():
        if value is not None:
            writer.add_metadata(key, value, _kind(key, value))
    data = source.read_bytes()
    start = len(data) - max(-(-(tensor.offset + tensor.n_bytes) // 32) * 32 for tensor in file.tensors)
    for tensor in file.tensors:
        raw = data[start + tensor.offset : start + tensor.offset + tensor.n_bytes]
        kind = TensorType[tensor.type_name]
        if kind == TensorType.I2_S:
            columns, rows = tensor.shape
            matrix = decode_ternary(raw, kind, rows, columns)
            codes = np.zeros_like(matrix.codes) if tensor.name in zeros else matrix.codes
            raw = _ENCODERS[layout](codes, scale(matrix.scale))
        writer.add_tensor(tensor.name, tensor.shape, kind, raw)
    writer.write()
    return path


def _kind(key: str, value: Any) -> Any:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, float):
        return "f32"
    if isinstance(value, list):
        return ("array", "i32" if key.endswith("token_type") else "string")
    return "u32"
