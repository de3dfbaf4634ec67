"""In a server under test, by way of PYTHONPATH: writes to $BITNET_PROBE what the engines have computed."""

import os
import sys
import threading
import time
from pathlib import Path


def _watch(path: Path) -> None:
    """A line for each change: seconds, requests running, steps computed."""
    last = None
    with path.open("a", buffering=1) as out:
        while True:
            time.sleep(0.001)
            registry = sys.modules.get("bitnet.engines.registry")
            engines = [entry.engine for entry in list(getattr(registry, "_all_entries", ()))]
            states = [engine.health() for engine in engines if engine is not None]
            now = (sum(state.running for state in states), sum(state.n_steps for state in states))
            if now != last:
                last = now
                out.write(f"{time.time()} {now[0]} {now[1]}\n")


if os.environ.get("BITNET_PROBE"):
    threading.Thread(target=_watch, args=(Path(os.environ["BITNET_PROBE"]),), daemon=True).start()
