"""The seeded random source of the corpus, and what every skill draws from it: names, words, numbers, phrases.

A held-out split is built in: what `Source.allows` refuses in training is all that the test split is made of.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from . import words

T = TypeVar("T")
Message = tuple[str, str]  # (role, text)


# In the assistant's messages these enclose what decides: the loss weighs it more than the rest.
MARK, UNMARK = "\x02", "\x03"


def marked(value: object) -> str:
    return f"{MARK}{value}{UNMARK}"


def unmarked(text: str) -> str:
    return text.replace(MARK, "").replace(UNMARK, "")


class Clue(NamedTuple):
    """What decides an answer, as parts of the prompts before it.

    The evidence is one of several alike (a line, a sentence, a function), and is called by its label, which
    is in it; the question has words that are in the evidence.
    """

    evidence: str
    label: str
    question: str


class Sample(NamedTuple):
    """One conversation; the model is trained on the assistant's messages."""

    messages: list[Message]
    skill: str
    forced: bool = False  # a grammar will force how the answer begins: only what is marked is trained
    clue: Clue | None = None
    answer: int = -1  # which message the clue is for

    def plain(self) -> list[Message]:
        """The messages without marks."""
        return [(role, unmarked(text)) for role, text in self.messages]


Family = list[Sample]  # conversations that begin alike, which share the computation of that beginning


def held_out(key: str) -> bool:
    """One key in eight never occurs in training, the same ones on every machine."""
    return zlib.crc32(f"held-out|{key}".encode()) % 8 == 0


