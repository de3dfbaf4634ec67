"""A sequence of tokens on its way through the model: what it needs computed, and what becomes of the outcome.

The scheduler decides when and with whom; it alone calls these methods, on its own thread.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence as TokenIds
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bitnet import _native
from bitnet.engines.generation import Outlet
from bitnet.errors import CancelledError
from bitnet.runtime.answer import AnswerText, Gathering
from bitnet.runtime.prefix_cache import BlockTable
from bitnet.runtime.speculation import PromptLookup
from bitnet.text.incremental import IncrementalDecoder
from bitnet.values import Delta, FinishReason, Reply, Request, Sampling, Timings, TokenLogprob, Usage

if TYPE_CHECKING:
    from bitnet.runtime.runner import Runner
    from bitnet.text.constraints import Constraint
    from bitnet.text.tokenizer import Tokenizer

# Rows of logits computed at once: 32 MiB for a vocabulary of 128,256, and soon over: others get their turn.
LOGITS_CHUNK = 64


class Sequence(ABC):
    """Tokens, how many of them are computed, and the KV blocks that hold those.

    n_cached: how many were found in the blocks of earlier sequences when it began.
    admitted_at: when the scheduler took it out of the queue first, in seconds of time.perf_counter.
    """

    outlet: Outlet[Any]

    def __init__(
        self, token_ids: TokenIds[int], salt: str | None = None, most_reused: int | None = None
    ) -> None:
        """salt: blocks are shared with sequences of the same salt; None = every token is computed here.
        most_reused: tokens that may come from there at most, for those that need the outputs of the rest."""
        self.token_ids = list(token_ids)
        self.n_computed = 0
        self.n_cached = 0
        self.table = BlockTable(salt, most_reused)
        self.admitted_at: float | None = None

    @property
    def max_chunk(self) -> int:
        """Tokens to compute in one step at most."""
        return 2**31 - 1

    @property
    def n_pending(self) -> int:
        return len(self.token_ids) - self.n_computed

    @property
    def cancelled(self) -> bool:
        return self.outlet.cancelled

    @abstractmethod
    def outputs(self, count: int) -> range:
        """Which of the next `count` pending tokens (0 is the first) need their output kept."""

    @abstractmethod
    def advance(self, runner: Runner, row: int, count: int, guesses: TokenIds[int] = ()) -> bool:
        """`count` tokens were computed; their outputs are in row `row` and after. True = that was all.

        guesses: tokens that were computed behind them, whose outputs follow; only if `guess` offered some.
        """

    def odds(self, most: int) -> list[float]:
        """How likely the next 1, 2, .. tokens behind the pending one can be guessed, `most` at most."""
        return []

    def guess(self, count: int) -> list[int]:
        """As many tokens behind the pending one, at most as many as `odds` had."""
        return []

    @abstractmethod
    def finish(self) -> None:
        """After the last step, and after the blocks were returned: hand out the result."""

    @abstractmethod
    def abort(self) -> None:
        """It was cancelled, perhaps before it began: hand out what there is."""

    def fail(self, error: BaseException) -> None:
        self.outlet.fail(error)


class GenerationSequence(Sequence):
    """A prompt and the answer growing behind it, which goes out as text."""

    def __init__(
        self,
        prompt_ids: TokenIds[int],
        request: Request,
        tokenizer: Tokenizer,
        n_ctx: int,
        constraint: Constraint | None = None,
        gathering: Gathering | None = None,
        index: int = 0,
        *,
        speculate: bool = False,
    ) -> None:
        """n_ctx: tokens the sequence may hold, more than the prompt has.
        constraint: what the answer must look like.
        gathering, index: where the answers of the request come together, and which of them this is.
        speculate: offer guesses of what comes next."""
        super().__init__(prompt_ids, request.cache_salt)
        self._gathering = gathering or Gathering(1)
        self._index = index
        self.outlet: Outlet[Reply] = self._gathering.outlet
        self._request = request
        self._tokenizer = tokenizer
        self._n_prompt = len(prompt_ids)
        room = n_ctx - self._n_prompt
        self._max_tokens = room if request.max_tokens is None else min(request.max_tokens, room)
        self._end_ids = frozenset(() if request.ignore_eos else tokenizer.end_ids)
        self._lookup = PromptLookup(self.token_ids) if speculate else None
        self._n_drafted = self._n_accepted = 0
        self._sampler = _sampler(request.sampling, prompt_ids, index)
        self._constraint = None if constraint is None else constraint.start()
        self._answer = AnswerText(request.stop, with_tools=bool(request.callable_tools))
        self._decoder = IncrementalDecoder(
            tokenizer,
            # What a constraint allows is the whole text, a leading space included.
            continuation=request.messages is None or constraint is not None,
            visible_ids=frozenset() if constraint is None else constraint.visible_ids,
        )
        self._reason: FinishReason = "length"
        self._logprobs: list[TokenLogprob] = []
        self._submitted_at = time.perf_counter()
        self._first_token_at: float | None = None

    def outputs(self, count: int) -> range:
        return range(count - 1, count) if count == self.n_pending else range(0)

    def odds(self, most: int) -> list[float]:
        if self._lookup is None:
            return []
        # The last token that may be generated is not computed any more.
        return self._lookup.odds(min(most, self._max_tokens - self._n_generated - 1))

    def guess(self, count: int) -> list[int]:
        assert self._lookup is not None
        return self._lookup.guesses(count)

    def advance(self, runner: Runner, row: int, count: int, guesses: TokenIds[int] = ()) -> bool:
        self.n_computed += count
        if self.n_pending:
            return False
        self._n_drafted += len(guesses)
        for index, guess in enumerate((*guesses, None)):
            sampled = self._sample(runner, row + index)
            if self._first_token_at is None:
                self._first_token_at = time.perf_counter()
            if self._take(sampled):
                return True
            if sampled.token_id != guess:
                break  # what was computed behind a wrong guess is computed anew, in its place
            self.n_computed += 1
            self._n_accepted += 1
        return False

    def _take(self, sampled: _native.Sampled) -> bool:
        """The next token of the answer. True = the answer is complete."""
        request = self._request
        if sampled.token_id in self._end_ids:
            self._reason = "stop"
            return True
        self._sampler.accept(sampled.token_id)
        self.token_ids.append(sampled.token_id)
        if self._lookup is not None:
            self._lookup.appended()
        logprobs = (self._logprob(sampled),) if request.logprobs else ()
        self._logprobs.extend(logprobs)
        text, tool_calls = self._answer.feed(self._decoder.feed(sampled.token_id))
        self.outlet.push(Delta(text, (sampled.token_id,), logprobs, tool_calls, self._index))
        constraint = self._constraint
        if self._answer.stop_string is not None or (constraint is not None and constraint.is_finished):
            self._reason = "stop"
            return True
        if self._n_generated < self._max_tokens:
            return False
        if constraint is not None and constraint.is_accepting:
            self._reason = "stop"  # whole, though more could follow
        return True

    def _sample(self, runner: Runner, row: int) -> _native.Sampled:
        n_logprobs = self._request.top_logprobs if self._request.logprobs else -1
        constraint = self._constraint
        if constraint is None:
            return runner.sample(row, self._sampler, n_logprobs)
        while True:  # a token may be refused, a few times at most
            self._sampler.set_mask(constraint.mask(self._max_tokens - self._n_generated))
            sampled = runner.sample(row, self._sampler, n_logprobs)
            if constraint.accept(sampled.token_id):
                return sampled

    @property
    def _n_generated(self) -> int:
        return len(self.token_ids) - self._n_prompt

    def _logprob(self, sampled: _native.Sampled) -> TokenLogprob:
        token_bytes = self._tokenizer.token_bytes
        # Of a list, because a generator takes half as long again, and this is most of a step with logprobs.
        top = tuple([TokenLogprob(token_id, token_bytes(token_id), value) for token_id, value in sampled.top])
        return TokenLogprob(sampled.token_id, token_bytes(sampled.token_id), sampled.logprob, top)

    def abort(self) -> None:
        self._reason = "cancelled"
        self.finish()

    def finish(self) -> None:
        if self._answer.stop_string is None:
            # What was held back because a character, a stop string or a call might have been completed.
            text, tool_calls = self._answer.flush(self._decoder.flush())
            if text or tool_calls:
                self.outlet.push(Delta(text, tool_calls=tool_calls, index=self._index))
            if self._answer.stop_string is not None:
                self._reason = "stop"
        calls = self._answer.tool_calls
        reply = Reply(
            text=self._answer.text,
            token_ids=tuple(self.token_ids[self._n_prompt :]),
            finish_reason="tool_calls" if calls and self._reason == "stop" else self._reason,
            usage=Usage(self._n_prompt, self._n_generated, self.n_cached),
            timings=self._timings(),
            logprobs=tuple(self._logprobs) if self._request.logprobs else None,
            stop_string=self._answer.stop_string,
            tool_calls=calls,
        )
        self._gathering.finish(self._index, reply)

    def fail(self, error: BaseException) -> None:
        super().fail(error)
        self.outlet.cancelled = True  # the other answers of the request are of no use

    def _timings(self) -> Timings:
        now = time.perf_counter()
        admitted = now if self.admitted_at is None else self.admitted_at
        first = now if self._first_token_at is None else self._first_token_at
        prefill, decode = first - admitted, now - first
        # One that was preempted may have nothing computed at the moment.
        n_prefilled = self._n_prompt if self._n_generated else min(self.n_computed, self._n_prompt)
        return Timings(
            queue=admitted - self._submitted_at,
            prefill=prefill,
            decode=decode,
            prefill_tokens_per_second=max(0, n_prefilled - self.n_cached) / prefill if prefill > 0 else 0.0,
            # The first token came out of the prefill.
            decode_tokens_per_second=max(0, self._n_generated - 1) / decode if decode > 0 else 0.0,
            drafted_tokens=self._n_drafted,
            accepted_tokens=self._n_accepted,
        )


def _sampler(sampling: Sampling, prompt_ids: TokenIds[int], index: int) -> _native.Sampler:
    seed = secrets.randbits(64) if sampling.seed is None else (sampling.seed + index) % 2**64
    return _native.Sampler(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=seed,
        logit_bias=sampling.logit_bias,
        prompt_ids=prompt_ids,
    )


class _Measured(Sequence):
    """Tokens of which something is measured at every position from `first` on."""

    def __init__(self, token_ids: TokenIds[int], first: int, salt: str | None) -> None:
        super().__init__(token_ids, salt, most_reused=first)
        self._first = first

    @property
    def max_chunk(self) -> int:
        return LOGITS_CHUNK + max(0, self._first - self.n_computed)

    def outputs(self, count: int) -> range:
        return range(min(count, max(0, self._first - self.n_computed)), count)

    def _advance(self, count: int) -> slice:
        """Which of the measurements belong to the `count` tokens that were computed."""
        begin = max(self.n_computed, self._first)
        self.n_computed += count
        return slice(begin - self._first, max(begin, self.n_computed) - self._first)


class LogitsSequence(_Measured):
    """Tokens whose logits are wanted: [n_tokens - first, vocab_size]."""

    def __init__(
        self, token_ids: TokenIds[int], vocab_size: int, *, first: int = 0, salt: str | None = None
    ) -> None:
        super().__init__(token_ids, first, salt)
        self.outlet: Outlet[NDArray[np.float32]] = Outlet()
        self._logits = np.empty((len(token_ids) - first, vocab_size), np.float32)

    def advance(self, runner: Runner, row: int, count: int, guesses: TokenIds[int] = ()) -> bool:
        part = self._advance(count)
        self._logits[part] = runner.logits()[row : row + part.stop - part.start]
        return self.n_pending == 0

    def finish(self) -> None:
        self.outlet.finish(self._logits)

    def abort(self) -> None:
        self.outlet.fail(CancelledError("the computation of logits was cancelled"))


class LogprobsSequence(_Measured):
    """A text whose tokens' log-probabilities are wanted, from token `first` on: [n_tokens - first], f64."""

    def __init__(self, token_ids: TokenIds[int], *, first: int = 1) -> None:
        """first: at least 1, for nothing precedes token 0."""
        super().__init__(token_ids[:-1], first - 1, None)
        self.outlet: Outlet[NDArray[np.float64]] = Outlet()
        self._targets = np.array(token_ids[first:], np.int32)
        self._logprobs = np.empty(len(self._targets))

    def advance(self, runner: Runner, row: int, count: int, guesses: TokenIds[int] = ()) -> bool:
        part = self._advance(count)
        if part.stop > part.start:
            self._logprobs[part] = runner.logprobs(self._targets[part], row)
        return self.n_pending == 0

    def finish(self) -> None:
        self.outlet.finish(self._logprobs)

    def abort(self) -> None:
        self.outlet.fail(CancelledError("the computation of log-probabilities was cancelled"))
