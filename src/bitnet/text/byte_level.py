"""Byte-level BPE (`tokenizer.ggml.model` = gpt2), run by the `tokenizers` library on the file's own merges.

Knows the splitters of the supported models. Special tokens are left to special_tokens.py: none can come out
of here.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from bitnet.errors import ModelFileError, ValidationError

from .vocabulary import TokenType, Vocabulary, byte_value, is_valid_unicode, raw_bytes

_LLAMA3_VOCAB_SIZE = 128256
_FALCON3_VOCAB_SIZE = 131072
_SPACE = "\u0120"  # how GPT-2's alphabet writes a space


@dataclass(frozen=True)
class Splitter:
    """How text is cut before merging."""

    pattern: str | None  # None: GPT-2's own
    ignore_merges: bool = False  # a cut piece that is a token is taken whole
    compose: bool = False  # Unicode NFC first, as the models trained with this splitter had it
    add_bos: bool = False  # where the file does not say


def _pattern(digits: str) -> str:
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    )


# The patterns, and ignore_merges, as in the published tokenizer.json of Llama 3, Falcon 3 and Qwen 2.
_LLAMA3 = Splitter(_pattern(r"\p{N}{1,3}"), ignore_merges=True, add_bos=True)
_FALCON3 = Splitter(_LLAMA3.pattern, ignore_merges=True)
_GPT2 = Splitter(None)
SPLITTERS = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _FALCON3,
    "falcon_e": _FALCON3,
    "falcon-e": _FALCON3,
    "qwen2": Splitter(_pattern(r"\p{N}"), compose=True),
    "gpt2": _GPT2,
    "gpt-2": _GPT2,
    "default": _GPT2,
}


def is_unknown(vocabulary: Vocabulary) -> bool:
    """Whether the file names a splitter that is not known here."""
    return vocabulary.model == "gpt2" and vocabulary.pre is not None and vocabulary.pre not in SPLITTERS


def choose_splitter(vocabulary: Vocabulary, repairs: list[str]) -> Splitter:
    """The splitter the file names, or the one it must mean; appends to `repairs` where it names none.

    Raises ModelFileError for an unknown name: a wrong splitter gives wrong tokens without any sign of it.
    """
    if vocabulary.pre is not None:
        if vocabulary.pre not in SPLITTERS:
            raise ModelFileError(
                f"the pre-tokenizer {vocabulary.pre!r} (tokenizer.ggml.pre) is not known; "
                f"known: {', '.join(SPLITTERS)}"
            )
        return SPLITTERS[vocabulary.pre]
    name, reason = _splitter_of(vocabulary)
    repairs.append(
        f"The model file names no pre-tokenizer; {name} is used, because {reason} "
        "(metadata override: tokenizer.ggml.pre)."
    )
    return SPLITTERS[name]


def _splitter_of(vocabulary: Vocabulary) -> tuple[str, str]:
    """The splitter that a vocabulary was made with, and why.

    By the size and the special tokens of known families; else by what only one kind of splitter can have
    left: GPT-2's keeps numbers whole, with the space before them; Llama 3's cuts them into three digits at
    most; Qwen 2's into single ones.
    """
    n_tokens, ids = len(vocabulary.tokens), vocabulary.ids
    if n_tokens == _LLAMA3_VOCAB_SIZE:
        return "llama-bpe", f"the vocabulary has {n_tokens} tokens, as Llama 3's"
    if n_tokens == _FALCON3_VOCAB_SIZE and "<|endoftext|>" in ids:
        return "falcon3", f"the vocabulary has {n_tokens} tokens, as Falcon 3's"
    if "<|begin_of_text|>" in ids and "<|end_of_text|>" in ids:
        return "llama-bpe", "the vocabulary has the special tokens of Llama 3"
    spaced = any(token[:1] == _SPACE and token[1:].isdecimal() for token in vocabulary.tokens)
    numbers = [token for token in vocabulary.tokens if token.isascii() and token.isdecimal()]
    digits = max(map(len, numbers), default=1)
    if digits == 1 and not spaced and {"<|endoftext|>", "<|im_start|>", "<|im_end|>"} <= ids.keys():
        return "qwen2", "the vocabulary has the special tokens of Qwen 2, and no numbers"
    if spaced or digits > 3:
        return "gpt-2", "its tokens hold whole numbers"
    if digits > 1:
        return "llama-bpe", f"its tokens hold {digits} digits at most"
    return "gpt-2", "nothing in the vocabulary tells it"


def _byte_alphabet() -> dict[int, str]:
    """The character that stands for each byte (GPT-2): itself if printable, else the next from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