class Source:
    """Random choices of one split: "train" never sees a held-out entity, "test" sees no other."""

    def __init__(self, split: str, seed: int | str) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"unknown split {split!r}")
        self.split = split
        self.random = random.Random(f"{split}-{seed}")

    # choices

    def allows(self, key: str) -> bool:
        return held_out(key) == (self.split == "test")

    def choice(self, options: Sequence[T]) -> T:
        return self.random.choice(options)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        return self.random.sample(options, count)

    def choices(self, options: Sequence[T], count: int) -> list[T]:
        """So many, some of them more than once."""
        return self.random.choices(options, k=count)

    def weighted(self, options: Sequence[T], weights: Sequence[float]) -> T:
        return self.random.choices(options, weights)[0]

    def until_allowed(self, make: Callable[[], str]) -> str:
        while True:
            text = make()
            if self.allows(text):
                return text

    def pick(self, options: Sequence[str]) -> str:
        """A choice restricted to this split."""
        return self.until_allowed(lambda: self.choice(options))

    def wording(self, options: Sequence[str], key: str = "") -> str:
        """A wording of this split. The first one is always in training, so that nothing goes untaught."""
        allowed = [w for w in options if self.allows_wording(f"wording|{key}", w, options[0])]
        return self.choice(allowed or options)

    def allows_wording(self, key: str, wording: str, canonical: str) -> bool:
        """Whether this split has a wording of `key`; the canonical one is always in training."""
        if wording == canonical:
            return self.split == "train"
        return self.allows(f"{key}|{wording}")

    def framed(self, frames: Sequence[str], wordings: Sequence[str], key: str) -> str:
        """A wording of this split behind one of `frames`: held out are pairs, so that no word goes untaught.

        The first wording alone is always in training, and stands in where no pair is found.
        """
        for _ in range(100):
            frame, wording = self.choice(frames), self.choice(wordings)
            if self.allows_wording(f"wording|{key}", f"{frame}|{wording}", f"|{wordings[0]}"):
                return frame + wording
        return wordings[0]

    # entities

    def word(self, low: int = 1, high: int = 3) -> str:
        """An invented word of so many syllables."""

        def make() -> str:
            return "".join(
                self.choice(words.ONSETS)
                + self.choice(words.VOWELS)
                + (self.choice(words.CODAS) if self.chance(0.4) else "")
                for _ in range(self.integer(low, high))
            )

        return self.until_allowed(make)

    def invented_name(self, low: int = 2, high: int = 3) -> str:
        return self.word(low, high).capitalize()

    def first_name(self) -> str:
        return self.pick(words.FIRST_NAMES) if self.chance(0.45) else self.invented_name(1, 3)

    def full_name(self) -> str:
        return f"{self.first_name()} {self.invented_name(1, 3)}" if self.chance(0.5) else self.first_name()

    def city(self) -> str:
        draw = self.random.random()
        if draw < 0.4:
            city = self.pick(words.CITIES)
        elif draw < 0.8:
            city = self.invented_name()
        else:
            city = f"{self.choice(words.CITY_PREFIXES)} {self.invented_name(1, 3)}"
        if self.chance(0.08):
            city += f", {self.choice('ABCDEFGHIKLMNOPRSTUVWX')}{self.choice('ACDEHIKLMNORSTVXYZ')}"
        return city

    def number(self, high: int | None = None) -> int:
        high = high or self.choice([9, 20, 99, 99, 999, 2000, 9999])
        if high <= 20:
            return self.integer(0, high)
        return int(self.until_allowed(lambda: str(self.integer(0, high))))

    def foreign(self, low: int = 2, high: int = 6) -> str:
        """A run of letters of one non-Latin script (or emoji)."""

        def make() -> str:
            first, last = self.choice(words.SCRIPTS)
            return "".join(chr(self.integer(first, last)) for _ in range(self.integer(low, high)))

        return self.until_allowed(make)

    def foreign_phrase(self) -> str:
        """One to three words of one script."""
        first, last = self.choice(words.SCRIPTS)
        size = self.weighted((1, 2, 3), (6, 3, 1))

        def make() -> str:
            parts = [
                "".join(chr(self.integer(first, last)) for _ in range(self.integer(2, 6)))
                for _ in range(size)
            ]
            return " ".join(parts)

        return self.until_allowed(make)

    def accented(self) -> str:
        """An invented name with letters beyond ASCII."""
        name = self.invented_name(2, 3)
        place = self.integer(1, len(name) - 1)
        return name[:place] + self.choice("äöüéèñçøåßáíóúłőžšć") + name[place + 1 :]

    def date(self) -> str:
        year, month, day = self.integer(1990, 2035), self.integer(1, 12), self.integer(1, 28)
        return f"{year}-{month:02}-{day:02}"

    def time(self) -> str:
        return f"{self.integer(0, 23)}:{self.integer(0, 59):02}"

    def email(self) -> str:
        return f"{self.word(1, 2)}@{self.word(1, 2)}.{self.choice(('com', 'org', 'net', 'io'))}"

    def decimal(self) -> float:
        return round(self.integer(1, 9999) / self.choice((10, 10, 100)), 2)

    def digits(self) -> str:
        """A long number, as of an order or a phone."""
        return self.until_allowed(
            lambda: "".join(self.choice("0123456789") for _ in range(self.integer(5, 10)))
        )

    def pick_noun(self) -> str:
        return self.pick(words.NOUNS)

    def phrase(self, low: int = 1, high: int = 4) -> str:
        known = words.NOUNS + words.ADJECTIVES
        return " ".join(
            self.pick(known) if self.chance(0.7) else self.word() for _ in range(self.integer(low, high))
        )

    def identifier(self) -> str:
        return self.until_allowed(
            lambda: "".join(self.choice(words.IDENTIFIER_LETTERS) for _ in range(self.integer(2, 9)))
        )

    def any_text(self) -> str:
        """Any short string worth copying."""
        makers: list[tuple[Callable[[], str], float]] = [
            (lambda: self.word(1, 4), 30),
            (self.first_name, 15),
            (self.foreign_phrase, 14),
            (self.accented, 3),
            (self.digits, 4),
            (lambda: str(self.number()), 12),
            (self.phrase, 16),
            (self.identifier, 15),
        ]
        return self.weighted([m for m, _ in makers], [w for _, w in makers])()

    # conversation pieces

    def system(self, probability: float = 0.3) -> list[Message]:
        """Sometimes a plain system prompt, which changes nothing in the answer."""
        text = self.system_text(probability)
        return [("system", text)] if text else []

    def system_text(self, probability: float) -> str:
        return self.choice(words.SYSTEM_PROMPTS) if self.chance(probability) else ""
