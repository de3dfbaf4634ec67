"""Is a model right? Perplexity on a text, and two models side by side on the same text.

    result = perplexity(model, text)        # a bitnet.BitNet with a model file
    print(result.perplexity, "+-", result.error)
    result = compare(reference, model, text)
    print(result.mean_divergence, result.top1_agreement)

A text longer than a window is cut into windows, of which each token is scored in one:

    "sliding"    Windows overlap; the first scores all of its tokens, each further one its last `stride`. So
                 every token is scored exactly once, with window - stride tokens before it at least. This is
                 how transformers' documentation measures models of a fixed context ("Perplexity of
                 fixed-length models").
    "llama.cpp"  Windows do not overlap, and score their second half: what llama-perplexity does, for numbers
                 that can be held against its. What does not fill a window at the end is left out.

Every window begins with the token that the model puts before a text (BOS), if it has one.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from bitnet import _native
from bitnet.errors import ValidationError
from bitnet.values import as_choice, as_integer, as_text

if TYPE_CHECKING:
    from bitnet.model import BitNet

Chunking = Literal["sliding", "llama.cpp"]
DEFAULT_WINDOW = 512
# Positions compared at a time: two matrices of 32 MiB with a vocabulary of 128,256.
_POSITIONS = 64


class Progress(NamedTuple):
    """done of total windows; perplexity: of what was scored so far (by model A, if two are compared)."""

    done: int
    total: int
    perplexity: float


OnProgress = Callable[[Progress], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """perplexity: exp(mean_nll). mean_nll: mean negative log-likelihood of a token, in nats.

    mean_nll_error: its standard error, s / sqrt(n_tokens), as if tokens were independent; error: that of the
    perplexity, to first order perplexity * mean_nll_error.
    n_tokens: tokens scored; n_computed: tokens computed for that, at tokens_per_second.
    """

    perplexity: float
    error: float
    mean_nll: float
    mean_nll_error: float
    n_tokens: int
    n_computed: int
    n_windows: int
    window: int
    stride: int
    chunking: Chunking
    seconds: float
    tokens_per_second: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Model B against model A, the reference, over the same tokens.

    mean_divergence: mean Kullback-Leibler divergence sum(p_a * log(p_a / p_b)) of the distributions of the
    next token, in nats; divergence_error: its standard error; max_divergence: of any one position.
    top1_agreement: the part of positions where both find the same token likeliest.
    largest_logit_difference: max |a - b| over all positions and tokens.
    """

    mean_divergence: float
    divergence_error: float
    max_divergence: float
    top1_agreement: float
    perplexity_a: float
    perplexity_b: float
    largest_logit_difference: float
    n_tokens: int
    n_windows: int
    window: int
    stride: int
    chunking: Chunking
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Window(NamedTuple):
    """Token ids to compute, and the index of the first that is scored."""

    token_ids: tuple[int, ...]
    first: int


def perplexity(
    model: BitNet,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    chunking: Chunking = "sliding",
    on_progress: OnProgress | None = None,
) -> Perplexity:
    """The perplexity of a text.

    window: tokens computed together; None = 512, or the model's n_ctx if that is smaller. stride: tokens that
    a sliding window moves on by; None = half of the window. on_progress: called after each window.
    Raises ValidationError for a text without two tokens, and a window that does not fit into n_ctx.
    """
    how = _Windows.of(model, text, window, stride, chunking)
    started_at = time.perf_counter()
    parts: list[NDArray[np.float64]] = []
    n_computed = 0
    for index, part in enumerate(how.plan):
        parts.append(-model.logprobs(part.token_ids, first=part.first))
        n_computed += len(part.token_ids)
        if on_progress is not None:
            on_progress(Progress(index + 1, len(how.plan), _perplexity(parts)))
    seconds = time.perf_counter() - started_at
    losses = np.concatenate(parts)
    mean, error = _mean(losses)
    return Perplexity(
        perplexity=_exp(mean),
        error=_exp(mean) * error,
        mean_nll=mean,
        mean_nll_error=error,
        n_tokens=len(losses),
        n_computed=n_computed,
        n_windows=len(how.plan),
        window=how.window,
        stride=how.stride,
        chunking=chunking,
        seconds=seconds,
        tokens_per_second=n_computed / seconds,
    )


def compare(
    model_a: BitNet,
    model_b: BitNet,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    chunking: Chunking = "sliding",
    on_progress: OnProgress | None = None,
) -> Comparison:
    """How far model B is from model A, the reference, on a text. The options are those of `perplexity`.

    Raises ValidationError if the models have different vocabularies, or cut the text into different tokens.
    """
    _check_alike(model_a, model_b, text)
    if window is None:
        window = min(DEFAULT_WINDOW, model_a.n_ctx, model_b.n_ctx)
    how = _Windows.of(model_a, text, window, stride, chunking)
    _check_window(how.window, model_b)
    started_at = time.perf_counter()
    parts: list[NDArray[np.float64]] = []
    for index, part in enumerate(how.plan):
        parts += _compared(model_a, model_b, part)
        if on_progress is not None:
            losses = [-rows[:, _LOGPROB_A] for rows in parts]
            on_progress(Progress(index + 1, len(how.plan), _perplexity(losses)))
    rows = np.concatenate(parts)
    mean, error = _mean(rows[:, _DIVERGENCE])
    return Comparison(
        mean_divergence=mean,
        divergence_error=error,
        max_divergence=float(rows[:, _DIVERGENCE].max()),
        top1_agreement=float((rows[:, _TOP_A] == rows[:, _TOP_B]).mean()),
        perplexity_a=_exp(float(-rows[:, _LOGPROB_A].mean())),
        perplexity_b=_exp(float(-rows[:, _LOGPROB_B].mean())),
        largest_logit_difference=float(rows[:, _LARGEST].max()),
        n_tokens=len(rows),
        n_windows=len(how.plan),
        window=how.window,
        stride=how.stride,
        chunking=chunking,
        seconds=time.perf_counter() - started_at,
    )