_CHARACTER_OF_BYTE = _byte_alphabet()
# For str.translate and then Latin-1; characters outside of the alphabet become one that Latin-1 cannot hold.
_BYTE_OF_CHARACTER = dict.fromkeys(range(256), 65535) | {
    ord(character): byte for byte, character in _CHARACTER_OF_BYTE.items()
}


def token_bytes(vocabulary: Vocabulary) -> list[bytes]:
    """The bytes each token stands for, by id. Raises ModelFileError for malformed tokens."""
    pieces = []
    for token_id, token in enumerate(vocabulary.tokens):
        kind = vocabulary.type_of(token_id)
        if kind == TokenType.NORMAL:
            try:
                pieces.append(token.translate(_BYTE_OF_CHARACTER).encode("latin-1"))
            except UnicodeEncodeError:
                pieces.append(raw_bytes(token))  # not written in the byte alphabet: taken as it stands
        elif kind == TokenType.BYTE:
            pieces.append(bytes([byte_value(token)]))
        else:
            pieces.append(raw_bytes(token))
    return pieces


class ByteLevelModel:
    """Text without special tokens to ids."""

    def __init__(self, vocabulary: Vocabulary, splitter: Splitter, control: Set[int]) -> None:
        """`control` ids are kept out of the merges: plain text cannot spell them.

        Raises ModelFileError if there are no merges, or merges of tokens that do not exist.
        """
        if vocabulary.merges is None:
            raise ModelFileError("the model file has a BPE tokenizer without merges (tokenizer.ggml.merges)")
        pieces = {
            token: token_id
            for token, token_id in vocabulary.ids.items()
            if token_id not in control and is_valid_unicode(token)
        }
        self._bpe = Tokenizer(
            models.BPE(vocab=pieces, merges=_merges(vocabulary, pieces), ignore_merges=splitter.ignore_merges)
        )
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitter.pattern is None)
        if splitter.pattern is None:
            self._bpe.pre_tokenizer = byte_level
        else:
            split = pre_tokenizers.Split(Regex(splitter.pattern), "isolated")
            self._bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        if splitter.compose:
            self._bpe.normalizer = normalizers.NFC()
        self._missing_bytes = {
            byte for byte, character in _CHARACTER_OF_BYTE.items() if character not in pieces
        }

    def encode(self, text: str) -> list[int]:
        """Raises ValidationError for a byte without a token: the library would drop it."""
        if self._missing_bytes:
            lost = self._missing_bytes.intersection(text.encode())
            if lost:
                raise ValidationError(
                    f"this model has no token for the byte 0x{min(lost):02X}, which the text contains"
                )
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids


def _merges(vocabulary: Vocabulary, pieces: dict[str, int]) -> list[tuple[str, str]]:
    merges = []
    for rank, merge in enumerate(vocabulary.merges or ()):
        left, _, right = merge.partition(" ")
        if left not in vocabulary.ids or right not in vocabulary.ids or left + right not in vocabulary.ids:
            raise ModelFileError(f"merge {rank} ({merge!r}) names a token that the vocabulary does not have")
        if left in pieces and right in pieces and left + right in pieces:
            merges.append((left, right))
    return merges
