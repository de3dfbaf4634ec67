"""Constrained output: a response format becomes a grammar, and that a mask of allowed tokens at each step.

llguidance runs the grammars. On top of it, output that has begun is closed before its tokens run out, and
text that must follow is read in the tokens by which the model knows it. JSON schemas are made ready in
json_schema.py, tool calls in tool_grammar.py; sampling is left to the caller.
"""

from __future__ import annotations

import json
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, regex_to_lark
from numpy.typing import NDArray

from bitnet.errors import ConstraintError

from .bounded import bounded
from .closing import first_ending, short_ending
from .grammar_vocabulary import GrammarVocabulary, forbid, grammar_vocabulary
from .json_schema import MAX_SCHEMA_CHARACTERS
from .response_formats import ANSWER, answer_rules, unanchored
from .tokenizer import Tokenizer

# How forced text is cut into tokens is decided in ConstraintState, not by llguidance.
GRAMMAR_HEADER = '%llguidance {"no_forcing": true}\n'
_CACHED = 64  # grammars per tokenizer

# Steps of the search for an ending, of some 40 us each: at compilation, at a token, where tokens are about to
# run out, for an example of a pattern; and how many one output may take in vain before it makes do without.
_FUEL_COMPILE = 10000
_FUEL_SHORTEST = 400
_FUEL_TOKEN = 2000
_FUEL_TIGHT = 300
_FUEL_HINT = 100
_FUEL_SEQUENCE = 30000
_SECONDS_COMPILE, _SECONDS_SHORTEST, _SECONDS_HINT = 1.5, 0.3, 0.1

# The end of a text that may be part of a longer word, with a character that some tokenizers join to words.
_OPEN_WORD = re.compile(r"[\W_]?[^\W_]+\Z")
_MAX_READ = 200  # characters that may decide which token a text begins with

_MAX_HINTS = 30
_MAX_DETOUR = 16  # bytes of a known ending that a token may save beside its own
# Sampled tokens refused at one place before the shortest ending is forced.
_MAX_REFUSALS = 8

_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # 20 ms
    step_lexer_fuel=200_000,  # 15 ms
    step_max_items=50_000,
    max_lexer_states=20_000,  # 40 MB a sequence
    max_grammar_size=200_000,
    verbose_errors=False,
)


class Constraint:
    """What an output must look like, compiled for one tokenizer. Immutable; share it between sequences.

    visible_ids: control tokens whose text belongs to the output (the markers of tool calls in some
    vocabularies); all other control tokens end the output or do not occur in it.
    """

    def __init__(
        self,
        grammar: str,
        vocabulary: GrammarVocabulary,
        *,
        patterns: Iterable[str] = (),
        literals: Iterable[str] = (),
        visible_ids: frozenset[int] = frozenset(),
    ) -> None:
        """grammar: in llguidance's variant of Lark. patterns: regular expressions that texts in it may have
        to contain. literals: strings that may have to follow a text. Raises ConstraintError if it is wrong,
        matches nothing or is too complex.
        """
        self.visible_ids = visible_ids
        self._vocabulary = vocabulary
        matcher = bounded(lambda: LLMatcher(vocabulary.tokenizer, grammar, log_level=0, limits=_LIMITS))
        if matcher.is_error():
            raise ConstraintError(f"the grammar cannot be compiled: {_first_line(matcher.get_error())}")
        self._hints = [
            example
            for pattern in list(dict.fromkeys(patterns))[:_MAX_HINTS]
            if (example := _example(pattern, vocabulary))
        ]
        self._joints = [vocabulary.tokenize(literal.encode()) for literal in literals]
        first = first_ending(
            matcher,
            vocabulary,
            fuel=_FUEL_COMPILE,
            hints=self._hints,
            joints=self._joints,
            seconds=_SECONDS_COMPILE,
        )
        short = short_ending(
            matcher,
            vocabulary,
            fuel=_FUEL_SHORTEST,
            hints=self._hints,
            joints=self._joints,
            seconds=_SECONDS_SHORTEST,
        )
        endings = [ending for ending in (first, short) if ending is not None]
        if not endings:
            raise ConstraintError(
                "the schema or grammar matches nothing of a reasonable length: it contradicts itself, has no "
                "end, or is too complex"
            )
        self._ending = min(endings, key=len)
        self._matcher = matcher

    def minimum_tokens(self) -> int:
        """Tokens that are enough for an output: with fewer, it ends in the middle."""
        return len(self._ending)

    def start(self) -> ConstraintState:
        """The state of a new sequence."""
        return ConstraintState(
            self._matcher.deep_copy(), self._vocabulary, self._ending, self._hints, self._joints
        )


