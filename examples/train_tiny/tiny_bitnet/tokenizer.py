"""Byte-level BPE for the corpus, and conversations as token ids.

The file splits text like Llama 3 (`llama-bpe` at run time), but its merges are learned on a finer split: a
space never merges with a letter and digits stay single, so that a word has the same tokens everywhere it
stands. Without that a small model cannot copy words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpus import Message

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
    """Token ids of a conversation, and the loss weight of each as a target (0 outside of answers)."""

    ids: list[int]
    weights: list[float]


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
    tokenizer = Tokenizer.from_str(json.dumps(state))
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


def encode(tokenizer: Tokenizer, messages: Sequence[Message]) -> Encoded:
    """A conversation for training.

    The answer is tokenised apart from its prompt, as it is when it is generated. An answer of n tokens
    weighs sqrt(n) in all, not n: otherwise one-token answers such as an option's number get no gradient.
    """
    ids, weights = [BEGIN], [0.0]
    pending: list[Message] = []
    for role, text in messages:
        if role != "assistant":
            pending.append((role, text))
            continue
        prompt = text_ids(tokenizer, prompt_text(pending))
        answer = [*text_ids(tokenizer, text), END_OF_TURN]
        ids += prompt + answer
        weights += [0.0] * len(prompt) + [len(answer) ** -0.5] * len(answer)
        pending = []
    return Encoded(ids, weights)