# Columns of _native.compare_logits.
_DIVERGENCE, _LARGEST, _TOP_A, _TOP_B, _LOGPROB_A, _LOGPROB_B = range(6)


def _compared(model_a: BitNet, model_b: BitNet, part: Window) -> Iterator[NDArray[np.float64]]:
    """The scored positions of a window, some at a time. What precedes them is computed once."""
    salt = uuid.uuid4().hex
    ids = part.token_ids
    for begin in range(part.first, len(ids), _POSITIONS):
        end = min(begin + _POSITIONS, len(ids))
        a, b = (
            model.logits(ids[: end - 1], first=begin - 1, cache_salt=salt) for model in (model_a, model_b)
        )
        yield _native.compare_logits(a, b, np.array(ids[begin:end], np.int32))


def _check_alike(model_a: BitNet, model_b: BitNet, text: str) -> None:
    a, b = model_a.vocabulary(), model_b.vocabulary()
    if len(a) != len(b):
        raise ValidationError(
            f"the models have different vocabularies ({len(a)} and {len(b)} tokens): their distributions "
            "cannot be compared; compare a model with another version of itself"
        )
    if a != b:
        token_id = next(i for i in range(len(a)) if a[i] != b[i])
        raise ValidationError(
            f"the models have different vocabularies (token {token_id} is {a[token_id]!r} in one and "
            f"{b[token_id]!r} in the other): their distributions cannot be compared; compare a model with "
            "another version of itself"
        )
    if model_a.tokenize(text) != model_b.tokenize(text):
        raise ValidationError(
            "the models have the same vocabulary, but cut the text into different tokens: one of the files "
            "names a wrong pre-tokenizer, or none (see bitnet show); give both the same, with "
            'metadata_overrides={"tokenizer.ggml.pre": ...}'
        )


def _check_window(window: int, model: BitNet) -> None:
    if window > model.n_ctx:
        raise ValidationError(
            f"a window of {window} tokens does not fit into n_ctx={model.n_ctx}; choose a smaller window, or "
            "load the model with a larger n_ctx",
            field="window",
        )


class _Windows(NamedTuple):
    window: int
    stride: int
    plan: list[Window]

    @classmethod
    def of(
        cls, model: BitNet, text: str, window: int | None, stride: int | None, chunking: Chunking
    ) -> _Windows:
        as_choice("chunking", chunking, get_args(Chunking))
        if window is None:
            window = min(DEFAULT_WINDOW, model.n_ctx)
        as_integer("window", window, 4, 2**31 - 1)
        _check_window(window, model)
        if chunking == "sliding":
            stride = window // 2 if stride is None else as_integer("stride", stride, 1, window - 1)
        elif stride is not None:
            raise ValidationError('chunking="llama.cpp" has no stride: leave it out', field="stride")
        else:
            stride = window
        prefix, ids = _tokens(model, as_text("text", text))
        plan = list((_sliding if chunking == "sliding" else _halves)(prefix, ids, window, stride))
        if not plan:
            least = "two tokens" if chunking == "sliding" else f"{window} tokens, one window"
            raise ValidationError(
                f"the text has {len(prefix) + len(ids)} tokens; it must have {least} at least", field="text"
            )
        return cls(window, stride, plan)


def _tokens(model: BitNet, text: str) -> tuple[list[int], list[int]]:
    """What the model puts before a text, and the text; what it puts behind a text is left out."""
    plain, whole = model.tokenize(text, add_special=False), model.tokenize(text)
    begins_with_bos = len(whole) > len(plain) and whole[1 : len(plain) + 1] == plain
    return whole[: int(begins_with_bos)], plain


def _sliding(prefix: list[int], ids: list[int], window: int, stride: int) -> Iterator[Window]:
    room = window - len(prefix)
    scored = 0 if prefix else 1  # nothing says how likely the very first token is
    end = min(room, len(ids))
    while scored < end:
        begin = max(0, end - room)
        yield Window((*prefix, *ids[begin:end]), len(prefix) + scored - begin)
        scored, end = end, min(end + stride, len(ids))


def _halves(prefix: list[int], ids: list[int], window: int, stride: int) -> Iterator[Window]:
    whole = [*prefix, *ids]
    for begin in range(0, len(whole) - window + 1, stride):
        part = whole[begin : begin + window]
        part[: len(prefix)] = prefix  # in place of the token that would be there
        yield Window(tuple(part), window // 2 + 1)


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """With its standard error; NaN for a single value."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((values - mean) ** 2) / (n - 1) / n)


def _perplexity(losses: Sequence[NDArray[np.float64]]) -> float:
    return _exp(math.fsum(float(part.sum()) for part in losses) / sum(map(len, losses)))


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
