"""The pipeline that makes the bundled model lives in examples/train_tiny."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "train_tiny"))
