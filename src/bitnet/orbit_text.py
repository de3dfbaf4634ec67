"""Text that survives the clean-up of Orbit's bundled bitnet provider.

That provider passes every answer, and every piece of a streamed one, through
`" ".join(text.replace(stop, "").split("<")[0].strip().split())`. It would cut an answer at its first "<"
(HTML, `a < b`), delete stop strings in the middle, and remove line breaks, indentation and the spaces between
streamed pieces. Nothing of that is needed here: special tokens never reach the text, and stop strings end it.
So the text is handed over as a str whose replace, strip and split give the whole text back: then the clean-up
changes nothing.
"""

from __future__ import annotations

from typing import Any


class OrbitText(str):
    """A str in every other respect; `str(text)` is a plain copy."""

    __slots__ = ()

    def replace(self, *arguments: Any, **options: Any) -> OrbitText:
        return self

    def strip(self, *arguments: Any) -> OrbitText:
        return self

    def split(self, *arguments: Any, **options: Any) -> list[str]:
        return [self]