class ConstraintState:
    """How far one sequence has come. Not for concurrent use.

    Each token takes `mask`, sampling and `accept`. Whether a token leaves enough room to finish is only
    checked when it has been chosen, since a whole vocabulary cannot be checked in time: where `accept` says
    no, take a new mask and sample again. At most 8 tokens are refused in one place.

    A chosen token that can go on in one way only stands for that text, and the next mask has the token with
    which the model usually reads it: a model whose favourite is not allowed may choose a piece of another
    token, and goes astray behind tokens that it has never seen in a row.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: GrammarVocabulary,
        ending: list[int],
        hints: list[list[int]],
        joints: list[list[int]],
    ) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._hints = hints
        self._joints = joints
        self._fuel = _FUEL_SEQUENCE
        # Tokens that lead to an end from here, as few as we know of; None while nobody asked for a budget.
        self._ending: list[int] | None = ending
        self._remaining: int | None = None
        self._refused: list[int] = []
        self._usual: int | None = None  # the only token of the next mask
        self._ended = False
        n_words = (vocabulary.tokenizer.vocab_size + 31) // 32
        self._words = np.zeros(n_words, np.int32)

    @property
    def is_accepting(self) -> bool:
        """Whether the output is complete if it ends here."""
        return self._ended or self._matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Whether the output is complete and nothing can follow: stop without sampling again."""
        return self._ended or (self._matcher.is_stopped() and self._matcher.is_accepting())

    def mask(self, remaining: int | None = None) -> NDArray[np.int32]:
        """The tokens that may come next, for Sampler.set_mask: bit t % 32 of word t // 32, [n_words].

        remaining: tokens that may still be generated, this one included and the end token not; None = no
        limit. With it, an output that can be completed always is. The array is overwritten by the next call.
        Raises ConstraintError if the grammar turns out to be too complex.
        """
        self._remaining = remaining
        vocabulary = self._vocabulary
        if self.is_finished:
            return vocabulary.end_mask
        if self._usual is not None:
            return vocabulary.mask_of([self._usual])
        if remaining is not None:
            if self._ending is None:
                self._ending = self._find_ending(self._matcher, None)
            ending = self._ending
            if ending and (len(ending) == remaining or self._must_end()):
                return vocabulary.mask_of(ending[:1])
            if ending is not None and self._must_end():
                return vocabulary.end_mask
        words = self._words
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._check()
        for token_id in self._refused:
            forbid(words, token_id)
        if not vocabulary.end_ids:
            forbid(words, vocabulary.vocab_size)  # the end token that llguidance made up
        return words[: vocabulary.n_words]

    def accept(self, token_id: int) -> bool:
        """Goes on with a token of the last mask, or an end token where the output is complete.

        False if the output could not be completed any more in the tokens that would remain, or if the text
        that must follow is usually read in other tokens: nothing has changed then, except that the next mask
        is without it. Raises ConstraintError for a token that the mask does not allow.
        """
        if token_id in self._vocabulary.end_ids and self.is_accepting:
            self._ended = True
            return True
        self._check()
        if self._ended or not self._matcher.validate_tokens([token_id]):
            raise ConstraintError(f"the token {token_id} is not allowed here")
        ending = self._ending
        if self._remaining is None or ending is None:
            new_ending = None
        elif ending and token_id == ending[0]:
            new_ending = ending[1:]
        else:
            limit = self._remaining - 1
            fits = len(ending) <= self._remaining
            new_ending = self._ending_after(token_id, limit if fits else None)
            # An output that did not fit anyway goes on as it likes.
            if fits and (new_ending is None or len(new_ending) > limit):
                self._refused.append(token_id)
                self._usual = None
                return False
        self._matcher.consume_token(token_id)
        self._check()
        # Where tokens are scarce, those of the known ending are best.
        roomy = self._remaining is None or ending is None or len(ending) < self._remaining
        if self._usual is None and roomy and not self._refused:
            usual = self._usual_token(token_id)
            if usual is not None:
                self._matcher.rollback(1)
                if self._matcher.validate_tokens([usual]):
                    self._usual = usual
                    return False
                self._matcher.consume_token(token_id)
        self._usual = None
        self._ending = new_ending
        self._refused.clear()
        return True

    def _usual_token(self, token_id: int) -> int | None:
        """Another token with which the text begins that `token_id`, just consumed, has made the only one."""
        vocabulary = self._vocabulary
        forced = self._matcher.compute_ff_bytes()
        if not forced:
            return None
        begun = vocabulary.tokenizer.decode_bytes([token_id])
        try:
            text = _OPEN_WORD.sub("", (begun + forced).decode()[:_MAX_READ])
        except UnicodeDecodeError:  # a control token, or a part of a character
            return None
        usual = vocabulary.first_token(text) if len(text.encode()) > len(begun) else None
        return None if usual == token_id else usual

    def _must_end(self) -> bool:
        return len(self._refused) >= _MAX_REFUSALS

    def _ending_after(self, token_id: int, limit: int | None) -> list[int] | None:
        """An ending from behind `token_id`, of at most `limit` tokens if one is found."""
        # The old ending nearly always still does, or what the token has left of it.
        best: list[int] | None = None
        for candidate in self._remainders(token_id):
            if self._completes([token_id, *candidate]):
                best = candidate
                break
        if best is not None and (limit is None or len(best) <= limit):
            return best
        matcher = self._matcher.deep_copy()
        if not matcher.consume_token(token_id):
            return None
        found = self._find_ending(matcher, limit)
        return best if found is None or (best is not None and len(best) <= len(found)) else found

    def _remainders(self, token_id: int) -> Iterator[list[int]]:
        """The ending, then without as many of its first bytes as `token_id` may have made needless."""
        ending = self._ending or []
        yield ending
        tokenizer = self._vocabulary.tokenizer
        data = tokenizer.decode_bytes(ending)
        for n_dropped in range(min(len(data), len(tokenizer.decode_bytes([token_id])) + _MAX_DETOUR), 0, -1):
            rest = data[n_dropped:]
            begins = [token_id, *self._vocabulary.tokenize(rest[:_MAX_DETOUR])]
            if self._matcher.validate_tokens(begins) == len(begins):
                yield self._vocabulary.tokenize(rest)

    def _completes(self, token_ids: list[int]) -> bool:
        """Whether the grammar allows these tokens and an end behind them."""
        with_end = [*token_ids, self._vocabulary.tokenizer.eos_token]
        return self._matcher.validate_tokens(with_end) == len(with_end)

    def _find_ending(self, matcher: LLMatcher, limit: int | None) -> list[int] | None:
        """The first ending at hand; a shorter one if it must not be longer than `limit`."""
        if self._fuel <= 0:
            return None
        vocabulary, hints, joints = self._vocabulary, self._hints, self._joints
        ending = first_ending(matcher, vocabulary, fuel=_FUEL_TOKEN, hints=hints, joints=joints)
        if ending is None:
            self._fuel -= _FUEL_TOKEN
        elif limit is None or len(ending) <= limit:
            return ending
        self._fuel -= _FUEL_TIGHT
        shorter = short_ending(matcher, vocabulary, fuel=_FUEL_TIGHT, hints=hints, joints=joints)
        return ending if shorter is None else shorter

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(
                f"the grammar is too complex to go on with: {_first_line(self._matcher.get_error())}"
            )


