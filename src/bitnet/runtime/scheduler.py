"""One thread that owns a model's Runner and computes all sequences with it, many in one step.

Each step takes the next token of every sequence that is answering and fills up with pieces of prompts.
Sequences join and leave between steps (continuous batching). What a sequence is, and makes of its outputs,
is in `sequence`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from typing import NamedTuple

import numpy as np

from bitnet import _native
from bitnet.errors import CancelledError, EngineClosedError, OverloadedError
from bitnet.runtime.sequence import Sequence
from bitnet.values import Health

logger = logging.getLogger("bitnet.scheduler")


class _Part(NamedTuple):
    """The next `n_tokens` pending tokens of a sequence, to be computed in one step."""

    sequence: Sequence
    n_tokens: int


class Scheduler:
    """Sequences wait in arrival order; up to `n_batch` run, for whose whole contexts the KV blocks suffice.

    The thread starts with the first sequence, sleeps while there is nothing to do and ends with `close`. It
    is a daemon, but its owner must call `close` before the interpreter ends: native code cannot be torn
    down midway.
    """

    def __init__(self, runner: _native.Runner, *, n_batch: int, max_waiting: int) -> None:
        self._runner = runner
        self._n_batch = n_batch
        self._max_waiting = max_waiting
        self._block_size = runner.block_size
        self._n_blocks = runner.n_blocks
        self._free_blocks = list(reversed(range(runner.n_blocks)))
        # Guards _waiting, _closing, _freed and _thread; signals work and closing. Reentrant, because a
        # garbage collection may call `close` inside this very thread.
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[Sequence] = deque()
        self._closing = False
        self._freed = False
        self._thread: threading.Thread | None = None
        self._cancel_noticed = False
        # Only the thread changes these.
        self._running: list[Sequence] = []
        self._in_step: tuple[Sequence, ...] = ()
        self._n_steps = 0
        self._n_tokens = 0

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises EngineClosedError and OverloadedError."""
        with self._changed:
            if self._closing:
                raise EngineClosedError("the model is closed; load it again")
            if len(self._running) + len(self._waiting) >= self._n_batch + self._max_waiting:
                raise OverloadedError(
                    f"too many requests: {len(self._running)} under way, {len(self._waiting)} waiting; "
                    "try again later, or load the model with a larger n_batch or max_waiting"
                )
            self._waiting.append(sequence)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bitnet-scheduler", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def notice_cancel(self) -> None:
        """A sequence was marked as cancelled: stop the step if it computes nothing else. Takes no lock."""
        self._cancel_noticed = True
        in_step = self._in_step
        if in_step and all(sequence.cancelled for sequence in in_step):
            # If that step is over by now, this interrupts the next one, which is then simply computed again.
            with contextlib.suppress(AttributeError):  # closed meanwhile
                self._runner.cancel()

    def health(self) -> Health:
        with self._changed:
            return Health(
                closed=self._closing,
                running=len(self._running),
                waiting=len(self._waiting),
                free_blocks=len(self._free_blocks),
                n_blocks=self._n_blocks,
                n_steps=self._n_steps,
                n_tokens=self._n_tokens,
            )

    def close(self) -> None:
        """End all sequences with EngineClosedError and wait for the thread. May be repeated."""
        with self._changed:
            self._closing = True
            thread = self._thread
            if not self._freed:
                self._runner.cancel()
            self._changed.notify_all()
        if thread is threading.current_thread():
            return
        if thread is not None:
            thread.join()
        with self._changed:
            if not self._freed:
                self._freed = True
                del self._runner  # and with it the model's memory

    def _run(self) -> None:
        message = "the model was closed before the answer was complete"
        try:
            while self._admit():
                self._step()
        except BaseException as error:  # a defect of this module: nobody must wait for ever because of it
            logger.exception("the scheduler failed")
            message = f"the model stopped because of an internal error ({error!r}); load it again"
        with self._changed:
            self._closing = True
            sequences = [*self._running, *self._waiting]
            self._waiting.clear()
        self._running.clear()
        for sequence in sequences:
            self._release(sequence)
            sequence.fail(EngineClosedError(message))

    def _admit(self) -> bool:
        """Wait for work and take in what may run. False = close."""
        with self._changed:
            while not self._running and not self._waiting and not self._closing:
                self._changed.wait()
            if self._closing:
                return False
            if self._cancel_noticed:
                self._cancel_noticed = False
                for sequence in [waiting for waiting in self._waiting if waiting.cancelled]:
                    self._waiting.remove(sequence)
                    sequence.abort()
            while self._waiting and len(self._running) < self._n_batch:
                sequence = self._waiting.popleft()
                sequence.admitted_at = time.perf_counter()
                self._running.append(sequence)
        return True

    def _step(self) -> None:
        for sequence in [running for running in self._running if running.cancelled]:
            self._leave(sequence)
            sequence.abort()
        parts = self._plan()
        if parts:
            self._compute(parts)

    def _plan(self) -> list[_Part]:
        """Next tokens of answers first, so that no prompt delays them; then prompts, in arrival order."""
        budget = self._runner.max_batch_tokens
        parts = [_Part(sequence, 1) for sequence in self._running if sequence.n_pending == 1]
        budget -= len(parts)
        for sequence in self._running:
            if sequence.n_pending > 1 and budget > 0:
                count = min(sequence.n_pending, sequence.max_chunk, budget)
                parts.append(_Part(sequence, count))
                budget -= count
        return parts

    def _compute(self, parts: list[_Part]) -> None:
        try:
            rows = self._forward(parts)
        except CancelledError:
            return  # nothing is lost: the next step drops who was cancelled and computes the others again
        except Exception as error:
            if len(parts) == 1:
                self._fail(parts[0].sequence, error)
                return
            # One of them is to blame, and the others must not suffer.
            for part in parts:
                self._compute([part])
            return
        for part, row in zip(parts, rows, strict=True):
            try:
                if part.sequence.advance(self._runner, row, part.n_tokens):
                    self._leave(part.sequence)
                    part.sequence.finish()
            except Exception as error:
                self._fail(part.sequence, error)

    def _forward(self, parts: list[_Part]) -> list[int]:
        """Compute the parts in one forward pass. Returns the first output row of each."""
        token_ids: list[int] = []
        outputs: list[int] = []
        rows: list[int] = []
        for sequence, count in parts:
            self._reserve(sequence, sequence.n_computed + count)
            rows.append(len(outputs))
            outputs.extend(len(token_ids) + index for index in sequence.outputs(count))
            token_ids.extend(sequence.token_ids[sequence.n_computed : sequence.n_computed + count])
        self._in_step = tuple(part.sequence for part in parts)
        try:
            # Whoever is cancelled from here on finds _in_step; who was before is seen here.
            if all(sequence.cancelled for sequence in self._in_step):
                raise CancelledError("every sequence of the step was cancelled")
            self._runner.forward(
                np.array(token_ids, np.int32),
                [part.sequence.blocks for part in parts],
                [part.sequence.n_computed for part in parts],
                [part.n_tokens for part in parts],
                outputs,
            )
        finally:
            self._in_step = ()
        self._n_steps += 1
        self._n_tokens += len(token_ids)
        return rows

    def _reserve(self, sequence: Sequence, n_tokens: int) -> None:
        """KV blocks for the first n_tokens tokens. There is always one: n_batch whole contexts fit."""
        while len(sequence.blocks) * self._block_size < n_tokens:
            sequence.blocks.append(self._free_blocks.pop())

    def _release(self, sequence: Sequence) -> None:
        self._free_blocks.extend(sequence.blocks)
        sequence.blocks.clear()

    def _leave(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)

    def _fail(self, sequence: Sequence, error: BaseException) -> None:
        if sequence in self._running:
            self._leave(sequence)
        sequence.fail(error)
