"""Prefill and decode speed on synthetic 2B-4T weights, beside llama.cpp's TQ2_0 and the memory's bandwidth.

    python benchmarks/compare_llama_cpp.py [--layers 30] [--rounds 5] [--json results.json]

Everything is measured in one run and interleaved, round by round, so that a disturbance hits both engines;
medians are printed, each beside a check that what was computed is right. Without llama-cpp-python only this
engine is measured.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import platform
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bitnet import _native
from bitnet.models.gguf_writer import TensorType
from synthetic_2b import HIDDEN, LAYERS, VOCAB, write_synthetic

PAUSE = 0.2  # seconds between measurements, so that the other engine's threads have gone to sleep
BUFFER = 256 << 20  # bytes each thread reads for the bandwidth, far more than any cache


class Contender(Protocol):
    """An engine with one sequence: `prefill` starts it anew, `step` appends a token; both give the next."""

    def prefill(self, token_ids: list[int]) -> int: ...
    def step(self, token_id: int) -> int: ...


class Ours:
    def __init__(self, path: Path, threads: int, n_ctx: int, kernels: str = "", model: Any = None) -> None:
        cache = str(path.with_suffix(".packed"))
        self.model = model or _native.Model(_native.ModelFile(str(path)), n_threads=threads, cache_path=cache)
        n_blocks = -(-n_ctx // 32)
        self.runner = _native.Runner(
            self.model, n_blocks=n_blocks, max_batch_tokens=512, n_threads=threads, kernels=kernels
        )
        self._blocks = list(range(n_blocks))
        self._greedy = _native.Sampler(temperature=0)
        self._position = 0

    def forward(self, token_ids: list[int]) -> None:
        """Append tokens; the state of the last one is kept."""
        n = len(token_ids)
        tokens = np.array(token_ids, dtype=np.int32)
        self.runner.forward(tokens, [self._blocks], [self._position], [n], [n - 1])
        self._position += n

    def prefill(self, token_ids: list[int]) -> int:
        self._position = 0
        for first in range(0, len(token_ids), 512):
            self.forward(token_ids[first : first + 512])
        return self.runner.sample(0, self._greedy).token_id

    def step(self, token_id: int) -> int:
        self.forward([token_id])
        return self.runner.sample(0, self._greedy).token_id


class LlamaCpp:
    def __init__(self, path: Path, threads: int, n_ctx: int) -> None:
        import llama_cpp

        self._api = llama_cpp
        llama_cpp.llama_backend_init()
        silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
        self._silence = silence  # the library keeps a pointer to it
        model_options = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_options)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = n_ctx, 512, 512
        options.n_threads = options.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.version: str = llama_cpp.__version__
        self.features: str = llama_cpp.llama_print_system_info().decode()

    def _decode(self, token_ids: list[int]) -> int:
        tokens = (self._api.llama_token * len(token_ids))(*token_ids)
        batch = self._api.llama_batch_get_one(tokens, len(token_ids))
        if self._api.llama_decode(self._context, batch) != 0:
            raise SystemExit("llama_decode failed")
        logits = np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, -1), shape=(VOCAB,))
        if not np.isfinite(logits).all():
            raise SystemExit("llama.cpp computed logits that are not finite")
        return int(logits.argmax())

    def prefill(self, token_ids: list[int]) -> int:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        return self._decode(token_ids)

    def step(self, token_id: int) -> int:
        return self._decode([token_id])


@dataclass
class Series:
    """The measurements of one engine, tokens/s per round, and its greedy text of each round."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)


def read_bandwidth(threads: int, buffers: list[np.ndarray]) -> float:
    """Bytes/s that the threads together read: memchr over buffers that lack the byte, best of five."""
    memchr = ctypes.CDLL(None).memchr  # called without the GIL, and as fast as the C library can read
    memchr.restype = ctypes.c_void_p
    memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

    def read(buffer: np.ndarray) -> None:
        memchr(buffer.ctypes.data, 0, buffer.nbytes)

    best = 0.0
    for _ in range(5):
        readers = [threading.Thread(target=read, args=(buffer,)) for buffer in buffers[:threads]]
        start = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = max(best, threads * BUFFER / (time.perf_counter() - start))
    return best


