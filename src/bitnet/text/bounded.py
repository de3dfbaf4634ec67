"""Runs llguidance's compiler where a hostile grammar can do no harm: with a large stack, and not for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from bitnet.errors import ConstraintError

# Milliseconds on an idle machine; a busy one must not refuse what that would take.
COMPILE_SECONDS = 3.0
# The compiler recurses: rules that refer to each other in a chain of 1,000 overflow a stack of 1 MB, and that
# ends the process.
_STACK_BYTES = 64 << 20

_Result = TypeVar("_Result")
_lock = threading.Lock()


def bounded(call: Callable[[], _Result]) -> _Result:
    """What `call` returns or raises; ConstraintError if that takes more than 3 seconds.

    A call that takes longer cannot be stopped and goes on, unheard, until it is done.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # llguidance's panics are no Exception
            errors.append(error)

    with _lock:
        previous = threading.stack_size(_STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="bitnet-grammar", daemon=True)
            thread.start()
        finally:
            threading.stack_size(previous)
    thread.join(COMPILE_SECONDS)
    if results:
        return results[0]
    if errors and isinstance(errors[0], Exception):
        raise errors[0]
    if errors:
        raise ConstraintError(f"the schema or grammar cannot be compiled: {errors[0]}")
    raise ConstraintError(
        f"compiling the schema or grammar took more than {COMPILE_SECONDS:g} s: simplify it"
    )
