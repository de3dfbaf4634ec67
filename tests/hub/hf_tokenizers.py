"""Tokenizers of Hugging Face folders, of every kind there is, with small vocabularies."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from reference.model_factory import byte_alphabet

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


def write_tokenizer(folder: Path, kind: str, size: int) -> None:
    """kind: llama3, falcon3, qwen, sentence_piece, gemma. size: of the vocabulary."""
    settings: dict[str, Any] = {}
    if kind == "sentence_piece":
        _write_sentence_piece(folder)
        settings = {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "add_bos_token": True,
            "add_eos_token": False,
        }
        (folder / "added_tokens.json").write_text(json.dumps({"<pad>": 320, "</line>": 321}))
    elif kind == "gemma":
        _gemma(size).save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "GemmaTokenizer",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "add_bos_token": True,
            "add_eos_token": True,
        }
    else:
        _byte_level(kind).save(str(folder / "tokenizer.json"))
        names = {
            "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
            "falcon3": (None, "<|endoftext|>"),
            "qwen": (None, "<|im_end|>"),
        }
        bos, eos = names[kind]
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": {"content": eos},
        }
        if kind == "llama3":
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [513, 521]}))
            settings["chat_template"] = (
                "{% for m in messages %}{{ m.role + ': ' + m.content + '<|eot_id|>' }}{% endfor %}Assistant: "
            )
        if kind == "falcon3":
            settings["chat_template"] = [
                {
                    "name": "default",
                    "template": "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '\\n' }}"
                    "{% endfor %}<|assistant|>\\n",
                },
                {"name": "tool_use", "template": "no"},
            ]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _byte_level(kind: str) -> Tokenizer:
    """256 bytes and some merges below 512, special tokens from there on; of Falcon's the end at 11."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("i", "n"),
        ("e", "r"),
        ("Ġ", "the"),
        ("Ġ", "t"),
        ("H", "e"),
        ("l", "l"),
        ("ll", "o"),
        ("He", "llo"),
        ("1", "2"),
        ("12", "3"),
        ("Ġ", "w"),
        ("o", "r"),
    ]
    tokens = alphabet + ["".join(pair) for pair in merges]
    if kind == "falcon3":
        tokens.insert(11, "<|endoftext|>")
    tokens += [f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(512 - len(tokens))]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=kind != "qwen"))
    pattern = QWEN2_PATTERN if kind == "qwen" else LLAMA3_PATTERN
    if kind == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = {
        "llama3": [
            "<|begin_of_text|>",
            "<|end_of_text|>",
            *(f"<|reserved_special_token_{i}|>" for i in range(7)),
            "<|eot_id|>",
        ],
        "falcon3": ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>"],
        "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    }[kind]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    if kind == "llama3":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 512)]
        )
    if kind == "qwen":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 512)]
        )
    return tokenizer


def _gemma(size: int) -> Tokenizer:
    """Byte fallback, spaces as U+2581, no prefix: <pad> 0, <eos> 1, <bos> 2, <unk> 3."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyzHIW.,0123456789"]
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("l", "l"),
        ("H", "e"),
        ("ll", "o"),
        ("He", "llo"),
        ("\u2581", "w"),
        ("\u2581", "\u2581"),
        ("1", "2"),
    ]
    tokens = (
        special + [f"<0x{byte:02X}>" for byte in range(256)] + letters + ["".join(pair) for pair in merges]
    )
    tokens += [f"word{i}" for i in range(size - len(tokens) - 2)]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return tokenizer


def _write_sentence_piece(folder: Path) -> None:
    """tokenizer.model, byte by byte as its format has it: 320 pieces."""
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyzHIW.,"]
    merged = ["th", "the", "in", "er", "\u2581t", "\u2581the", "He", "ll", "llo", "Hello", "\u2581w", "or"]
    pieces = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
    ]
    pieces += [(text, float(-i), 1) for i, text in enumerate(merged)]
    pieces += [(text, float(-100 - i), 1) for i, text in enumerate(letters)]
    pieces += [(f"word{i}", float(-500 - i), 1) for i in range(320 - len(pieces))]
    data = b"".join(_field(1, _piece(*piece)) for piece in pieces)
    data += _field(2, _varint_field(3, 2) + _varint_field(35, 1))  # trainer: BPE, byte fallback
    data += _field(
        3, _field(1, b"identity") + _varint_field(3, 1) + _varint_field(4, 0)
    )  # spaces stay, one more
    (folder / "tokenizer.model").write_bytes(data)


def _piece(text: str, score: float, kind: int) -> bytes:
    return _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _varint_field(3, kind)


def _field(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def write_random_tokenizer(folder: Path, vocab_size: int) -> None:
    """The vocabulary of the models of reference/model_factory.py, as tokenizer.json."""
    merges = [("t", "h"), ("i", "n"), ("th", "e"), ("e", "r")]
    tokens = byte_alphabet() + ["".join(pair) for pair in merges]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [f"<|special_{i}|>" for i in range(vocab_size - len(tokens))]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.save(str(folder / "tokenizer.json"))