def measure_round(
    engines: dict[str, Contender], prompt: list[int], n: int, results: dict[str, Series]
) -> None:
    """Prefill with each engine, then decode with each."""
    next_tokens = {}
    for name, engine in engines.items():
        time.sleep(PAUSE)
        start = time.perf_counter()
        next_tokens[name] = engine.prefill(prompt)
        results[name].prefill.append(len(prompt) / (time.perf_counter() - start))
    for name, engine in engines.items():
        time.sleep(PAUSE)
        text = [next_tokens[name]]
        start = time.perf_counter()
        for _ in range(n):
            text.append(engine.step(text[-1]))
        results[name].decode.append(n / (time.perf_counter() - start))
        results[name].texts.append(text)


def check_scalar(ours: Ours, path: Path, threads: int, prompt: list[int]) -> bool:
    """Logits of a few positions have the same bits as the scalar kernels', which tests compare with NumPy."""
    scalar = Ours(path, threads, 64, kernels="scalar", model=ours.model)
    best = Ours(path, threads, 64, model=ours.model)
    same = True
    for token_id in prompt[:3]:
        scalar.forward([token_id])
        best.forward([token_id])
        same &= np.array_equal(scalar.runner.logits(), best.runner.logits())
    return same


def check_prefill(ours: Ours, path: Path, threads: int, prompt: list[int]) -> bool:
    """A prompt at once gives the bits that it gives token by token."""
    short = prompt[:48]
    at_once = Ours(path, threads, 64, model=ours.model)
    at_once.forward(short)
    one_by_one = Ours(path, threads, 64, model=ours.model)
    for token_id in short:
        one_by_one.forward([token_id])
    return np.array_equal(at_once.runner.logits(), one_by_one.runner.logits())


def check_greedy(ours: Ours, prompt: list[int], text: list[int]) -> bool:
    """Each token of the measured greedy text is the arg max of the logits of the file's own head."""
    right = ours.prefill(prompt) == text[0] == ours.runner.logits()[0].argmax()
    for token_id, successor in itertools.pairwise(text):
        ours.forward([token_id])
        right &= successor == ours.runner.logits()[0].argmax()
    return bool(right)


def measure_memory(path: Path, threads: int, n_prompt: int, n_ctx: int) -> dict[str, float]:
    """Load and compute in this, a fresh process: its peak resident memory, and what it should consist of."""
    start = time.perf_counter()
    ours = Ours(path, threads, n_ctx)
    load_seconds = time.perf_counter() - start
    token = ours.prefill(random_prompt(n_prompt))
    for _ in range(8):
        token = ours.step(token)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    model = ours.model
    return {
        "load_seconds": load_seconds,
        "from_cache": model.from_cache,
        "peak_mb": peak / 1e6,
        "ternary_mb": model.ternary_bytes / 1e6,
        "head_mb": model.head_bytes / 1e6,
        "kv_mb": ours.runner.kv_bytes / 1e6,
    }


