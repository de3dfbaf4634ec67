"""How much one rendering of a chat template may do and make. Who spends it is left to template_sandbox.py."""

from __future__ import annotations

import time
from typing import Any

from bitnet.errors import ChatTemplateError

# Loop rounds, calls, lookups: about half a second. Templates take some 30 a message.
MAX_STEPS = 300_000
# Of this thread's processor time, so that a busy machine does not make a template fail.
MAX_SECONDS = 1.0
# In characters; each grows with the input by the second number.
_MAX_VALUE = 1_000_000, 8  # any one string or list
_MAX_WORK = 32_000_000, 256  # all that is made or read
_MAX_OUTPUT = 1_000_000, 8
# A list item counts as this many characters, which is what it takes in memory and in time.
ITEM_SIZE = 8


class Budget:
    """What one rendering may still spend. All methods raise ChatTemplateError when it is used up."""

    def __init__(self, input_size: int) -> None:
        """`input_size`: of the messages and tools, in characters."""
        self.max_value, self._work, self.max_output = (
            base + factor * input_size for base, factor in (_MAX_VALUE, _MAX_WORK, _MAX_OUTPUT)
        )
        self._steps = MAX_STEPS
        self._deadline = time.thread_time() + MAX_SECONDS

    def step(self, size: int = 1) -> None:
        """One operation on a value of the size of `size` characters."""
        self._steps -= 1
        self._work -= size
        if self._steps < 0 or self._work < 0:
            self._stop()
        if self._steps % 64 == 0 or size > 4096:
            self._check_time()

    def allow(self, size: int) -> None:
        """A value of the size of `size` characters is about to be made."""
        if size > self.max_value:
            raise ChatTemplateError(
                f"the chat template makes a value of the size of {size} characters; "
                f"at most {self.max_value} are allowed"
            )
        self.step(size)

    def measure(self, value: Any) -> tuple[int, int]:
        """The size of a value written out, shared parts counted each time, and its depth."""
        size, deepest, n_visited = 0, 0, 0
        rest = [(value, 1)]
        while rest:
            item, depth = rest.pop()
            deepest = max(deepest, depth)
            n_visited += 1
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, (list, tuple)):
                size += ITEM_SIZE * len(item)
                rest.extend((part, depth + 1) for part in item)
            elif isinstance(item, dict):
                size += 2 * ITEM_SIZE * len(item)
                rest.extend((part, depth + 1) for pair in item.items() for part in pair)
            if size > self.max_value:
                self.allow(size)
        if n_visited > 256:
            self._check_time()
        return size, deepest

    def _check_time(self) -> None:
        if time.thread_time() > self._deadline:
            self._stop()

    def _stop(self) -> None:
        raise ChatTemplateError(
            f"the chat template does too much work: it was stopped after {MAX_STEPS - self._steps} steps "
            f"(at most {MAX_STEPS}, and {MAX_SECONDS:g} seconds)"
        )
