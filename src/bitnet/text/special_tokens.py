"""Special tokens: which ids are controls, which end an answer, and where their texts stand in a string.

The names come from the vocabularies that the supported models ship. Ordinary text is left to the BPE models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .vocabulary import TokenType, Vocabulary, is_valid_unicode

# End of turn, of message or of text in the vocabularies of Llama 3, Falcon, Qwen, ChatML, Phi and their kin.
# Their shape cannot be ordinary text, so that they count whatever type the file gives them.
_END_NAMES = frozenset({
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>",
    "<|end_of_turn|>",
})  # fmt: skip
# These can be ordinary text: Gemma has the HTML tag </s> as a token. They count only as control tokens.
_END_NAMES_IF_CONTROL = frozenset({"</s>", "<eos>", "<end_of_turn>", "<EOT>", "[EOT]", "[EOS]"})
_CONTROL_SHAPE = re.compile(r"<[|｜].+[|｜]>", re.DOTALL)
_PADDING_SHAPE = re.compile(r"\[PAD\d+\]")


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids by role. Control tokens are never made from plain text; end tokens end an answer."""

    control: frozenset[int]
    end: frozenset[int]
    hidden: frozenset[int]  # control, unused and padding tokens: what decode(skip_special=True) leaves out
    control_texts: dict[str, int]
    user_texts: dict[str, int]  # user-defined tokens: matched in any text before it is split
    repairs: list[str]

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> SpecialTokens:
        named = vocabulary.named_ids
        end = {named[name] for name in ("eos", "eot", "eom") if name in named}
        end_by_name = set()
        control = end | ({named["bos"]} if "bos" in named else set())
        hidden: set[int] = set()
        user: set[int] = set()
        for token_id, token in enumerate(vocabulary.tokens):
            kind = vocabulary.type_of(token_id)
            if token in _END_NAMES or (kind == TokenType.CONTROL and token in _END_NAMES_IF_CONTROL):
                end_by_name.add(token_id)
            elif kind == TokenType.NORMAL:
                # A file without types says nothing of control tokens: their shape has to do.
                if vocabulary.types is None and _CONTROL_SHAPE.fullmatch(token):
                    control.add(token_id)
            elif kind in (TokenType.CONTROL, TokenType.UNKNOWN):
                control.add(token_id)
            elif kind == TokenType.UNUSED or _PADDING_SHAPE.fullmatch(token):
                hidden.add(token_id)
            elif kind == TokenType.USER_DEFINED:
                # Some converters give control tokens this type; plain text must not be able to spell those.
                is_control = token_id in named.values() or _CONTROL_SHAPE.fullmatch(token)
                (control if is_control else user).add(token_id)
        repairs = []
        added = end_by_name - end
        if added and "eot" not in named:
            names = ", ".join(f"{vocabulary.tokens[token_id]} ({token_id})" for token_id in sorted(added))
            repairs.append(
                f"The model file names no end-of-turn token; these tokens also end an answer: {names} "
                "(metadata override: tokenizer.ggml.eot_token_id)."
            )
        end |= end_by_name
        control |= end
        return cls(
            control=frozenset(control),
            end=frozenset(end),
            hidden=frozenset(hidden | control),
            control_texts=_texts(vocabulary, control),
            user_texts=_texts(vocabulary, user - control),
            repairs=repairs,
        )


def _texts(vocabulary: Vocabulary, ids: set[int]) -> dict[str, int]:
    """The ids by the text to look for."""
    texts: dict[str, int] = {}
    for token_id in sorted(ids):
        token = vocabulary.tokens[token_id]
        if vocabulary.model == "llama":
            token = token.replace("\u2581", " ")  # older converters leave the symbol for a space in
        # As a control token, a single character would take every such character of a template.
        is_text = vocabulary.type_of(token_id) == TokenType.USER_DEFINED
        if is_valid_unicode(token) and (len(token) > 1 or is_text):
            texts.setdefault(token, token_id)
    return texts


class SpecialTokenFinder:
    """Finds special tokens in text: leftmost first, the longest where several begin."""

    def __init__(self, ids_by_text: Mapping[str, int]) -> None:
        self._ids = dict(ids_by_text)
        lengths: dict[str, set[int]] = {}
        for text in self._ids:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        firsts = "".join(re.escape(first) for first in sorted(lengths))
        self._beginnings = re.compile(f"[{firsts}]") if firsts else None

    def split(self, text: str) -> list[str | int]:
        """`text` in order: special tokens as their ids, everything between them as (non-empty) strings."""
        if self._beginnings is None:
            return [text] if text else []
        parts: list[str | int] = []
        end = 0
        for beginning in self._beginnings.finditer(text):
            start = beginning.start()
            if start < end:
                continue
            for length in self._lengths[text[start]]:
                token_id = self._ids.get(text[start : start + length])
                if token_id is not None:
                    if start > end:
                        parts.append(text[end:start])
                    parts.append(token_id)
                    end = start + length
                    break
        if end < len(text):
            parts.append(text[end:])
        return parts