def compile_constraint(response_format: Mapping[str, Any], tokenizer: Tokenizer) -> Constraint | None:
    """A response format as the APIs of OpenAI write it, compiled; None for {"type": "text"}.

    {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}, "strict": ...}}, or `schema` bare;
    {"type": "json_object"}: any JSON object;
    {"type": "regex", "pattern": ...}: the whole output matches (syntax of Rust's regex, without look-around);
    {"type": "choice", "choices": [...]}: one of these texts;
    {"type": "grammar", "grammar": ...}: a Lark grammar with a rule `start`.
    Schemas are always enforced, whatever `strict` says. Raises ConstraintError.
    """

    def build(description: Any, vocabulary: GrammarVocabulary) -> Constraint | None:
        rules = answer_rules(description)
        if rules is None:
            return None
        grammar = f"{GRAMMAR_HEADER}start: {ANSWER}\n{rules.lark}"
        return Constraint(grammar, vocabulary, patterns=rules.patterns, literals=rules.literals)

    return compile_cached(response_format, tokenizer, build)


_Compiled = OrderedDict[str, "Constraint | None"]
_cache: weakref.WeakKeyDictionary[Tokenizer, _Compiled] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def compile_cached(
    description: Any, tokenizer: Tokenizer, build: Callable[[Any, GrammarVocabulary], Constraint | None]
) -> Constraint | None:
    """What `build` makes of a `description` in JSON, or made before for this tokenizer.

    Raises ConstraintError.
    """
    key = _canonical(description)
    with _lock:
        compiled = _cache.setdefault(tokenizer, OrderedDict())
        if key in compiled:
            compiled.move_to_end(key)
            return compiled[key]
    vocabulary = grammar_vocabulary(tokenizer)
    constraint = build(json.loads(key), vocabulary)
    with _lock:
        compiled[key] = constraint
        while len(compiled) > _CACHED:
            compiled.popitem(last=False)
    return constraint


