"""The generated conversations: the same for the same seed, truly held out, without the tests of others."""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict

import pytest

from tiny_bitnet.corpus import MIX, Sample, Source, draw_family, held_out_samples, passage_pair
from tiny_bitnet.corpus.asking import ABOUT_ONE, ABOUT_TWO, normal, put_together
from tiny_bitnet.corpus.choosing import CATEGORIES, kinds
from tiny_bitnet.corpus.everyday import KNOWN, UNKNOWN
from tiny_bitnet.corpus.facts import with_article
from tiny_bitnet.corpus.finding import line_choice
from tiny_bitnet.corpus.relations import MORE_RELATIONS, RELATIONS, make_text
from tiny_bitnet.corpus.source import MARK, UNMARK
from tiny_bitnet.corpus.story import is_story_like, story
from tiny_bitnet.corpus.tool_specs import make_tools
from tiny_bitnet.corpus.tools import listed_tools

# What conformance suites ask, and what names their tools.
SUITE_PROMPTS = (
    "magic_function", "my_adder_tool", "unicode_customer", "greeting_generator", "你好啊集团",
    "こんにちは株式会社", "Hello Group", "Hello Corporation", "San Francisco, CA", "joke about cats",
    "Pirate greeting", "2 haikus",
)  # fmt: skip


def families(split: str, seed: int, count: int) -> list[list[Sample]]:
    source = Source(split, seed)
    return [draw_family(source) for _ in range(count)]


@pytest.fixture(scope="module")
def training() -> list[Sample]:
    return [sample for family in families("train", 7, 6000) for sample in family]


def test_the_same_seed_gives_the_same_corpus() -> None:
    assert families("train", 3, 300) == families("train", 3, 300)
    assert families("train", 3, 300) != families("train", 4, 300)


def test_no_literal_prompt_of_a_conformance_suite(training: list[Sample]) -> None:
    text = "\n".join(part for sample in training for _, part in sample.plain()).lower()
    assert [prompt for prompt in SUITE_PROMPTS if prompt.lower() in text] == []


def test_every_skill_of_the_mix_occurs_and_answers(training: list[Sample]) -> None:
    skills = {sample.skill for sample in training}
    assert len(skills) >= len(MIX)
    for sample in training:
        assert sample.messages[-1][0] == "assistant"
        assert all(text.strip() for role, text in sample.plain() if role == "assistant"), sample


