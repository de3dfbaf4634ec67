"""The options of BitNet() for a model in this process: checked, and in the form that loading wants."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from bitnet._native import physical_cores
from bitnet.engines import tiles
from bitnet.errors import ValidationError
from bitnet.models import overrides
from bitnet.models.layouts import read_tl_config
from bitnet.values import (
    Activation,
    EmbdType,
    EngineChoice,
    KvType,
    Layout,
    QuantType,
    Scales,
    as_choice,
    as_flag,
    as_integer,
)

logger = logging.getLogger("bitnet")

NAMES = (
    *("n_gpu_layers", "main_gpu", "low_vram", "engine", "n_ctx", "n_threads", "n_batch", "kv_type"),
    *("speculate", "use_mmap", "use_mlock", "quant_type", "use_pretuned", "kernel_params", "embd_type"),
    *("layout", "tl_config", "activation", "scales", "metadata_overrides", "kv_tokens", "max_waiting"),
)


class LoadOptions(NamedTuple):
    """engine: the choice. gpu: n_gpu_layers, main_gpu and low_vram, which decide with it who computes.
    model: all else, for whoever that is, in values that can be hashed: models with equal ones are shared.
    arguments: all of them as BitNet() takes them, for another object like this one."""

    engine: EngineChoice
    gpu: dict[str, Any]
    model: dict[str, Any]
    arguments: dict[str, Any]


def check(given: Mapping[str, Any]) -> LoadOptions:
    """given: the options called NAMES, as a user has them. Of files only that of tl_config is read.

    Raises ValidationError naming the option.
    """
    options: dict[str, Any] = {
        "n_ctx": _integer_or_none(given, "n_ctx", 0),
        "n_threads": _threads(as_integer("n_threads", given["n_threads"], 0, 1024)),
        "n_batch": as_integer("n_batch", given["n_batch"], 1, 256),
        "kv_type": as_choice("kv_type", given["kv_type"], get_args(KvType)),
        "speculate": as_flag("speculate", given["speculate"]),
        "use_mmap": as_flag("use_mmap", given["use_mmap"]),
        "use_mlock": as_flag("use_mlock", given["use_mlock"]),
        "kv_tokens": _integer_or_none(given, "kv_tokens", 1),
        "max_waiting": as_integer("max_waiting", given["max_waiting"], 0, 2**31 - 1),
        "quant_type": as_choice("quant_type", given["quant_type"], get_args(QuantType)),
        "use_pretuned": as_flag("use_pretuned", given["use_pretuned"]),
        "kernel_params": tiles.check_sizes(given["kernel_params"] or {}),
        "embd_type": _choice_or_none(given, "embd_type", get_args(EmbdType)),
        "layout": _choice_or_none(given, "layout", get_args(Layout)),
        "activation": _choice_or_none(given, "activation", get_args(Activation)),
        "scales": _choice_or_none(given, "scales", get_args(Scales)),
        "metadata_overrides": dict(overrides.check(given["metadata_overrides"] or {})),
    }
    tl_config = given["tl_config"]
    if tl_config is not None:
        tl_config = os.path.abspath(os.path.expanduser(tl_config))
    model = {
        **options,
        "kernel_params": tuple(sorted(options["kernel_params"].items())),
        "metadata_overrides": tuple(options["metadata_overrides"].items()),
        "tl_tiles": () if tl_config is None else read_tl_config(tl_config),
    }
    gpu = {
        "n_gpu_layers": as_integer("n_gpu_layers", given["n_gpu_layers"], -1, 2**31 - 1),
        "main_gpu": as_integer("main_gpu", given["main_gpu"], 0, 1023),
        "low_vram": as_flag("low_vram", given["low_vram"]),
    }
    engine = as_choice("engine", given["engine"], get_args(EngineChoice))
    return LoadOptions(engine, gpu, model, {**options, "engine": engine, **gpu, "tl_config": tl_config})


def refuse_given(function: Callable[..., Any], options: Mapping[str, Any], why: str) -> None:
    """Raises ValidationError for one of `options`, which `function` takes, that is not at its default."""
    parameters = inspect.signature(function).parameters
    for name, value in options.items():
        if value != parameters[name].default:
            raise ValidationError(f"{name} {why}", field=name)


def _integer_or_none(given: Mapping[str, Any], name: str, least: int) -> int | None:
    return None if given[name] is None else as_integer(name, given[name], least, 2**31 - 1)


def _choice_or_none(given: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str | None:
    return None if given[name] is None else as_choice(name, given[name], choices)


def _threads(n_threads: int) -> int:
    """No more than there are cores: threads that take turns on one wait for each other in every layer."""
    cores = physical_cores()
    if n_threads > cores:
        logger.info("n_threads=%d is more than the %d cores there are; using %d", n_threads, cores, cores)
    return min(n_threads, cores)
