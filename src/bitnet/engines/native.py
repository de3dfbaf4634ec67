"""The engine of this package: a model file whose weights native code packs and computes, on a CPU or a CUDA
GPU."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from bitnet import _native
from bitnet.engines import gpu, layout_detection, tiles
from bitnet.engines.local import LocalEngine, check_kv_tokens, context_size, pooling, tell_once, text_parts
from bitnet.models import catalog, layouts, overrides, weight_cache
from bitnet.models.catalog import CatalogModel
from bitnet.models.overrides import Overrides
from bitnet.models.tensor_codec import TlTile
from bitnet.runtime.runner import Runner
from bitnet.values import EngineName, KvType, Layout, ModelInfo, Pooling, QuantType, Scales

logger = logging.getLogger("bitnet")

KV_BLOCK_SIZE = 32  # positions; Runner.block_size, needed before there is a Runner


class NativeEngine(LocalEngine):
    """Implements bitnet.engines.Engine. Who computes the steps is a Runner, which others may replace."""

    name: ClassVar[EngineName] = "native"

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
        embd_type: str | None = None,
        layout: Layout | None = None,
        tl_tiles: tuple[TlTile, ...] = (),
        activation: str | None = None,
        scales: Scales | None = None,
        metadata_overrides: Overrides = (),
        n_gpu_layers: int = 0,
        main_gpu: int = 0,
        low_vram: bool = False,
    ) -> None:
        """Loads the model. The options are those of bitnet.BitNet. Raises ModelFileError and
        ValidationError."""
        started_at = time.perf_counter()
        file = _native.ModelFile(str(path))
        layouts.check(file, None if layout == "auto" else layout, tl_tiles)
        facts = overrides.apply(file.metadata, metadata_overrides)
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
        variant = _variant(embd_type, reading.layout, tl_tiles)
        model = _native.Model(
            file,
            n_threads=n_threads,
            use_mmap=use_mmap,
            use_mlock=use_mlock,
            cache_path=weight_cache.path_for(path, variant) if use_mmap else "",
            embd_type=embd_type or "",
            layout=reading.layout or "",
            tl_tiles=tl_tiles,
            activation=activation or "",
            divide_by_scales=reading.scales == "divide",
        )
        self._tokenizer, self._chat_template, repairs = text_parts(path, facts)
        n_ctx = context_size(n_ctx, model.context_length)
        self._n_blocks = _kv_blocks(kv_tokens, n_ctx, n_batch)
        self._n_threads = n_threads
        self._tiles = self._choose_tiles(model, quant_type, use_pretuned, kernel_params)
        self._kv_type = kv_type
        self._gpu: dict[str, Any] = {}
        if n_gpu_layers:
            self._gpu = {
                "n_gpu_layers": n_gpu_layers,
                "main_gpu": main_gpu,
                "low_vram": low_vram,
                "gpu_library": gpu.required_library(n_gpu_layers),
            }
        runner = self._begin(
            model, path=path, n_ctx=n_ctx, n_batch=n_batch, max_waiting=max_waiting, speculate=speculate
        )
        known = catalog.identify(model)
        prefixes = catalog.embedding_prefixes(facts)
        if known is not None and not prefixes:
            prefixes = known.embedding_prefixes
        declared = pooling(facts, model.architecture)
        repairs = [*model.repairs, *repairs]
        warnings = [*self._tokenizer.warnings, *model.warnings]
        if reading.repair is not None:
            repairs.append(reading.repair)
        if reading.warning is not None:
            warnings.append(reading.warning)
        if known is not None and known.pooling not in (None, declared):
            warnings.append(_pooling_doubt(declared, known))
        if self._chat_template.source is not None and self._chat_template.problem is not None:
            warnings.append(self._chat_template.problem)
        self._info = ModelInfo(
            name=str(facts.get("general.name") or path.stem),
            path=str(path),
            architecture=model.architecture,
            activation=model.activation,
            n_parameters=model.n_parameters,
            n_layers=model.n_layers,
            hidden_size=model.hidden_size,
            ffn_size=model.ffn_size,
            n_heads=model.n_heads,
            n_kv_heads=model.n_kv_heads,
            head_dim=model.head_dim,
            vocab_size=model.vocab_size,
            tied_head=model.tied_head,
            context_length=model.context_length,
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_threads=runner.n_threads,
            kernels=runner.kernels,
            ternary_bytes=model.ternary_bytes,
            head_bytes=model.head_bytes,
            kv_type=kv_type,
            kv_bytes=runner.kv_bytes,
            n_gpu_layers=runner.n_gpu_layers,
            gpu=_gpu_name(self._gpu),
            gpu_bytes=runner.gpu_bytes,
            has_chat_template=self._chat_template.problem is None,
            pooling=declared,
            embedding_prefixes=prefixes,
            repairs=tuple(repairs),
            warnings=tuple(warnings),
            quant_type=quant_type,
            tiles=runner.tiles,
            embd_type=model.embd_type,
            engine=self.name,
            ternary_type="+".join(layouts.ternary_types(file)),
            layout=reading.layout or next(iter(layouts.candidates(file)), ""),
            scales=reading.scales,
            losses=reading.losses,
        )
        tell_once(path, [*repairs, *warnings])
        logger.debug(
            "loaded %s in %.3f s: %d threads, %s kernels, packed weights %s",
            path,
            time.perf_counter() - started_at,
            runner.n_threads,
            runner.kernels,
            "from the cache" if model.from_cache else "made now",
        )

    def _choose_tiles(
        self,
        model: _native.Model,
        quant_type: QuantType,
        use_pretuned: bool,
        kernel_params: Iterable[tuple[str, int]],
    ) -> tiles.Tiles:
        return tiles.choose(
            model,
            quant_type=quant_type,
            use_pretuned=use_pretuned,
            custom=tiles.check_sizes(dict(kernel_params)),
            n_threads=self._n_threads,
        )

    def _new_runner(self, model: _native.Model) -> Runner:
        return _native.Runner(
            model,
            n_blocks=self._n_blocks,
            n_threads=self._n_threads,
            kv_type=self._kv_type,
            **self._tiles,
            **self._gpu,
        )


def _variant(embd_type: str | None, layout: str | None, tl_tiles: tuple[TlTile, ...]) -> str:
    """What tells the packed weights of one file from others of it, for a file name."""
    tiles = f"tl{zlib.crc32(repr(tl_tiles).encode()):08x}" if tl_tiles else ""
    return "-".join(part for part in (embd_type, layout if layout != "x128" else "", tiles) if part)


def _gpu_name(options: Mapping[str, Any]) -> str:
    if not options:
        return ""
    devices, _ = _native.gpu_devices(options["gpu_library"])
    name: str = devices[options["main_gpu"]].name
    return name


def _pooling_doubt(declared: Pooling | None, known: CatalogModel) -> str:
    return (
        f"The model file declares the pooling {declared or 'in a way unknown here'}, and the model card of "
        f"{known.title} says {known.pooling}. The file is followed; if its vectors find the wrong texts, "
        f"override it (metadata override: pooling_type={known.pooling})."
    )


def _kv_blocks(kv_tokens: int | None, n_ctx: int, n_batch: int) -> int:
    blocks_of_context = -(-n_ctx // KV_BLOCK_SIZE)
    if kv_tokens is None:
        return n_batch * blocks_of_context
    check_kv_tokens(kv_tokens, n_ctx)
    # More than n_batch contexts only keep more prompts for later requests.
    return -(-kv_tokens // KV_BLOCK_SIZE)