def _canonical(description: Any) -> str:
    # Keys stay in their order: the properties of an object are generated in it.
    try:
        key = json.dumps(description, allow_nan=False, ensure_ascii=False, default=_as_dict)
        key.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConstraintError(f"the response format or a tool is not plain JSON: {error}") from None
    if len(key) > MAX_SCHEMA_CHARACTERS:
        raise ConstraintError(
            f"the response format has {len(key)} characters of JSON; at most {MAX_SCHEMA_CHARACTERS} work"
        )
    return key


def _as_dict(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a value of type {type(value).__name__}")


def _example(pattern: str, vocabulary: GrammarVocabulary) -> list[int] | None:
    """Tokens of a text that matches, as it stands in a JSON string; None if none is found."""
    lark = f"{GRAMMAR_HEADER}start: /{regex_to_lark(unanchored(pattern), 'dw')}/"
    matcher = bounded(lambda: LLMatcher(vocabulary.tokenizer, lark, log_level=0, limits=_LIMITS))
    found = first_ending(matcher, vocabulary, fuel=_FUEL_HINT, seconds=_SECONDS_HINT)
    if not found:
        return None
    text = vocabulary.tokenizer.decode_str(found)
    return vocabulary.tokenize(json.dumps(text, ensure_ascii=False)[1:-1].encode())


def _first_line(message: str) -> str:
    """llguidance's message without its copy of the grammar."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = " ".join(lines)
    return text.split(" 1 | ", 1)[0].split("<non-verbose/>")[0].strip()[:500]
