"""What an NVIDIA GPU makes of a random model of the dimensions of BitNet b1.58 2B-4T, beside what it should.

    python benchmarks/gpu.py [--folder build/benchmarks] [--layers 30] [--device 0] [--json FILE]

First everything is compared with the CPU: a failed check is a failed run, and nothing is timed. The targets
are for one H200.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bitnet.engines import gpu, gpu_check
from synthetic_2b import LAYERS, write_synthetic

# (target, whether less is better), by the name of the measurement.
TARGETS = {
    "product": (60.0, False),
    "prefill": (60_000.0, False),
    "decode": (1.0, True),
    "decode of 64 together": (15_000.0, False),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--layers", type=int, default=LAYERS, help="fewer for a quick trial")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--json", type=Path, help="keep every figure here")
    arguments = parser.parse_args()

    found = gpu.find()
    if found.library is None or found.problem:
        print(f"there is no GPU: {found.problem}", file=sys.stderr)
        return 1
    device = found.devices[arguments.device]
    print(f"{device.name}, compute capability {device.capability}, {device.n_processors} processors")

    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / f"synthetic-2b-i2_s-{arguments.layers}.gguf"
    if not path.exists():
        write_synthetic(path, n_layers=arguments.layers)
    checks = []
    for result in gpu_check.compare(path, found.library, arguments.device):
        print(f"{'ok' if result.passed else 'FAILED':8}{result.name}: {result.detail}", flush=True)
        checks.append(result)
    if not all(result.passed for result in checks):
        return 1

    figures = []
    for speed in gpu_check.speeds(path, found.library, arguments.device):
        target, less = TARGETS[speed.name]
        reached = speed.value <= target if less else speed.value >= target
        bound = f"{'at most' if less else 'at least'} {target:g} {speed.unit}"
        print(
            f"{speed.name}: {speed.detail}; target: {bound}: {'reached' if reached else 'MISSED'}", flush=True
        )
        figures.append({"name": speed.name, "value": speed.value, "unit": speed.unit, "target": target})
    if arguments.json:
        report = {
            "device": device.name,
            "layers": arguments.layers,
            "checks": [{"name": result.name, "detail": result.detail} for result in checks],
            "figures": figures,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
