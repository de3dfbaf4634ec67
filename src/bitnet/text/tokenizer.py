"""Tokenizer: text to token ids and back, built from the metadata of a GGUF file.

The vocabulary's checks, the two kinds of BPE and the classes of special tokens are each in a file of their
own; streaming is in incremental.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from bitnet.errors import ModelFileError, ValidationError

from . import byte_level, sentence_piece
from .byte_level import ByteLevelModel
from .sentence_piece import SentencePieceModel
from .special_tokens import SpecialTokenFinder, SpecialTokens
from .vocabulary import Vocabulary

Encode: TypeAlias = Callable[[str], list[int]]


class _OtherModel(NamedTuple):
    """How tokens are made, by something else."""

    encode: Encode


class Tokenizer:
    """The tokenizer of one model. Immutable after construction; safe to share between threads.

    `repairs` tells, in sentences for a log, what was wrong with the file and what was done about it;
    `warnings` what else its user should know.
    """

    def __init__(self, vocabulary: Vocabulary, other_encode: Encode | None = None) -> None:
        """other_encode: what makes tokens of text that is split in a way unknown here; None = it is refused.

        Raises ModelFileError if the vocabulary cannot be used as its model says."""
        special = SpecialTokens.of(vocabulary)
        self.repairs: list[str] = []
        self.warnings: list[str] = []
        self._tokens = vocabulary.tokens
        self._ids_by_text = vocabulary.ids
        self._special = special
        self._model: ByteLevelModel | SentencePieceModel | _OtherModel
        if other_encode is not None and byte_level.is_unknown(vocabulary):
            self._model = _OtherModel(other_encode)
            self._bytes = byte_level.token_bytes(vocabulary)
            self.space_prefix, add_bos = False, False
        elif vocabulary.model == "gpt2":
            splitter = byte_level.choose_splitter(vocabulary, self.repairs)
            self._model = ByteLevelModel(vocabulary, splitter, special.control)
            self._bytes = byte_level.token_bytes(vocabulary)
            self.space_prefix, add_bos = False, splitter.add_bos
        else:
            self._model = SentencePieceModel(vocabulary, special.control)
            self._bytes = sentence_piece.token_bytes(vocabulary)
            self.space_prefix, add_bos = self._model.space_prefix, True
        self.repairs += special.repairs
        if not special.end:
            self.warnings.append(
                "The model file names no token that ends an answer, and none of its tokens is known for "
                "that: answers end at max_tokens or a stop string only. If there is one, say so (metadata "
                "override: tokenizer.ggml.eot_token_id)."
            )
        self.vocab_size = len(vocabulary.tokens)
        self.bos_id: int | None = vocabulary.named_ids.get("bos")
        self.eos_id: int | None = vocabulary.named_ids.get("eos")
        self.pad_id: int | None = vocabulary.named_ids.get("pad")
        self.unk_id: int | None = vocabulary.named_ids.get("unk")
        self.end_ids: frozenset[int] = special.end
        self.special_ids: frozenset[int] = special.hidden
        self.add_bos: bool = (
            add_bos and self.bos_id is not None if vocabulary.add_bos is None else vocabulary.add_bos
        )
        self.add_eos: bool = bool(vocabulary.add_eos)
        for wanted, token_id, name in (
            (self.add_bos, self.bos_id, "bos"),
            (self.add_eos, self.eos_id, "eos"),
        ):
            if wanted and token_id is None:
                raise ModelFileError(
                    f"tokenizer.ggml.add_{name}_token is true, but tokenizer.ggml.{name}_token_id is missing"
                )
        self._user_finder = SpecialTokenFinder(special.user_texts)
        self._all_finder = SpecialTokenFinder({**special.user_texts, **special.control_texts})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], other_encode: Encode | None = None) -> Tokenizer:
        """`metadata`: the `tokenizer.ggml.*` keys of a GGUF file as plain values. other_encode: as above.

        Raises ModelFileError for metadata that is missing, of the wrong type, contradictory or of an unknown
        kind.
        """
        return cls(Vocabulary.from_metadata(metadata), other_encode)

    def ending_with(self, token_id: int) -> Tokenizer:
        """The same tokenizer, with one more token that ends an answer."""
        other = copy.copy(self)
        other.end_ids = self.end_ids | {token_id}
        other.warnings = []
        return other

    @property
    def control_texts(self) -> Mapping[str, int]:
        """The texts that encode(parse_special=True) turns into control tokens."""
        return self._special.control_texts

    def token_id(self, text: str) -> int | None:
        """The id of the token written `text` in the vocabulary, if there is one."""
        return self._ids_by_text.get(text)

    def token_text(self, token_id: int) -> str:
        """The token as it is written in the vocabulary. Raises ValidationError for an unknown id."""
        return self._tokens[self._checked(token_id)]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes the token stands for; of a special token, its name.

        Raises ValidationError for an unknown id.
        """
        return self._bytes[self._checked(token_id)]

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`; `add_special` adds the BOS and EOS tokens that the model file asks for.

        The name of a control token in `text` is ordinary text, unless `parse_special` is set: only text that
        the program wrote itself may be parsed. User-defined tokens are part of the text and always found.
        Raises ValidationError (a ValueError) if `text` contains a lone surrogate.
        """
        check_unicode(text)
        ids: list[int] = []
        if add_special and self.add_bos and self.bos_id is not None:
            ids.append(self.bos_id)
        # Text never follows text, so that every part of it is at the start or after a special token.
        for part in self.split_special(text, controls=parse_special):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._model.encode(part)
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def split_special(self, text: str, *, controls: bool) -> list[str | int]:
        """`text` cut at user-defined and, if `controls`, control tokens. They are given as their ids."""
        return (self._all_finder if controls else self._user_finder).split(text)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`, as it is: no spaces are tidied. Bytes that are not UTF-8 become U+FFFD.

        `skip_special` leaves out control, unused and padding tokens. The space that a SentencePiece model
        puts before a text is taken off again. Raises ValidationError for an id that does not exist.
        """
        pieces = []
        at_start = self.space_prefix
        for token_id in ids:
            piece, at_start = self.visible_bytes(token_id, skip_special=skip_special, at_start=at_start)
            pieces.append(piece)
        return b"".join(pieces).decode("utf-8", "replace")

    def visible_bytes(self, token_id: int, *, skip_special: bool, at_start: bool) -> tuple[bytes, bool]:
        """One step of decoding: the bytes to show for `token_id`, and whether the text is still `at_start`.

        `at_start` says that no text has come yet, so that a leading space is the one that encoding added.
        """
        piece = self.token_bytes(token_id)
        if token_id in self.special_ids:
            return (b"" if skip_special else piece), at_start
        if at_start and piece.startswith(b" "):
            piece = piece[1:]
        return piece, False

    def _checked(self, token_id: int) -> int:
        if not 0 <= token_id < self.vocab_size:
            raise ValidationError(
                f"token id {token_id} is outside of the vocabulary of {self.vocab_size} tokens"
            )
        return token_id


def check_unicode(text: str) -> None:
    """Raises ValidationError if `text` has a lone surrogate: half a character, without bytes in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValidationError(
            f"the text is not valid Unicode: a lone surrogate U+{ord(text[error.start]):04X} "
            f"at character {error.start}"
        ) from None
