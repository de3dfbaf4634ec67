"""One thread that owns a model's Runner and computes all sequences with it, many in one step.

Each step takes the next token of every sequence that is answering and fills up with pieces of prompts.
Sequences join and leave between steps (continuous batching). What a sequence is, and makes of its outputs,
is in `sequence`; where its keys and values are, in `prefix_cache`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from typing import NamedTuple

import numpy as np

from bitnet.errors import (
    BitNetError,
    CancelledError,
    ContextOverflowError,
    DeviceError,
    EngineClosedError,
    OverloadedError,
)
from bitnet.runtime.prefix_cache import PrefixCache
from bitnet.runtime.runner import Runner
from bitnet.runtime.sequence import Sequence
from bitnet.runtime.speculation import MAX_STEP_TOKENS, worthwhile
from bitnet.values import Health

logger = logging.getLogger("bitnet.scheduler")

# Prompt tokens computed beside answers at least; with the answers' own they make up whole tiles of this many,
# which is what the native products compute at a time: a token more costs as much as 32. With the 2B model
# and 8 answers on two cores, a step of 64 tokens takes 5 times as long as one without prompts, one of 128 14
# times; and a prompt is hardly ready later, because tiles cost the same in small and in large steps.
PROMPT_TILE = 32


class _Part(NamedTuple):
    """The next `n_tokens` pending tokens of a sequence, and guesses behind them: its share of a step."""

    sequence: Sequence
    n_tokens: int
    guesses: tuple[int, ...] = ()


class Scheduler:
    """Sequences wait in arrival order; up to `n_batch` run, as many as the KV blocks suffice for.

    Sequences are admitted when there are blocks for what they have so far. Should there be none for what
    they go on to, the one admitted last makes way: it waits again, before all others, and is computed anew.
    One that runs alone must fit, else it fails.

    The thread starts with the first sequence, sleeps while there is nothing to do and ends with `close`. It
    is a daemon, but its owner must call `close` before the interpreter ends: native code cannot be torn
    down midway.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        n_batch: int,
        max_waiting: int,
        prompt_tokens: int = PROMPT_TILE,
        longest: int | None = None,
    ) -> None:
        """prompt_tokens: those that are computed beside answers at least. longest: tokens of a sequence at
        most."""
        self._runner = runner
        self._n_batch = n_batch
        self._max_waiting = max_waiting
        self._prompt_tokens = prompt_tokens
        self._block_size = runner.block_size
        # A sequence that fits into its first block never needs another.
        self._grow = longest is None or longest > runner.block_size
        self._max_batch_tokens = runner.max_batch_tokens
        self._cache = PrefixCache(runner.n_blocks, runner.block_size)
        # Guards _waiting, _closing, _freed and _thread; signals work and closing. Reentrant, because a
        # garbage collection may call `close` inside this very thread.
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[Sequence] = deque()
        self._closing = False
        self._freed = False
        self._thread: threading.Thread | None = None
        self._cancel_noticed = False
        # Only the thread changes these.
        self._running: list[Sequence] = []  # in the order they were admitted
        self._in_step: tuple[Sequence, ...] = ()
        self._n_steps = 0
        self._n_tokens = 0

    def submit(self, *sequences: Sequence) -> None:
        """Queue sequences, all or none of them. Raises EngineClosedError and OverloadedError."""
        with self._changed:
            if self._closing:
                raise EngineClosedError("the model is closed; load it again")
            n_after = len(self._running) + len(self._waiting) + len(sequences)
            if n_after > self._n_batch + self._max_waiting:
                raise OverloadedError(
                    f"too many requests: {len(self._running)} under way, {len(self._waiting)} waiting; "
                    "try again later, or load the model with a larger n_batch or max_waiting"
                )
            self._waiting.extend(sequences)
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
                free_blocks=self._cache.n_free,
                cached_blocks=self._cache.n_known,
                n_blocks=self._cache.n_blocks,
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
        failure: BitNetError = EngineClosedError("the model was closed before the answer was complete")
        try:
            while self._admit():
                self._make_room()
                parts = self._plan()
                if parts:
                    self._compute(parts)
        except DeviceError as error:
            logger.error("%s", error)
            failure = error
        except BaseException as error:  # a defect of this module: nobody must wait for ever because of it
            logger.exception("the scheduler failed")
            failure = EngineClosedError(
                f"the model stopped because of an internal error ({error!r}); load it again"
            )
        with self._changed:
            self._closing = True
            sequences = [*self._running, *self._waiting]
            self._waiting.clear()
        self._running.clear()
        for sequence in sequences:
            self._release(sequence)
            sequence.fail(failure)

    def _admit(self) -> bool:
        """Wait for work, drop what was cancelled and take in what may run. False = close."""
        with self._changed:
            while not self._running and not self._waiting and not self._closing:
                self._changed.wait()
            if self._closing:
                return False
            if self._cancel_noticed:
                self._cancel_noticed = False
                for sequence in [*self._running, *self._waiting]:
                    if sequence.cancelled:
                        self._drop(sequence)
                        sequence.abort()
            while self._waiting and len(self._running) < self._n_batch:
                sequence = self._waiting[0]
                # A spare block for each that runs, so that none has to make way as soon as it is admitted.
                n_spare = len(self._running) if self._grow else 0
                n_reused = self._cache.admit(
                    sequence.table, sequence.token_ids, n_spare, self._runner.copy_block
                )
                if n_reused is None and self._running:
                    break
                self._waiting.popleft()
                if n_reused is None:
                    n_positions = self._cache.n_blocks * self._block_size
                    sequence.fail(ContextOverflowError(len(sequence.token_ids), n_positions))
                    continue
                if sequence.admitted_at is None:
                    sequence.admitted_at = time.perf_counter()
                    sequence.n_cached = n_reused
                sequence.n_computed = n_reused
                self._running.append(sequence)
        return True

    def _make_room(self) -> None:
        """Blocks for all tokens of who runs; where there are none, those admitted last make way."""
        index = 0
        while index < len(self._running):
            sequence = self._running[index]
            if len(sequence.table.blocks) * self._block_size >= len(sequence.token_ids):
                index += 1
            elif not self._cache.extend(sequence.table):
                self._preempt(self._running[-1])

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.n_computed = 0
        with self._changed:
            self._running.remove(sequence)
            self._waiting.appendleft(sequence)

    def _plan(self) -> list[_Part]:
        """Next tokens of answers first, so that no prompt delays them; then pieces of prompts.

        Half of those is for the oldest prompt, so that it is done some day; then the shortest get what they
        need, so that none of them waits for a long one. Of prompts with the same next block one computes it.
        """
        parts = [_Part(sequence, 1) for sequence in self._running if sequence.n_pending == 1]
        if len(parts) == len(self._running):
            return self._with_guesses(parts)
        budget = self._max_batch_tokens - len(parts)
        if parts:
            whole_tiles = -(-(len(parts) + self._prompt_tokens) // PROMPT_TILE) * PROMPT_TILE
            budget = min(budget, whole_tiles - len(parts))
        oldest, *others = [sequence for sequence in self._running if sequence.n_pending > 1]
        for sequence in (oldest, *others):
            sequence.n_computed = self._cache.adopt(sequence.table, sequence.token_ids, sequence.n_computed)
        reserved = min(oldest.n_pending, oldest.max_chunk, budget - budget // 2)
        left = budget - reserved
        under_way = {self._cache.next_block(oldest.table, oldest.token_ids)}
        for sequence in sorted(others, key=lambda other: other.n_pending):
            block = self._cache.next_block(sequence.table, sequence.token_ids)
            if left and (block is None or block not in under_way):
                under_way.add(block)
                parts.append(_Part(sequence, min(sequence.n_pending, sequence.max_chunk, left)))
                left -= parts[-1].n_tokens
        parts.append(_Part(oldest, min(oldest.n_pending, oldest.max_chunk, reserved + left)))
        return parts

    def _with_guesses(self, parts: list[_Part]) -> list[_Part]:
        """Guesses of further tokens along, where they pay: not beside prompts, which want the room."""
        limit = min(MAX_STEP_TOKENS, self._max_batch_tokens)
        if len(parts) >= limit:
            return parts
        odds = [sequence.odds(self._room(sequence, limit - len(parts))) for sequence, _, _ in parts]
        if not any(odds):
            return parts
        result = []
        for part, count in zip(parts, worthwhile(odds, limit), strict=True):
            sequence = part.sequence
            if count > len(sequence.table.blocks) * self._block_size - len(sequence.token_ids):
                self._cache.extend(sequence.table)
            result.append(part._replace(guesses=tuple(sequence.guess(count))) if count else part)
        return result

    def _room(self, sequence: Sequence, most: int) -> int:
        """Positions behind the sequence's last token that may be used for guesses, `most` at most.

        Those in its last block, and in one more if there are blocks that nobody is about to need.
        """
        left = len(sequence.table.blocks) * self._block_size - len(sequence.token_ids)
        if left < most and self._cache.n_free > 2 * len(self._running):
            left += self._block_size
        return min(left, most)

    def _compute(self, parts: list[_Part]) -> None:
        try:
            rows = self._forward(parts)
        except CancelledError:
            return  # nothing is lost: the next step drops who was cancelled and computes the others again
        except DeviceError:
            raise  # nobody is to blame, and nothing can be computed any more
        except Exception as error:
            if len(parts) == 1:
                self._fail(parts[0].sequence, error)
                return
            # One of them is to blame, and the others must not suffer.
            for part in parts:
                self._compute([part])
            return
        for (sequence, n_tokens, guesses), row in zip(parts, rows, strict=True):
            n_before = sequence.n_computed
            try:
                complete = sequence.advance(self._runner, row, n_tokens, guesses)
                if complete:
                    self._drop(sequence)
                    sequence.finish()
                elif sequence.n_computed // self._block_size > n_before // self._block_size:
                    self._cache.record(sequence.table, sequence.token_ids, sequence.n_computed)
            except DeviceError:
                raise
            except Exception as error:
                self._fail(sequence, error)

    def _forward(self, parts: list[_Part]) -> list[int]:
        """Compute the parts in one forward pass. Returns the first output row of each."""
        token_ids: list[int] = []
        outputs: list[int] = []
        rows: list[int] = []
        for sequence, count, guesses in parts:
            rows.append(len(outputs))
            outputs.extend(len(token_ids) + index for index in sequence.outputs(count))
            token_ids.extend(sequence.token_ids[sequence.n_computed : sequence.n_computed + count])
            outputs.extend(range(len(token_ids), len(token_ids) + len(guesses)))
            token_ids.extend(guesses)
        self._in_step = tuple(part.sequence for part in parts)
        try:
            # Whoever is cancelled from here on finds _in_step; who was before is seen here.
            if all(sequence.cancelled for sequence in self._in_step):
                raise CancelledError("every sequence of the step was cancelled")
            self._runner.forward(
                np.array(token_ids, np.int32),
                [part.sequence.table.blocks for part in parts],
                [part.sequence.n_computed for part in parts],
                [part.n_tokens + len(part.guesses) for part in parts],
                outputs,
            )
        finally:
            self._in_step = ()
        self._n_steps += 1
        self._n_tokens += len(token_ids)
        return rows

    def _release(self, sequence: Sequence) -> None:
        self._cache.release(sequence.table, sequence.token_ids, sequence.n_computed)

    def _drop(self, sequence: Sequence) -> None:
        """It neither runs nor waits any more."""
        with self._changed:
            (self._running if sequence in self._running else self._waiting).remove(sequence)
        self._release(sequence)

    def _fail(self, sequence: Sequence, error: BaseException) -> None:
        if sequence in self._running:
            self._drop(sequence)
        sequence.fail(error)
        self._cancel_noticed = True  # other answers of the same request end with it
