"""Wordings of requests put together from parts: so many that what stands between two values must be read, and
cannot be known by heart."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from .everyday import UNKNOWN
from .source import Source
from .words import listed

_VERBS = listed(
    "tell send give write ask show pass hand bring lend sell offer mail report forward assign set put add "
    "move store keep mark list file rename call name change turn switch connect link attach compare check "
    "find get fetch look read open start plan schedule book order reserve pay charge bill invite remind "
    "warn thank join save note register enter print share post publish make create build draw paint play"
)
_PREPOSITIONS = listed("to for from with at in on by about of into under near as after before until against")
_DONE = listed("is has was needs wants gets likes costs owns said wrote knows calls uses means becomes")

# V: a verb; P: a preposition; D: a verb of the third person; T: the topic of the function.
_ONE = (
    "V {0}", "V {0}.", "V: {0}", "V P {0}.", "V the T {0}.", "V the T P {0}.", "V a T P {0}, please.",
    "T P {0}?", "Please V {0} P the T.", "Can you V {0}?", "Could you V the T P {0}?", "{0} P the T?",
    "Which T D {0}?", "Is {0} P the T?", "Has {0} a T?", "{0} D the T.",
    "{0} D a T, V it.", "T: {0}", "How many T are P {0}?", "My T is {0}.", "I want to V {0}.",
    "I have to V P {0}", "T {0}", "T, {0}", "{0}, V it", "{0} P my T", "Who D {0}?", "What D {0}?",
    "When can we V {0}?", "V {0} P the T P me.", "We need {0} P the T", 'V "{0}"', "V '{0}' P the T",
    "It is {0} that D the T.", "{0} P", "the T of {0}", "V every T P {0}",
)  # fmt: skip
_TWO = (
    "V {0}: {1}", "V {0}, {1}", "V {0} P {1}", "V {0} P {1}.", "V P {0}: {1}", "V P {0} that {1}",
    "V P {0} P {1}", "V {0} the T {1}.", 'V {0} the T "{1}".', 'V the T "{0}" P {1}', "V the T {0} P {1}.",
    "V the T P {0} P {1}.", "V the T P {0}: {1}", "V {0} P the T: {1}", "V {0} P the T P {1}",
    "V {0} a T of {1}.", "V {0} a T: {1}", "{0} D {1}.", "{0} D the T {1}.", "{0} D {1}, V it P the T.",
    "{0} D a T P {1}", "{0} P {1}", "{0}: {1}", "I V {0} P {1}.",
    "I want {0} P {1}", "We V {0} P {1}", "Can you V {0} P {1}?", "P {0} V {1}.", "P {0}, V {1}",
    "T P {0}: {1}", "T {0} P {1}", "T {0}, {1}", "T: {0}, {1}", "T P {0} P {1}?", "T {0} ({1})",
    "T '{0}', {1}", "T {0} - {1}", "T {0} = {1}", "My T is {0}, the other is {1}.", "{0} and {1}",
    "Is {0} P {1}?", "Does the T P {0} V {1}?", "Which T D {0} P {1}?", "Please V {0}, P {1}.", "{0}; {1}",
    "Set {0} to {1}", "The T P {0} is {1}.", "The T {0} D {1}", "V {0} and V {1}", "V it P {0}, and V {1}",
    "It D {0} P the T of {1}.", "V both {0} and {1}.", "From {0} to {1}", "V {0} and the T {1}",
    "V {0} V {1}",
)  # fmt: skip


@functools.lru_cache
def _asked_elsewhere() -> frozenset[str]:
    """Wordings of functions that are never in training."""
    return frozenset(request for function in UNKNOWN for request in function.requests)


def _put_together(source: Source, patterns: Sequence[str], topic: str) -> str:
    parts = {"V": _VERBS, "P": _PREPOSITIONS, "D": _DONE, "T": [topic]}

    def make() -> str:
        words = source.choice(patterns).split(" ")
        cores = [word.strip(".,:?") for word in words]
        said = " ".join(
            word.replace(core, source.choice(parts[core])) if core in parts else word
            for word, core in zip(words, cores, strict=True)
        )
        said = said[0].upper() + said[1:] if source.chance(0.8) else said
        return "{0} {1}" if said in _asked_elsewhere() else said

    return source.until_allowed(make)


def put_together(source: Source, values: int, topic: str) -> str:
    """A wording for one or two values, which stand in it as {0} and {1}."""
    return _put_together(source, _ONE if values == 1 else _TWO, topic)
