"""Skill "story": short stories with a plot put together from a few parts."""

from __future__ import annotations

import itertools
import re

from . import words
from .source import Sample, Source
from .words import listed

_MOODS = listed("little brave happy lazy clever shy")
_THINGS = listed("ball book key hat kite ring cake map drum lamp")
_SCENES = ("forest", "garden", "river", "castle", "beach", "old house")
# A story without a given name has the same hero and friend each time, so that the names come out whole.
_HEROES = dict(
    zip(
        words.ANIMALS,
        listed("Finn Mia Rex Lily Bruno Olga Pip Daisy Wulf Fred Star Leo Tilly Henry Nut Gus Rosa Sky"),
        strict=True,
    )
)
_NAMED = (
    "Tell me a story about a {mood} {animal} named {hero}.",
    "Write a short story about {hero} the {mood} {animal}.",
    "Can you tell a story about {hero}, a {mood} {animal}?",
)
_UNNAMED = (
    "Tell me a story about a {animal}.", "Tell me a story about a {mood} {animal}.",
    "Write a short story about a {animal}.", "Tell me a short story about a {mood} {animal}.",
)  # fmt: skip
_OPEN = (
    "Tell me a story.", "Tell me a short story.", "Can you tell me a story?", "Write a short story.",
    "tell me a story", "Please tell me a story.", "I want to hear a story.",
)  # fmt: skip


_START = "Once upon a time there was a {mood} {animal} named {hero}."
_FOUND = (
    "{hero} lived near the {scene}. One day {hero} found a {thing}.",
    "One day {hero} went to the {scene} and found a {thing}.",
)
_MET = (
    'A {friend_animal} named {friend} came by and asked: "Is this your {thing}?"',
    "Then {hero} met {friend}, a {friend_animal}, who had lost the {thing}.",
)
_ENDS = (
    "{hero} gave the {thing} to {friend}, and they became friends.",
    "They played with the {thing} until the sun went down.",
    "{hero} and {friend} shared the {thing}. The end.",
)


def _plot(source: Source, hero: str, animal: str, mood: str) -> str:
    thing, scene = source.choice(_THINGS), source.choice(_SCENES)
    friend_animal = source.choice([a for a in words.ANIMALS if a != animal])
    friend = _HEROES[friend_animal] if _HEROES[friend_animal] != hero else "Sam"
    parts = (_START, source.choice(_FOUND), source.choice(_MET), source.choice(_ENDS))
    return " ".join(parts).format(
        mood=mood,
        animal=animal,
        hero=hero,
        thing=thing,
        scene=scene,
        friend_animal=friend_animal,
        friend=friend,
    )


def is_story_like(right: str, told: str) -> bool:
    """Whether `told` is a whole story of the hero of `right`, a story of this skill, whatever happens."""
    start = re.match(r"Once upon a time there was a \w+ \w+ named (.+?)\. ", right)
    assert start
    scenes = "|".join(_SCENES)
    wanted = {"hero": re.escape(start[1]), "scene": f"(?:{scenes})", "friend_animal": r"\w+"}
    for parts in itertools.product(_FOUND, _MET, _ENDS):
        pattern = re.escape(" ".join(parts))
        for name, text in wanted.items():
            pattern = pattern.replace(rf"\{{{name}\}}", text)
        for name in ("thing", "friend"):  # the same wherever they are named
            pattern = pattern.replace(rf"\{{{name}\}}", rf"(?P<{name}>\w+)", 1)
            pattern = pattern.replace(rf"\{{{name}\}}", f"(?P={name})")
        if re.fullmatch(re.escape(start[0]) + pattern, told):
            return True
    return False


def story(source: Source) -> Sample:
    kind = source.integer(0, 9)
    animal, mood = source.choice(words.ANIMALS), source.choice(_MOODS)
    if kind <= 3:
        hero = source.first_name()
        asked = source.choice(_NAMED).format(mood=mood, animal=animal, hero=hero)
    elif kind <= 6:
        wording = source.choice(_UNNAMED)
        if "{mood}" not in wording:
            mood = "little"
        hero = _HEROES[animal]
        asked = wording.format(mood=mood, animal=animal)
    else:
        animal, mood, hero = "fox", "little", _HEROES["fox"]
        asked = source.choice(_OPEN)
    answer = _plot(source, hero, animal, mood)
    return Sample([*source.system(0.15), ("user", asked), ("assistant", answer)], "story")