def test_marks_are_paired_and_only_in_answers(training: list[Sample]) -> None:
    for sample in training:
        for role, text in sample.messages:
            marks = re.sub(f"[^{MARK}{UNMARK}]", "", text)
            assert marks == (MARK + UNMARK) * (len(marks) // 2), sample
            assert role == "assistant" or not marks, sample


def test_clues_stand_in_a_prompt_before_their_answer(training: list[Sample]) -> None:
    found = [sample for sample in training if sample.clue]
    skills = {sample.skill for sample in found}
    drills = {"function_choice", "line", "kind"}
    assert skills == {"ctx", "more", "tool_call", "tool_answer", "options", "selection", *drills}
    for sample in found:
        messages = sample.plain()
        before = messages[: sample.answer % len(messages)]
        assert messages[len(before)][0] == "assistant"
        assert sample.clue
        assert sample.clue.label in sample.clue.evidence
        assert any(sample.clue.evidence in text for _, text in before), sample
        assert any(sample.clue.question in text for _, text in before), sample


def test_a_drill_of_lines_asks_for_words_of_one_line() -> None:
    source = Source("train", 9)
    asked = 0
    for sample in (sample for _ in range(100) for sample in line_choice(source)):
        (_, prompt), (_, answer) = sample.plain()
        assert sample.clue
        assert sample.clue.label == answer
        if match := re.fullmatch(r"Which line has (\S+)\?", sample.clue.question):
            word = rf"(?<!\w){re.escape(match[1])}(?!\w)"
            lines = prompt[: prompt.rindex(sample.clue.question)]
            assert re.search(word, sample.clue.evidence)
            assert not re.search(word, lines.replace(sample.clue.evidence, ""))
            asked += 1
    assert asked > 50


def test_a_drill_of_kinds_has_the_one_of_the_kind_that_is_asked_for() -> None:
    source = Source("train", 10)
    kind_of = {item: with_article(kind) for kind, items in CATEGORIES.items() for item in items}
    asked = 0
    for sample in (sample for _ in range(200) for sample in kinds(source)):
        (_, prompt), (_, answer) = sample.plain()
        lines = dict(re.findall(r"^(\w)[.)] (.+)$", prompt, re.MULTILINE))
        if match := re.search("Which of these is (an? [a-z]+)", prompt):
            assert kind_of[lines.get(answer, answer)] == match[1]
            assert [kind_of[item] for item in lines.values()].count(match[1]) <= 1
            asked += 1
        else:
            item = re.match("Is (.+?) an? [a-z]+( or|,)", prompt)
            assert item
            assert kind_of[item[1]] == with_article(answer)
    assert asked > 300


def test_requests_for_everyday_functions_name_each_value_once() -> None:
    for function in (*KNOWN, *UNKNOWN):
        for request in function.requests:
            values = sorted(re.findall(r"\{(\d)\}", request))
            assert values == [str(i) for i in range(len(function.parameters))], request


def test_no_name_is_of_two_everyday_functions() -> None:
    names = [name for function in (*KNOWN, *UNKNOWN) for name in function.names]
    assert len(KNOWN) > 300
    assert len(set(names)) == len(names)


def test_relations_are_whole_and_no_question_is_about_two() -> None:
    assert sum(map(len, MORE_RELATIONS.values())) > 3 * sum(map(len, RELATIONS.values()))
    for relations in MORE_RELATIONS.values():
        asked = [question for relation in relations for question in relation.questions]
        assert len(set(asked)) == len(asked)
        for relation in relations:
            for sentence in relation.sentences:
                assert (sentence.count("{s}"), sentence.count("{v}")) == (1, 1), sentence
            for question in relation.questions:
                assert (question.count("{s}"), question.count("{v}")) == (1, 0), question


def test_no_request_for_a_held_out_function_is_one_of_training() -> None:
    names = {name for function in KNOWN for name in function.names}
    requests = {normal(request) for function in KNOWN for request in function.requests}
    assert len(UNKNOWN) > 20
    for function in UNKNOWN:
        assert not names & set(function.names)
        assert not requests & set(map(normal, function.requests))


def test_calls_are_valid_and_name_a_listed_tool(training: list[Sample]) -> None:
    seen = 0
    for sample in training:
        messages = sample.plain()
        text = messages[-1][1]
        if not text.startswith("<tool_call>"):
            continue
        tools = {d["function"]["name"]: d["function"] for d in listed_tools(messages[0][1])}
        assert tools
        for call in map(json.loads, re.findall(r"<tool_call>(.*?)</tool_call>", text)):
            assert list(call["arguments"]) == tools[call["name"]]["parameters"].get("required", [])
            seen += 1
    assert seen > 500


def test_entities_of_the_two_splits_never_meet() -> None:
    makers = (
        "word", "invented_name", "foreign", "foreign_phrase", "accented", "identifier", "digits", "pick_noun",
    )  # fmt: skip
    train, test = Source("train", 1), Source("test", 1)
    for maker in makers:
        drawn = {getattr(train, maker)() for _ in range(400)}
        assert not drawn & {getattr(test, maker)() for _ in range(400)}, maker


def test_tools_of_the_test_are_unknown_in_training(training: list[Sample]) -> None:
    def names(samples: list[Sample]) -> set[str]:
        systems = [s.messages[0][1] for s in samples if s.messages[0][0] == "system"]
        return {tool["function"]["name"] for text in systems for tool in listed_tools(text)}

    # Names with a capital are those of records, as libraries make them from classes: a closed set.
    tested = {name for name in names(held_out_samples(30, 2)) if not name[0].isupper()}
    assert len(tested) > 50
    assert not tested & names(training)


def test_held_out_wordings_of_facts_are_not_in_training(training: list[Sample]) -> None:
    questions = defaultdict(set)
    for sample in training:
        if sample.skill == "facts":
            user, answer = sample.plain()[-2:]
            questions[answer[1]].add(user[1].lower().rstrip("?."))
    for sample in held_out_samples(60, 4):
        if sample.skill == "facts":
            user, answer = sample.plain()[-2:]
            assert user[1].lower().rstrip("?.") not in questions[answer[1]], user


def test_held_out_questions_about_texts_are_not_in_training() -> None:
    """The statements are the same here, so that only the wordings can differ."""
    texts = Source("train", 6)
    statements = [told for _ in range(40) for told in make_text(texts, 4).statements]
    train, test = Source("train", 7), Source("test", 7)
    for told in {told.relation.sentences[0]: told for told in statements}.values():
        asked = {told.question(train) for _ in range(300)}
        canonical = told.relation.questions[0].format(s=told.subject.name)
        assert canonical in asked
        assert not asked & ({told.question(test) for _ in range(60)} - {canonical})


def test_wordings_that_are_put_together_are_many_and_of_their_split() -> None:
    def wordings(split: str) -> list[str]:
        source = Source(split, 5)
        return [put_together(source, 2, "order") for _ in range(5000)]

    train, test = wordings("train"), wordings("test")
    assert len(set(train)) > 2500
    train += [put_together(Source("train", seed), 1, "order") for seed in range(1000)]
    assert not set(train) & set(test)
    # Not in small letters or without a full stop, either.
    asked = {normal(request) for function in UNKNOWN for request in function.requests}
    about = [w for w in (*ABOUT_ONE, *ABOUT_TWO) if Source("test", 1).allows_wording("wording|about", w, "")]
    asked |= {normal(wording.format("{0}", "{1}", t="order")) for wording in about}
    assert not set(map(normal, train)) & asked
    assert all(re.sub(r"[^{}\d]", "", wording) in ("{0}", "{0}{1}") for wording in (*train, *test))


@pytest.mark.parametrize("split", ["train", "test"])
def test_functions_that_are_offered_together_differ(split: str) -> None:
    source = Source(split, 8)
    for _ in range(300):
        offered = make_tools(source, 4)
        assert len({tool.purpose for tool in offered}) == len({tool.name for tool in offered}) == 4


def test_passages_answer_their_question() -> None:
    source = Source("test", 5)
    for _ in range(200):
        question, passage = passage_pair(source)
        subject = max(re.findall(r"[^\W_]+", question), key=lambda word: (word[0].isupper(), len(word)))
        assert subject in passage or question[0].isupper()
        assert 5 < len(passage) < 800


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_story_is_known_as_one_of_its_hero(split: str) -> None:
    source = Source(split, 3)
    answers = [story(source).messages[-1][1] for _ in range(20)]
    assert all(is_story_like(answer, answer) for answer in answers)
    named = [answer for answer in answers if "named Finn" not in answer]
    assert not any(is_story_like(one, other) for one, other in itertools.pairwise(named))
    assert not any(is_story_like(answer, answer.replace("One day", "Then")) for answer in answers)
    assert not any(is_story_like(answer, answer[:-20]) for answer in answers)
