"""Texts to test on, and byte-level vocabularies: trained here on a little text by the library whose results
ours must equal, and written as GGUF metadata the way llama.cpp's converters write it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's what they'd said: we'll see.",
    "I'm sure you've been there.",
    "def encode(self, text: str) -> list[int]:\n    return [self.ids[c] for c in text if c != '\\n']\n",
    'for (int i = 0; i < 10; ++i) {\n\tprintf("%d\\n", values[i]);\n}\n\n\n#include <vector>\n',
    "Größe, façade, naïve, Straße. Быстрая лисица прыгает через ленивую собаку. Η γρήγορη αλεπού.",
    "素早い茶色の狐はのろまな犬を飛び越えた。敏捷的棕色狐狸跳过懒狗。",
    "빠른 갈색 여우가 게으른 개를 뛰어넘는다.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول. तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है।",
    "😀 😃 👩‍👩‍👧‍👦 🇫🇷 👍🏽 ❤️ 1234567890 3.14159 2024-01-31 100,000,000 ½ ² Ⅷ",
    "aaaa aaaaaaaa hahahaha banana ananas bandana    four spaces        eight\n\n\n\n",
    "\t\ttabs\r\nCRLF\r\n\r\n",
] * 3

# Text that none of the vocabularies was trained on, with what splitters and byte levels get wrong.
SAMPLES = [
    "",
    " ",
    "Hello, world!",
    "  leading and trailing  ",
    "I'M SURE you'Re RIGHT, isn't it? 'tis o'clock 'S",
    "12 123 1234 12345 1.5e-10 ١٢٣٤٥ ٪ ½¼ ⅷ",
    "line\nline\r\nline\r\r\n\n\n   indented\n \n\t\n\u00a0nbsp\u3000ideographic\u2028separator\u200bzero",
    "x=[i**2 for i in range(10)];y={'a':1};z=a->b<<=c!=d&&!e||f;/* c */ // d",
    "日本語のテキスト、中文文本。한국어 텍스트! ภาษาไทย עברית العربية हिन्दी தமிழ்",
    "e\u0301 é ñ n\u0303 Å A\u030a \u1e9b\u0323 ﬁ ﬀ \u0301alone क्षि",
    "😀😃👩‍👩‍👧‍👦🇫🇷🇩🇪👍🏽❤️\u200d\ufe0f𝒳𝓎𝔃 \U0010fffd \ue000",
    "\x00\x01\x7f\x80\xad\ufeff\ufffd",
    "aaaaaaaaaaaaaaaaaaaaa bananananas hahahahaha ---------- ========= ........",
    "                 seventeen spaces" + " " * 40 + "\t" * 9,
    "<|eot_id|> <|begin_of_text|><s></s><unk><0x41> [PAD700] <|im_end|>",
    "www.example.org/path?q=1&r=%20#frag user@host C:\\dir\\file.txt",
    "ALLCAPS CamelCase snake_case kebab-case ünïcödé",
]

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_0|>",
)


@dataclass
class Trained:
    """A vocabulary: its reference implementation, and the same as GGUF metadata."""

    reference: Any
    metadata: dict[str, Any]

    def with_changes(self, **changes: Any) -> dict[str, Any]:
        """The metadata with `tokenizer.ggml.<key>` replaced, or removed if the value is None."""
        metadata = dict(self.metadata)
        for key, value in changes.items():
            metadata[f"tokenizer.ggml.{key}"] = value
            if value is None:
                del metadata[f"tokenizer.ggml.{key}"]
        return metadata


def train_byte_level(pre: str, pattern: str, specials: tuple[str, ...]) -> Trained:
    reference = Tokenizer(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if pre == "qwen2":
        reference.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    reference.train_from_iterator(CORPUS, trainer)
    state = json.loads(reference.to_str())
    merges = [" ".join(merge) for merge in state["model"]["merges"]]
    if pre in ("llama-bpe", "falcon3"):
        # A whole word without merges: what ignore_merges is for.
        state["model"]["vocab"]["Ġbananananas"] = len(state["model"]["vocab"])
        state["model"]["ignore_merges"] = True
    reference = Tokenizer.from_str(json.dumps(state))
    reference.add_special_tokens([AddedToken(name, normalized=False) for name in specials])
    n_tokens = reference.get_vocab_size()
    ids = {name: reference.token_to_id(name) for name in specials}
    return Trained(
        reference,
        {
            "general.architecture": "llama",
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": [reference.id_to_token(i) for i in range(n_tokens)],
            "tokenizer.ggml.token_type": [1] * (n_tokens - len(specials)) + [3] * len(specials),
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.bos_token_id": ids[specials[0]],
            "tokenizer.ggml.eos_token_id": ids[specials[1]],
        },
    )
