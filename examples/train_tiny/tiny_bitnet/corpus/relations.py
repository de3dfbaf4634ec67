"""Invented statements, with the questions they answer: what the skills that read a text are made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import words
from .source import MARK, UNMARK, Source, marked
from .words import listed

# What may stand before a question.
_FRAMES = (
    *[""] * 24, "Please answer: ", "Tell me: ", "Quick question: ", "I want to know: ",
    "Can you answer this? ", "My question is: ", "Hi! ", "One more thing: ", "Ok. ", "Hello! ", "Hey! ",
    "Please tell me: ", "Now: ", "And: ", "Next question: ", "I wonder: ", "Listen: ", "Answer this: ",
    "Here is my question: ", "Let me ask: ", "Thanks. ", "A question: ", "The last one: ", "Hm. ", "Well: ",
    "You know it: ", "Look: ", "I have a question. ", "So: ",
)  # fmt: skip


class Relation(NamedTuple):
    subject: str
    value: str
    sentences: tuple[str, ...]
    questions: tuple[str, ...]
    follow_up: str


class Subject(NamedTuple):
    kind: str
    name: str
    pronouns: tuple[str, str]  # she, her


class Statement(NamedTuple):
    """A sentence about a subject, the relation it tells, and the answer to a question about it."""

    relation: Relation
    subject: Subject
    wording: str  # of the sentence, with {s} and {v}
    value: str
    sentence: str  # as it stands in the text

    @property
    def answer(self) -> str:
        """The sentence with the name of its subject; what tells it from other answers is marked."""
        before, _, after = self.wording.partition("{s}")
        said = f"{marked(before) if before else ''}{self.subject.name}{marked(after)}"
        return said.replace("{v}", UNMARK + marked(self.value) + MARK)

    def question(self, source: Source) -> str:
        asked = source.framed(_FRAMES, self.relation.questions, self.relation.sentences[0])
        return asked.format(s=self.subject.name)

    def follow_up(self) -> str:
        p, o = self.subject.pronouns
        return self.relation.follow_up.format(p=p, o=o)


Relations = dict[str, list[Relation]]  # by the kind of their subject


def _load(name: str) -> Relations:
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    found: Relations = {}
    for line in lines:
        if not line or line.startswith("#"):
            continue
        kinds, _, rest = line.partition(": ")
        subject, value = kinds.split()
        sentences, questions, follow_up = rest.split(" => ")
        relation = Relation(
            subject, value, tuple(sentences.split(" / ")), tuple(questions.split(" / ")), follow_up
        )
        found.setdefault(subject, []).append(relation)
    return found


RELATIONS = _load("relations.txt")
_RARER = _load("rarer_relations.txt")
MORE_RELATIONS: Relations = {kind: [*RELATIONS[kind], *_RARER[kind]] for kind in RELATIONS}

_EVENTS = listed("festival concert meeting party workshop conference fair race market show lecture picnic")
_LANGUAGES = listed("French German Spanish Italian Polish Greek Turkish Arabic Hindi Swedish Danish Finnish")
_INSTRUMENTS = listed("guitar piano drum violin flute harp trumpet")
_MATERIALS = listed("wood glass metal plastic stone paper leather cotton steel gold silver copper")
_WHERE = listed("kitchen garden office garage cellar attic library hall museum drawer cupboard bathroom")
_FOODS = listed("bread cheese pizza pasta rice soup salad cake honey fish apples tomatoes potatoes cookies")
_COMPANY_KINDS = listed("Tower Bank Bridge Museum Hotel School Library Castle Labs Foods")


_ATTRIBUTES = listed(
    "mascot budget deadline slogan manager address version motto nickname topic hobby title uniform "
    "symbol secret captain goal dessert song number size length serial engine logo flag sponsor mentor "
    "teacher doctor neighbor gift wish dream plan rule limit score rank goalkeeper author editor owner "
    "winner signal key label theme menu"
)


def _attribute(source: Source, kind: str) -> Relation:
    """A relation that is only named: what is to be found is the word, whatever it means."""
    attribute = source.choice(_ATTRIBUTES) if source.chance(0.7) else source.word(1, 3)
    s = "the {s}" if kind in ("thing", "event") else "{s}"
    questions = (
        f"What is the {attribute} of {s}?",
        f"Tell me the {attribute} of {s}.",
        f"Which {attribute} does {s} have?",
        f"Do you know the {attribute} of {s}?",
    )
    sentences = (f"The {attribute} of {s} is {{v}}.", f"The {attribute} of {s} is called {{v}}.")
    return Relation(kind, source.choice(_NAMED), sentences, questions, f"What is {{o}} {attribute}?")


def _code(source: Source) -> str:
    kind = source.integer(0, 3)
    if kind == 0:
        return str(source.number())
    if kind == 1:
        return source.word(1, 2)
    return source.digits() if kind == 2 else source.word(1, 1).upper() + str(source.number())


def _price(source: Source) -> str:
    return str(source.number()) if source.chance(0.8) else f"{source.decimal():.2f}"


_VALUES: dict[str, Callable[[Source], str]] = {
    "city": lambda s: s.city() if s.chance(0.93) else s.foreign_phrase(),
    "job": lambda s: s.choice(words.JOBS),
    "color": lambda s: s.choice(words.COLORS),
    "year": lambda s: str(s.integer(1900, 2030)),
    "age": lambda s: str(s.integer(5, 99)),
    "purchase": lambda s: f"{s.choice(words.ADJECTIVES)} {s.pick_noun()}",
    "food": lambda s: s.choice(_FOODS),
    "person": lambda s: s.full_name() if s.chance(0.93) else s.accented(),
    "pet": lambda s: f"{s.choice(words.ANIMALS)} named {s.first_name()}",
    "language": lambda s: s.choice(_LANGUAGES) if s.chance(0.6) else s.invented_name(),
    "instrument": lambda s: s.choice(_INSTRUMENTS),
    "code": _code,
    "email": Source.email,
    "place": Source.invented_name,
    "room": lambda s: str(s.number(999)),
    "price": _price,
    "where": lambda s: s.choice(_WHERE),
    "material": lambda s: s.choice(_MATERIALS),
    "weight": lambda s: str(s.number(99)),
    "years": lambda s: str(s.integer(2, 30)),
    "product": lambda s: f"{s.choice(words.ADJECTIVES)} {s.pick_noun()}s",
    "number": lambda s: str(s.number()),
    "time": Source.time,
    "height": lambda s: str(s.number(2000)),
    "date": Source.date,
    "phrase": lambda s: s.phrase(1, 3),
}
_NAMED = ("phrase", "phrase", "code", "person", "city", "number")


def make_subject(source: Source) -> Subject:
    kind = source.weighted(("person", "thing", "name", "event"), (10, 4, 6, 2))
    if kind == "person":
        name = source.full_name() if source.chance(0.95) else source.accented()
        return Subject(kind, name, source.choice((("she", "her"), ("he", "his"))))
    if kind == "thing":
        noun = source.pick_noun()
        name = f"{source.choice(words.ADJECTIVES)} {noun}" if source.chance(0.3) else noun
    elif kind == "name":
        name = source.invented_name()
        if source.chance(0.2):
            name += f" {source.choice(_COMPANY_KINDS)}"
    else:
        name = f"{source.word(1, 2) if source.chance(0.5) else source.pick_noun()} {source.choice(_EVENTS)}"
    return Subject(kind, name, ("it", "its"))


def statement(source: Source, subject: Subject, relation: Relation) -> Statement:
    value = _VALUES[relation.value](source)
    wording = relation.sentences[0]
    if source.chance(0.4):
        wording = source.wording(relation.sentences, "sentence")
    return Statement(relation, subject, wording, value, wording.format(s=subject.name, v=value))


def _with_pronoun(source: Source, told: Statement) -> Statement:
    """The sentence with "she" for the name, if it begins with the name."""
    name, pronoun = told.subject.name, told.subject.pronouns[0].capitalize()
    if told.subject.kind == "person" and told.sentence.startswith(name) and source.chance(0.35):
        return told._replace(sentence=pronoun + told.sentence[len(name) :])
    return told


class Story(NamedTuple):
    statements: list[Statement]  # in the order of the text
    untold: list[Statement]  # about the same subjects, not in the text
    text: str


def make_text(source: Source, most: int = 6, known: Relations = RELATIONS) -> Story:
    """A text about one to three subjects, often with several sentences about one."""
    wanted = source.integer(1, most)
    groups: list[list[Statement]] = []
    untold = []
    while sum(map(len, groups)) < wanted:
        subject = make_subject(source)
        relations = known[subject.kind]
        count = min(source.weighted((1, 2, 3), (4, 4, 2)), len(relations) - 1)
        chosen = source.sample(relations, count + 1)
        chosen = [_attribute(source, subject.kind) if source.chance(0.3) else relation for relation in chosen]
        told = [statement(source, subject, relation) for relation in chosen[:-1]]
        groups.append([told[0], *(_with_pronoun(source, t) for t in told[1:])])
        untold.append(statement(source, subject, chosen[-1]))
    statements = [told for group in groups for told in group]
    if source.chance(0.25) and not any(told.sentence.startswith(("She ", "He ")) for told in statements):
        source.random.shuffle(statements)
    text = source.choice((" ", " ", " ", "\n", "\n\n")).join(told.sentence for told in statements)
    return Story(statements, untold, text)
