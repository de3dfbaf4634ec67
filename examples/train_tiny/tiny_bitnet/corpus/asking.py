"""Wordings of requests: of functions that are asked for by their topic, and put together from parts, so many
that what stands between two values must be read, and cannot be known by heart."""

from __future__ import annotations

import functools

from .everyday import UNKNOWN
from .source import Source, held_out
from .words import listed

# {t}: the topic.
ABOUT_ONE = (
    "Give me the {t} for {0}.", "Do you have a {t} for {0}?", "{t} {0}", "Search the {t} for {0}",
    "What is the {t} of {0}?", "Tell me the {t} of {0}", "Is there a {t} in {0}?", "Look up the {t} {0}.",
    "How many {t}s are there in {0}?", "I need a {t} for {0}.", "Put {0} into the {t}.",
    "Cancel the {t} {0}.", "Make the {t} {0}", "Do we have {0} in the {t}?", "Which {t} belongs to {0}?",
    "{0}: which {t}?", "Please remove {0} from my {t}.", "Search for {t}s with {0}", "Change the {t} to {0}",
)  # fmt: skip
ABOUT_TWO = (
    "Add {0} to my {t} for {1}.", "I have {0} at {1}, put it into the {t}.", "{t} from {0} to {1}?",
    "Send the {t} {0} to {1}.", "{0} gets the {t} {1}.", "Give {0} a {t} of {1}.", "{t} {0} with {1}",
    "Which {t}s go from {0} to {1}?", "Please send {0} the {t}, {1}.", "Write {1} to {0} in the {t}.",
    "Create the {t} {0} on {1}.", 'Send {0} the {t} "{1}".', "Tell {0} about the {t}: {1}",
)  # fmt: skip

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


def normal(wording: str) -> str:
    """Without capitals and the mark at its end, which make no other wording."""
    return wording.lower().rstrip(" .?!")


@functools.lru_cache
def _held_out(topic: str) -> frozenset[str]:
    """The wordings of other skills that are never in training."""
    asked = [request for function in UNKNOWN for request in function.requests]
    about = [wording for wording in (*ABOUT_ONE, *ABOUT_TWO) if held_out(f"wording|about|{wording}")]
    return frozenset(map(normal, (*asked, *(wording.replace("{t}", topic) for wording in about))))


def put_together(source: Source, values: int, topic: str) -> str:
    """A wording for one or two values, which stand in it as {0} and {1}."""
    parts = {"V": _VERBS, "P": _PREPOSITIONS, "D": _DONE, "T": [topic]}

    def make() -> str:
        words = source.choice(_ONE if values == 1 else _TWO).split(" ")
        cores = [word.strip(".,:?") for word in words]
        said = " ".join(
            word.replace(core, source.choice(parts[core])) if core in parts else word
            for word, core in zip(words, cores, strict=True)
        )
        return said[0].upper() + said[1:] if source.chance(0.8) else said

    while normal(wording := source.until_allowed(make)) in _held_out(topic):
        pass
    return wording
