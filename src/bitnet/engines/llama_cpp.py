"""The engine that computes through llama.cpp: on whatever GPU the user built llama-cpp-python for, and models
that are no BitNet.

Tokens, chat templates, scheduling, sampling and constraints are this package's; the forward pass and its
rounding are llama.cpp's. Files with types that it does not read are written once as ones that it does.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet import _native
from bitnet.engines import layout_detection
from bitnet.engines.local import (
    LocalEngine,
    check_kv_tokens,
    context_size,
    pooling,
    tell_once,
    text_parts,
)
from bitnet.errors import EngineClosedError, ModelFileError, ValidationError
from bitnet.models import catalog, converted, layouts, overrides
from bitnet.models.conversion import FileType
from bitnet.models.overrides import Overrides
from bitnet.models.tensor_codec import TlTile
from bitnet.values import EmbdType, KvType, Layout, ModelInfo, QuantType, Scales

if TYPE_CHECKING:
    from bitnet.engines.llama_cpp_runner import LlamaCppModel
    from bitnet.runtime.runner import Runner

logger = logging.getLogger("bitnet")

INSTALL = "pip install 'bitnet-cpp[llama-cpp]'"
BUILD = (
    "build it for yours, such as CMAKE_ARGS=-DGGML_VULKAN=on pip install --force-reinstall --no-cache-dir "
    "llama-cpp-python"
)
# Types of tensors that only bitnet.cpp and this package read.
_OWN_TYPES = frozenset({"I2_S", "TL1", "TL2"})
_BITNET = ("bitnet", "bitnet-b1.58", "bitnet-25")
_ITS_BITNET = "bitnet"  # the name under which llama.cpp has the graph with SiLU
# Norms of the input of each projection, which no graph of llama.cpp has.
_OWN_NORM = "attn_q_norm_in.weight"


def is_installed() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def require() -> None:
    """Raises ValidationError if llama-cpp-python is not installed, or is another version than this needs."""
    try:
        from bitnet.engines.llama_cpp_runner import library

        known = all(hasattr(library, name) for name in ("LLAMA_LOAD_MODE_MMAP", "llama_get_memory"))
        reason = "" if known else f"version {library.__version__} is too old"
    except ImportError as error:
        reason = "it is not installed" if not is_installed() else f"it cannot be imported ({error})"
    except (OSError, RuntimeError) as error:  # its shared library
        reason = f"it cannot be imported ({error})"
    if reason:
        raise ValidationError(
            f"the engine llama_cpp needs the package llama-cpp-python, and {reason}: {INSTALL}, or set "
            "engine to native",
            field="engine",
        )


def has_gpu() -> bool:
    """Whether llama.cpp was built for a GPU that is here."""
    from bitnet.engines.llama_cpp_runner import library

    return bool(library.llama_supports_gpu_offload())


def describe() -> str:
    """Such as "0.3.36, for the CPU". Only where it can be imported."""
    from bitnet.engines.llama_cpp_runner import library

    return f"{library.__version__}, {'with a GPU' if has_gpu() else 'for the CPU'}"


class LlamaCppEngine(LocalEngine):
    """Implements bitnet.engines.Engine."""

    name = "llama_cpp"
    survives_fork = False

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int | None,
        n_threads: int,
        n_batch: int,
        kv_type: KvType = "f16",
        speculate: bool = True,
        use_mmap: bool,
        use_mlock: bool,
        kv_tokens: int | None,
        max_waiting: int,
        quant_type: QuantType = "i2_s",
        use_pretuned: bool = True,
        kernel_params: Iterable[tuple[str, int]] = (),
        embd_type: EmbdType | None = None,
        layout: Layout | None = None,
        tl_tiles: tuple[TlTile, ...] = (),
        activation: str | None = None,
        scales: Scales | None = None,
        metadata_overrides: Overrides = (),
        n_gpu_layers: int = 0,
        main_gpu: int = 0,
        low_vram: bool = False,
    ) -> None:
        """Loads the model. The options are those of bitnet.BitNet. Raises ModelFileError, ConversionError and
        ValidationError, also for options that llama.cpp has no way to obey."""
        from bitnet.engines.llama_cpp_runner import MAX_SEQUENCES, LlamaCppModel

        n_threads = n_threads or _native.physical_cores()
        _refuse_kernels(quant_type, tuple(kernel_params))
        if n_gpu_layers != 0 and not has_gpu():
            raise ValidationError(
                f"n_gpu_layers={n_gpu_layers} asks for a GPU, and llama-cpp-python was built without one: "
                f"{BUILD}, or set n_gpu_layers to 0",
                field="n_gpu_layers",
            )
        _refuse_after_fork(n_gpu_layers)
        file = _native.ModelFile(str(path))
        facts = overrides.apply(file.metadata, metadata_overrides)
        architecture = str(facts.get("general.architecture", ""))
        computed = _check_graph(file, architecture, activation)
        layouts.check(file, None if layout == "auto" else layout, tl_tiles)
        ternary_types = layouts.ternary_types(file)
        reading: layout_detection.Verdict | None = None
        if _OWN_TYPES & set(ternary_types) or architecture in _BITNET[1:]:
            reading = layout_detection.choose(
                path,
                file,
                lambda: text_parts(path, facts)[0],
                layout=layout,
                scales=scales,
                n_threads=n_threads,
                tl_tiles=tl_tiles,
                activation=activation or "",
            )
            its_path = converted.exported(
                path,
                _its_type(file, on_gpu=n_gpu_layers != 0),
                architecture=_ITS_BITNET if architecture in _BITNET else None,
                embd_type=embd_type,
                layout=reading.layout,
                tiles=tl_tiles,
                scales="divide" if reading.scales == "divide" else "multiply",
            )
        else:
            _refuse_reading(path, layout=layout, scales=scales, embd_type=embd_type)
            its_path = path
        model = LlamaCppModel(
            str(its_path),
            n_gpu_layers=n_gpu_layers,
            main_gpu=main_gpu,
            use_mmap=use_mmap,
            use_mlock=use_mlock,
        )
        if model.other_kind is not None:
            raise ModelFileError(
                f"{path}: a model that {model.other_kind} is not computed here; use llama-cpp-python itself"
            )
        self._tokenizer, self._chat_template, repairs = text_parts(path, facts, model.tokenize)
        n_ctx = context_size(n_ctx, model.context_length)
        # A block is a whole sequence; more than n_batch of them keep more prompts for later requests.
        check_kv_tokens(kv_tokens, n_ctx)
        n_blocks = n_batch if kv_tokens is None else min(kv_tokens // n_ctx, MAX_SEQUENCES)
        prefix = f"{architecture}."
        head_dim = _natural(facts, f"{prefix}attention.key_length") or model.hidden_size // model.n_heads
        n_gpu_layers = model.n_layers if n_gpu_layers < 0 else min(n_gpu_layers, model.n_layers)
        self._context_options: dict[str, Any] = {
            "block_size": n_ctx,
            "n_blocks": n_blocks,
            "n_threads": n_threads,
            "kv_type": kv_type,
            "head_dim": head_dim,
            "n_gpu_layers": n_gpu_layers,
            "low_vram": low_vram,
        }
        runner = self._begin(
            model, path=path, n_ctx=n_ctx, n_batch=n_batch, max_waiting=max_waiting, speculate=speculate
        )
        warnings = list(self._tokenizer.warnings)
        if reading is not None and reading.repair is not None:
            repairs.append(reading.repair)
        if reading is not None and reading.warning is not None:
            warnings.append(reading.warning)
        if self._chat_template.source is not None and self._chat_template.problem is not None:
            warnings.append(self._chat_template.problem)
        names = {tensor.name: tensor for tensor in file.tensors}
        embedding = names.get("token_embd.weight")
        self._info = ModelInfo(
            name=str(facts.get("general.name") or path.stem),
            path=str(path),
            architecture=architecture,
            activation=computed,
            n_parameters=model.n_parameters,
            n_layers=model.n_layers,
            hidden_size=model.hidden_size,
            ffn_size=_natural(facts, f"{prefix}feed_forward_length") or 0,
            n_heads=model.n_heads,
            n_kv_heads=model.n_kv_heads,
            head_dim=head_dim,
            vocab_size=model.vocab_size,
            tied_head="output.weight" not in names,
            context_length=model.context_length,
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_threads=n_threads,
            kernels=runner.kernels,
            ternary_bytes=model.n_bytes - (embedding.n_bytes if embedding else 0),
            head_bytes=embedding.n_bytes if embedding else 0,
            kv_type=kv_type,
            kv_bytes=runner.kv_bytes,
            n_gpu_layers=n_gpu_layers,
            gpu="llama.cpp's" if n_gpu_layers else "",
            has_chat_template=self._chat_template.problem is None,
            pooling=pooling(facts, architecture),
            embedding_prefixes=catalog.embedding_prefixes(facts),
            repairs=tuple(repairs),
            warnings=tuple(warnings),
            embd_type=embd_type.upper() if embd_type else embedding.type_name if embedding else "",
            engine=self.name,
            ternary_type="+".join(ternary_types),
            layout=reading.layout or "" if reading else "",
            scales=reading.scales if reading else "",
            losses=reading.losses if reading else {},
        )
        tell_once(path, [*repairs, *warnings])

    def _new_runner(self, model: LlamaCppModel) -> Runner:
        from bitnet.engines.llama_cpp_runner import LlamaCppRunner

        return LlamaCppRunner(model, **self._context_options)


_gpu_used_by: int | None = None


def _refuse_after_fork(n_gpu_layers: int) -> None:
    """Raises EngineClosedError in a child of a process that used a GPU. (On a CPU it loads a model anew.)"""
    global _gpu_used_by
    if n_gpu_layers == 0:
        return
    if _gpu_used_by not in (None, os.getpid()):
        raise EngineClosedError(
            "this process was forked from one that used a GPU with llama.cpp, which does not survive that; "
            "start workers with the method 'spawn'"
        )
    _gpu_used_by = os.getpid()


def _check_graph(file: _native.ModelFile, architecture: str, activation: str | None) -> str:
    """The activation that is computed, as far as it is known here. Raises ValidationError for models of which
    llama.cpp would compute another graph, or none."""
    if any(tensor.name.endswith(_OWN_NORM) for tensor in file.tensors):
        raise ValidationError(
            f"{file.path}: the input of each projection has a norm of its own, which llama.cpp does not "
            "compute; set engine to native",
            field="engine",
        )
    if architecture in _BITNET:
        computed = file.activation(activation or "")
        if computed != "silu":
            raise ValidationError(
                f"{file.path}: the activation of this model is {computed}, and llama.cpp computes BitNet "
                "models with silu only: its answers would be garbage; set engine to native",
                field="engine",
            )
        return computed
    if activation is not None:
        raise ValidationError(
            f"activation: models of the architecture {architecture!r} leave no choice; leave it out",
            field="activation",
        )
    return ""


def _its_type(file: _native.ModelFile, *, on_gpu: bool) -> FileType:
    """What ternary tensors are written as: what its CPU computes fastest, or what all of its GPUs compute."""
    widths = {tensor.shape[0] for tensor in file.tensors if tensor.type_name in layouts.TERNARY_NAMES}
    if not on_gpu and all(width % 256 == 0 for width in widths):
        return "tq2_0"
    if all(width % 64 == 0 for width in widths):
        return "q2_0"
    raise ValidationError(
        f"{file.path}: llama.cpp has ternary weights in blocks of 64, and this model has rows of "
        f"{next(width for width in sorted(widths) if width % 64)}; set engine to native",
        field="engine",
    )


def _refuse_kernels(quant_type: QuantType, kernel_params: tuple[tuple[str, int], ...]) -> None:
    if quant_type != "i2_s":
        raise ValidationError(
            f"quant_type={quant_type!r} is a way in which the native engine computes; leave it out, or set "
            "engine to native",
            field="quant_type",
        )
    if kernel_params:
        raise ValidationError(
            "kernel_params are for the native engine's products; leave them out, or set engine to native",
            field="kernel_params",
        )


def _refuse_reading(
    path: Path, *, layout: Layout | None, scales: Scales | None, embd_type: str | None
) -> None:
    """Options for files that are written anew, of one that llama.cpp reads itself."""
    given = {
        "layout": layout if layout != "auto" else None,
        "scales": scales if scales == "divide" else None,
        "embd_type": embd_type,
    }
    for name, value in given.items():
        if value is not None:
            raise ValidationError(
                f"{name}={value!r}: llama.cpp reads {path.name} as it is; leave it out", field=name
            )


def _natural(facts: Mapping[str, Any], key: str) -> int | None:
    value = facts.get(key)
    return value if isinstance(value, int) and value > 0 else None