def memory_in_fresh_process(arguments: list[str]) -> dict[str, float]:
    command = [sys.executable, __file__, *arguments, "--memory"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def random_prompt(n: int) -> list[int]:
    return np.random.default_rng(7).integers(100_000, size=n).tolist()


def summary(values: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "all": values}


def processor_name() -> str:
    """As the system tells it, where it does."""
    try:
        names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def report(outcome: dict[str, Any]) -> None:
    checks, memory = outcome["checks"], outcome["memory"]
    print(f"{outcome['processor']}: {outcome['threads']} threads, {outcome['kernels']}")
    print(f"{'tokens/s':14}{'ours':>10}{'llama.cpp':>12}{'ratio':>8}   check of ours")
    passed = {
        "prefill": ("the bits of one token at a time", checks["prefill"]),
        "decode": ("every token the arg max of the file's own head", checks["greedy"]),
    }
    for key, (check, ok) in passed.items():
        line = f"{key + ' ' + str(outcome['n_' + key]):14}{outcome['ours'][key]['median']:10.1f}"
        if "llama_cpp" in outcome:
            line += f"{outcome['llama_cpp'][key]['median']:12.1f}{outcome['ratios'][key]:8.2f}"
        else:
            line += f"{'-':>12}{'-':>8}"
        print(f"{line}   {check}: {'yes' if ok else 'NO'}")
    print(f"the bits of the scalar kernels: {'yes' if checks['scalar'] else 'NO'}")
    print(f"the same text in every round: {'yes' if checks['stable'] else 'NO'}")
    print(
        f"read bandwidth {outcome['read_bandwidth']['median'] / 1e9:.1f} GB/s, "
        f"{outcome['bytes_per_token'] / 1e6:.0f} MB a token: decode runs at "
        f"{100 * outcome['share_of_dram_floor']['median']:.0f} % of what memory delivers"
    )
    for when, m in memory.items():
        allowed = m["ternary_mb"] + m["head_mb"] + m["kv_mb"] + 200
        print(
            f"{when} load {m['load_seconds']:.2f} s; peak memory {m['peak_mb']:.0f} MB "
            f"(ternary + head + KV + 200: {allowed:.0f} MB)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"), help="of the models")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--decode", type=int, default=64, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--memory", action="store_true", help="only print peak memory, as JSON")
    options = parser.parse_args()
    threads, n_ctx = options.threads, -(-(options.prompt + options.decode + 1) // 256) * 256
    path = options.folder / f"synthetic-2b-{options.layers}-i2_s.gguf"
    if options.memory:
        print(json.dumps(measure_memory(path, threads, options.prompt, n_ctx)))
        return

    path_theirs = options.folder / f"synthetic-2b-{options.layers}-tq2_0.gguf"
    for file, kind in ((path, TensorType.I2_S), (path_theirs, TensorType.TQ2_0)):
        if not file.exists():
            write_synthetic(file, kind, options.layers)
    # First, while this process is small: peak memory is inherited by child processes.
    path.with_suffix(".packed").unlink(missing_ok=True)
    memory = {when: memory_in_fresh_process(sys.argv[1:]) for when in ("cold", "warm")}

    prompt = random_prompt(options.prompt)
    ours = Ours(path, threads, n_ctx)
    engines: dict[str, Contender] = {"ours": ours}
    outcome: dict[str, Any] = {}
    try:
        theirs = LlamaCpp(path_theirs, threads, n_ctx)
        engines["llama_cpp"] = theirs
        outcome |= {"llama_cpp_version": theirs.version, "llama_cpp_features": theirs.features}
    except ImportError:
        print("llama-cpp-python is not installed: measuring this engine only")
    buffers = [np.ones(BUFFER, dtype=np.uint8) for _ in range(threads)]
    measure_round(engines, prompt[:64], 4, {name: Series() for name in engines})  # warm up
    results = {name: Series() for name in engines}
    bandwidth = []
    for index in range(options.rounds):
        bandwidth.append(read_bandwidth(threads, buffers))
        order = list(engines) if index % 2 == 0 else list(reversed(engines))
        measure_round({name: engines[name] for name in order}, prompt, options.decode, results)

    model = ours.model
    int8_head = model.head_bytes - 2 * VOCAB * HIDDEN
    bytes_per_token = model.ternary_bytes + int8_head
    shares = [
        rate * bytes_per_token / read for rate, read in zip(results["ours"].decode, bandwidth, strict=True)
    ]
    outcome |= {
        "processor": processor_name(),
        "threads": threads,
        "kernels": ours.runner.kernels,
        "layers": options.layers,
        "n_prefill": options.prompt,
        "n_decode": options.decode,
        "read_bandwidth": summary(bandwidth),
        "bytes_per_token": bytes_per_token,
        "share_of_dram_floor": summary(shares),
        "memory": memory,
        "checks": {
            "scalar": check_scalar(ours, path, threads, prompt),
            "prefill": check_prefill(ours, path, threads, prompt),
            "greedy": check_greedy(ours, prompt, results["ours"].texts[0]),
            "stable": all(text == series.texts[0] for series in results.values() for text in series.texts),
        },
    }
    for name, series in results.items():
        outcome[name] = {"prefill": summary(series.prefill), "decode": summary(series.decode)}
    if "llama_cpp" in results:
        outcome["ratios"] = {
            key: outcome["ours"][key]["median"] / outcome["llama_cpp"][key]["median"]
            for key in ("prefill", "decode")
        }
    report(outcome)
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=2) + "\n")
    if not all(outcome["checks"].values()):
        raise SystemExit("a check failed: the figures above mean nothing")


if __name__ == "__main__":
    main()
