"""Whether MLX computes a model as the CPU does, on this machine: tried before the model is first used.

Nobody who wrote the forward pass has seen this device, this version of MLX or this system. So the products of
the first layer are compared with what integers give, and 16 tokens with what the CPU engine says of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bitnet
from bitnet import _native
from bitnet.engines.mlx import MlxEngine, describe
from bitnet.engines.native import KV_BLOCK_SIZE
from bitnet.models import weight_cache
from bitnet.values import Request, Sampling

N_TOKENS = 16
PROMPT = "The capital of France is"
# Where float32 rounds differently, an activation may land on the next of 256 values, and logits move: by up
# to 2 % of the largest with the bundled model and random tokens. A token that the CPU puts behind the
# likeliest by more than this share of the largest logit is wrong.
TOLERANCE = 0.03
_ROWS_AT_ONCE = 1024
_OPTIONS_OF_WEIGHTS = ("embd_type", "layout", "tl_tiles", "activation", "scales")


@dataclass(frozen=True)
class Finding:
    """name: what was compared. detail: what came out."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Verdict:
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return all(finding.passed for finding in self.findings)

    @property
    def summary(self) -> str:
        """What did not pass."""
        return "; ".join(f"{each.name}: {each.detail}" for each in self.findings if not each.passed)


def check(engine: MlxEngine) -> Verdict:
    """Compare every product of layer 0 and 16 greedy tokens. Takes about as long as loading the model."""
    model, _ = engine.model_and_weights
    findings = [*_linears(engine), _tokens(engine, model)]
    return Verdict(tuple(findings))


def _linears(engine: MlxEngine) -> Iterator[Finding]:
    import mlx.core as mx

    model, weights = engine.model_and_weights
    for name, linear in weights.linears.items():
        matrices = [unpack(model.ternary_rows(0, matrix)[0])[:, : linear.width] for matrix in linear.names]
        codes = np.concatenate(matrices)
        vectors = _vectors(codes, linear.width)
        computed = []
        for rows in (vectors[:1], vectors):  # one vector and several are different kernels
            parts = [linear.integers(mx.array(rows), part) for part in weights.layers[0][name]]
            mx.eval(parts)
            computed.append(np.concatenate([np.array(part) for part in parts], axis=1))
        expected = np.empty((len(vectors), len(codes)))
        for first in range(0, len(codes), _ROWS_AT_ONCE):
            some = codes[first : first + _ROWS_AT_ONCE].astype(np.float64)  # exact far beyond these sums
            expected[:, first : first + _ROWS_AT_ONCE] = vectors @ some.T
        wrong = int((computed[0] != expected[:1]).sum() + (computed[1] != expected).sum())
        total = expected.size + expected.shape[1]
        detail = f"{total} dot products exact" if not wrong else f"{wrong} of {total} dot products are wrong"
        yield Finding(f"layer 0 {'/'.join(linear.names)}", wrong == 0, detail)


def unpack(words: NDArray[np.uint32]) -> NDArray[np.int8]:
    """The codes -1, 0 and 1 of Model.ternary_rows."""
    fields = words[:, :, None] >> np.arange(0, 32, 2, dtype=np.uint32) & np.uint32(3)
    codes: NDArray[np.int8] = fields.reshape(len(words), -1).astype(np.int8) - np.int8(1)
    return codes


def _vectors(codes: NDArray[np.int8], width: int) -> NDArray[np.float32]:
    """Whole numbers -128 to 127: those that give the largest sums, and random ones."""
    random = np.random.default_rng(0)
    largest = [127 * codes[0], -127 * codes[-1].astype(np.int32), np.full(width, 127), np.full(width, -128)]
    rest = random.integers(-128, 128, (29, width))
    return np.vstack([*largest, rest]).astype(np.float32)


def _tokens(engine: MlxEngine, model: _native.Model) -> Finding:
    prompt = engine.tokenize(PROMPT)[: max(1, engine.info.n_ctx - N_TOKENS)] or [0]
    n_tokens = min(N_TOKENS, engine.info.n_ctx - len(prompt))
    request = Request(
        token_ids=tuple(prompt), sampling=Sampling(temperature=0), max_tokens=n_tokens, ignore_eos=True
    )
    chosen = engine.submit(request).result().token_ids
    token_ids = [*prompt, *chosen[:-1]]
    blocks = list(range(-(-len(token_ids) // KV_BLOCK_SIZE)))
    cpu = _native.Runner(model, n_blocks=len(blocks), n_threads=engine.info.n_threads)
    cpu.forward(
        np.array(token_ids, np.int32),
        [blocks],
        [0],
        [len(token_ids)],
        list(range(len(prompt) - 1, len(token_ids))),
    )
    logits = cpu.logits()
    rows = np.arange(len(chosen))
    behind = logits.max(axis=1) - logits[rows, list(chosen)]
    n_alike = int((behind == 0).sum())
    furthest = float((behind / np.abs(logits).max(axis=1)).max())
    detail = f"{n_alike} of {len(chosen)} greedy tokens are the CPU's"
    if n_alike < len(chosen):
        detail += f"; the worst other is {furthest:.2%} of the largest logit behind ({TOLERANCE:.0%} allowed)"
    return Finding("tokens", furthest <= TOLERANCE, detail)


def remembered(path: Path, options: Mapping[str, Any]) -> Verdict | None:
    """What a check of this model with these versions on this machine found; None = there was none.

    options: of NativeEngine; what the model is depends on some of them.
    """
    with contextlib.suppress(OSError, RuntimeError):
        return _read(_file(path, options))
    return None


def remember(path: Path, options: Mapping[str, Any], verdict: Verdict) -> None:
    """In the cache directory, until bitnet, MLX, the system or the model file change."""
    with contextlib.suppress(OSError, RuntimeError):  # then it is checked again
        file = _file(path, options)
        content = {
            "model": str(path),
            "mlx": describe(),
            "checked": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "findings": [asdict(finding) for finding in verdict.findings],
        }
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as temporary:
            json.dump(content, temporary, indent=1)
        os.replace(temporary.name, file)


def forget(path: Path) -> None:
    """Every verdict on a model file."""
    for file in _files_of(path):
        file.unlink(missing_ok=True)


def last(path: Path) -> Verdict | None:
    """The last verdict on a model file."""
    files = sorted(_files_of(path), key=lambda file: file.stat().st_mtime)
    return _read(files[-1]) if files else None


def _files_of(path: Path) -> list[Path]:
    files = []
    with contextlib.suppress(OSError, RuntimeError):
        for file in weight_cache.own_folder().glob("mlx-check-*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if json.loads(file.read_text("utf-8"))["model"] == str(path):
                    files.append(file)
    return files


def _read(file: Path) -> Verdict | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        findings = json.loads(file.read_text("utf-8"))["findings"]
        return Verdict(tuple(Finding(**finding) for finding in findings))
    return None


def _file(path: Path, options: Mapping[str, Any]) -> Path:
    status = path.stat()
    facts = (
        bitnet.__version__,
        describe(),
        platform.platform(),
        os.path.realpath(path),
        status.st_size,
        status.st_mtime_ns,
        *(options.get(name) for name in _OPTIONS_OF_WEIGHTS),
    )
    name = hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return weight_cache.own_folder() / f"mlx-check-{name}.json"
