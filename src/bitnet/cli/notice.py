"""The line that says which model answers where none was named."""

from __future__ import annotations

import os
import sys

_BUNDLED = (
    "bitnet: this is the small bundled model, good for a try; a real one: -m 2b-4t (1.1 GiB, "
    "downloaded once); bitnet list --remote shows more"
)


def note_bundled(model: str | None) -> None:
    """One dim line on the terminal if the bundled model answers; nothing where stderr goes elsewhere."""
    if model is None and sys.stderr.isatty():
        plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
        print(_BUNDLED if plain else f"\x1b[2m{_BUNDLED}\x1b[0m", file=sys.stderr)
