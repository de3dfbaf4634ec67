"""Byte-level BPE for the corpus, and conversations as token ids.

The file splits text like Llama 3 (`llama-bpe` at run time), but its merges are learned on a finer split: a
space never merges with a letter and digits stay single, so that a word has the same tokens everywhere it
stands. Without that a small model cannot copy words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpus.source import MARK, UNMARK, Message, Sample, unmarked
from .guides import Guide, clue_guides, copy_guides, small_letters

LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FINE_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{Ll}+|\p{Lu}\p{Ll}*|\p{L}|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s"
)
SPECIAL_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<tool_call>", "</tool_call>")
BEGIN, END, END_OF_TURN = 0, 1, 2
ROLES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
GENERATION_PREFIX = "Assistant: "


class Encoded(NamedTuple):
    """Token ids, the loss weight of each as a target (0 outside of answers), and where each stands.

    Conversations that begin alike are one row: the common beginning (branch 0), then what is different in
    each (branch 1, 2, ...), which sees the beginning and itself.
    """

    ids: list[int]
    weights: list[float]
    positions: list[int]
    branches: list[int]
    guides: list[Guide]


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = split_by(_FINE_SPLIT)
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # The same merges behind the split of the run time, which also takes a whole piece that is a token.
    state = json.loads(learner.to_str())
    state["model"]["ignore_merges"] = True
    return at_run_time(Tokenizer.from_str(json.dumps(state)))


def at_run_time(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the split that the engine knows as `llama-bpe`."""
    tokenizer.pre_tokenizer = split_by(LLAMA_SPLIT)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def prompt_text(messages: Sequence[Message]) -> str:
    """The chat format of BitNet-2B-4T, without the token that begins the text."""
    turns = "".join(f"{ROLES[role]}: {text.strip()}<|eot_id|>" for role, text in messages)
    return turns + GENERATION_PREFIX


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    return [BEGIN, *text_ids(tokenizer, prompt_text(messages))]


_PLAIN, _STRUCTURE, _ENDING = 0.6, 0.15, 0.5  # weights beside the 1 of what is marked and of the first token
# The first token of what is marked decides, the others mostly follow from it: without more weight, the choice
# of a function or of a sentence would be one token of a dozen.
_DECISION = 4.0


def _marked_spans(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without its marks, and the spans that they enclosed."""
    spans: list[tuple[int, int]] = []
    plain = ""
    for part in re.split(f"({MARK}[^{UNMARK}]*{UNMARK})", text):
        inner = unmarked(part)
        if inner and inner != part:
            spans.append((len(plain), len(plain) + len(inner)))
        plain += inner
    return plain, spans


def _encode_answer(
    tokenizer: Tokenizer, text: str, forced: bool
) -> tuple[list[int], list[float], list[tuple[int, int]]]:
    """Tokens, their weights, and which tokens [start, end) are what is marked."""
    plain, spans = _marked_spans(text)
    encoded = tokenizer.encode(plain, add_special_tokens=False)
    ids = [*encoded.ids, END_OF_TURN]
    if not spans:
        weights = [1.0] * len(ids)
    else:
        structure = plain.startswith(("<", "{", "["))  # which a grammar may force
        other = 0.0 if forced else _STRUCTURE if structure else _PLAIN
        weights = [
            1.0 if any(start < last and first < end for start, end in spans) else other
            for first, last in encoded.offsets
        ]
        weights.append(0.0 if forced else _ENDING)
        if not forced:
            weights[0] = 1.0
    # In all, an answer weighs a root of what it has to decide: else long ones would drown the short ones.
    scale = sum(weights) ** -0.7
    for start, end in spans:
        at = next(i for i, (first, last) in enumerate(encoded.offsets) if start < last and first < end)
        weights[at] = _DECISION
    # What ends a value (tools.marked_object) is marked with it, and is not copied.
    inside = [_inside(encoded.offsets, start, end - (plain[end - 1] in '",}')) for start, end in spans]
    return ids, [weight * scale for weight in weights], inside


def _inside(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The tokens with nothing but characters of [start, end)."""
    found = [i for i, (a, b) in enumerate(offsets) if start <= a and b <= end]
    return (found[0], found[-1] + 1) if found else (0, 0)


def encode(tokenizer: Tokenizer, sample: Sample) -> Encoded:
    """A conversation for training. An answer is tokenised apart from its prompt, as when it is generated."""
    ids, weights = [BEGIN], [0.0]
    pending: list[Message] = []
    guides: list[Guide] = []
    for message in sample.messages:
        role, text = message
        if role != "assistant":
            pending.append((role, text))
            continue
        asked = prompt_text(pending)
        prompt = tokenizer.encode(asked, add_special_tokens=False)
        answer, answer_weights, spans = _encode_answer(tokenizer, text, sample.forced)
        if sample.clue and message is sample.messages[sample.answer]:
            decision = max(range(len(answer)), key=answer_weights.__getitem__)
            same = small_letters(tokenizer)
            guides += clue_guides(asked, prompt, same, sample.clue, len(ids), decision, answer[decision])
        ids += prompt.ids
        guides += copy_guides(ids, answer, spans)
        ids += answer
        weights += [0.0] * len(prompt.ids) + answer_weights
        pending = []
    return Encoded(ids, weights, list(range(len(ids))), [0] * len(ids), list(dict.fromkeys(guides)))


def merge(rows: Sequence[Encoded]) -> Encoded:
    """Rows that begin alike as one row."""
    first = rows[0]
    if len(rows) == 1:
        return first
    common = 0
    for tokens in zip(*(row.ids for row in rows), strict=False):
        if len(set(tokens)) > 1:
            break
        common += 1
    common = min(common, min(len(row.ids) for row in rows) - 1)
    # What is predicted first in a branch is predicted from the branch.
    while any(row.weights[common] > 0 for row in rows):
        common -= 1
    ids, weights, positions = first.ids[:common], first.weights[:common], list(range(common))
    branches = [0] * common
    guides: dict[Guide, None] = {}  # in order, each once
    for i, row in enumerate(rows, 1):
        length = len(row.ids) - common
        moved = len(ids) - common
        for kind, place, start, end, told in row.guides:
            # What begins in the common part and ends in the branch has other branches, unseen, in between.
            start, end = start + moved * (start >= common), end + moved * (end > common)
            guides[Guide(kind, place + moved * (place >= common), start, end, told)] = None
        ids += row.ids[common:]
        weights += row.weights[common:]
        positions += range(common, common + length)
        branches += [i] * length
    return Encoded(ids, weights, positions, branches, list(guides))
