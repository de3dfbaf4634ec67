"""Stands before Orbit's own module `main` on the path of `python -m orbit_bitnet serve`.

Worker processes (`performance.workers`) import that module by its name, and nothing else that could tell them
of this package.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import ai_services
from orbit_bitnet.registration import replace_bundled

replace_bundled()

_spec = importlib.util.spec_from_file_location(
    "orbit_main", Path(ai_services.__file__).parents[1] / "main.py"
)
assert _spec is not None
assert _spec.loader is not None
_orbits = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_orbits)

main = _orbits.main
create_app = _orbits.create_app
