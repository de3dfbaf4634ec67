"""Hugging Face folders of every family, scaled down: real names, real configurations, random weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from reference.model_factory import byte_alphabet

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
MULTIPLY = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "offline",
    "modules_to_not_convert": None,
}
DIVIDE = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}
ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}


@dataclass(frozen=True)
class Family:
    """storage: packed (U8), latent or dequantised. Shapes are those of the published model, divided."""

    name: str
    config: dict[str, Any]
    storage: str
    tokenizer: str  # llama3, falcon3, qwen, sentence_piece, gemma
    prefix: str = "model."
    sub_norms: tuple[str, str] | None = None
    input_norms: bool = False
    gemma: bool = False

    def size(self, key: str) -> int:
        return int(self.config[key])


def _config(cls: str, **more: Any) -> dict[str, Any]:
    return {"architectures": [cls], "torch_dtype": "bfloat16", **more}


def _sizes(
    layers: int, hidden: int, heads: int, kv: int, ffn: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        **more,
    }


_2B = _sizes(
    2,
    512,
    4,
    1,
    1408,
    640,
    rope_theta=500000.0,
    rms_norm_eps=1e-5,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
    hidden_act="relu2",
    bos_token_id=512,
    eos_token_id=513,
    model_type="bitnet",
)
_1BIT = {
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 320,
    "model_type": "llama",
    "weight_bits": 1,
    "input_bits": 8,
    "rope_scaling": None,
}
_FALCON = {
    "rope_theta": 1000042,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "eos_token_id": 11,
    "model_type": "llama",
    "head_dim": 256,
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": DIVIDE,
}
_NORMS_2B = ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm")
_NORMS_1BIT = ("self_attn.inner_attn_ln", "mlp.ffn_layernorm")

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "2b-4t-packed",
            _config("BitNetForCausalLM", **_2B, quantization_config=MULTIPLY),
            "packed",
            "llama3",
            sub_norms=_NORMS_2B,
        ),
        Family(
            "2b-4t-bf16",
            _config("BitNetForCausalLM", **_2B, quantization_config=ONLINE),
            "latent",
            "llama3",
            sub_norms=_NORMS_2B,
        ),
        Family(
            "bitnet-large",
            _config("BitnetForCausalLM", **_1BIT, **_sizes(2, 384, 4, 4, 1024, 322)),
            "latent",
            "sentence_piece",
            sub_norms=_NORMS_1BIT,
        ),
        Family(
            "bitnet-3b",
            _config("BitnetForCausalLM", **_1BIT, **_sizes(2, 400, 4, 4, 1080, 322)),
            "latent",
            "sentence_piece",
            sub_norms=_NORMS_1BIT,
        ),
        Family(
            "llama3-8b",
            _config(
                "LlamaForCausalLM",
                **_sizes(2, 512, 4, 1, 1792, 640),
                rope_theta=500000.0,
                rms_norm_eps=1e-5,
                max_position_embeddings=8192,
                tie_word_embeddings=False,
                hidden_act="silu",
                bos_token_id=512,
                eos_token_id=521,
                is_bitnet_config=True,
                quantization_config=DIVIDE,
            ),
            "packed",
            "llama3",
        ),
        Family(
            "falcon3-1b",
            _config("LlamaForCausalLM", **_sizes(2, 512, 2, 1, 2048, 640), **_FALCON),
            "packed",
            "falcon3",
        ),
        Family(
            "falcon3-3b",
            _config("LlamaForCausalLM", **_sizes(2, 768, 3, 1, 2304, 640), **_FALCON),
            "packed",
            "falcon3",
        ),
        Family(
            "falcon3-7b",
            _config("LlamaForCausalLM", **_sizes(2, 768, 3, 1, 5760, 640), **_FALCON),
            "packed",
            "falcon3",
        ),
        Family(
            "falcon3-10b",
            _config("LlamaForCausalLM", **_sizes(3, 768, 3, 1, 5760, 640), **_FALCON),
            "packed",
            "falcon3",
        ),
        Family(
            "falcon-e-1b",
            _config("LlamaForCausalLM", **_sizes(2, 256, 2, 1, 1024, 640), **{**_FALCON, "head_dim": 128}),
            "packed",
            "falcon3",
        ),
        Family(
            "falcon-e-3b",
            _config(
                "LlamaForCausalLM",
                **_sizes(2, 256, 2, 1, 1664, 640),
                **{**_FALCON, "head_dim": 128, "quantization_config": ONLINE},
            ),
            "dequantised",
            "falcon3",
        ),
        Family(
            "embedding-0.6b",
            _config(
                "Qwen3Model",
                **_sizes(2, 256, 4, 2, 768, 640),
                head_dim=128,
                rope_theta=1000000,
                rms_norm_eps=1e-6,
                max_position_embeddings=32768,
                tie_word_embeddings=True,
                hidden_act="silu",
                eos_token_id=514,
                model_type="qwen3",
                attention_bias=False,
            ),
            "latent",
            "qwen",
            prefix="",
            input_norms=True,
        ),
        Family(
            "embedding-270m",
            _config(
                "Gemma3TextModel",
                **_sizes(2, 192, 2, 1, 640, 384),
                head_dim=256,
                rope_theta=10000.0,
                rms_norm_eps=1e-6,
                max_position_embeddings=32768,
                hidden_activation="gelu_pytorch_tanh",
                query_pre_attn_scalar=256,
                bos_token_id=2,
                eos_token_id=1,
                pad_token_id=0,
                model_type="gemma3_text",
            ),
            "latent",
            "gemma",
            prefix="",
            input_norms=True,
            gemma=True,
        ),
    )
}


@dataclass
class Made:
    """A folder, and what is in it: linear weights by their GGUF stem, rows as Hugging Face orders them."""

    folder: Path
    family: Family
    codes: dict[str, NDArray[np.int8]] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    dense: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    tensors: dict[str, tuple[str, NDArray[Any]]] = field(default_factory=dict)


LINEAR = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def make_folder(family: Family, folder: Path, *, seed: int = 1, **config: Any) -> Made:
    """Write the folder. config: what config.json has otherwise; None = leave out."""
    random = np.random.Generator(np.random.PCG64(seed))
    folder.mkdir(parents=True, exist_ok=True)
    made = Made(folder, replace(family, config={**family.config, **config}))
    kept = {key: value for key, value in made.family.config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    write_tokenizer(family, folder)
    _add_tensors(made, random)
    write_safetensors(folder / "model.safetensors", made.tensors)
    if family.input_norms:
        (folder / "modules.json").write_text(
            json.dumps(
                [
                    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
                    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
                ]
            )
        )
        (folder / "1_Pooling").mkdir(exist_ok=True)
        pooling = {
            "pooling_mode_lasttoken": True,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_cls_token": False,
        }
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        prompts = {"prompts": {"query": "query: ", "web": "Instruct: ..."}}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return made


def _add_tensors(made: Made, random: np.random.Generator) -> None:
    family = made.family
    hidden, heads = family.size("hidden_size"), family.size("num_attention_heads")
    head_dim = family.config.get("head_dim", hidden // heads)
    q, kv, ffn = (
        heads * head_dim,
        family.size("num_key_value_heads") * head_dim,
        family.size("intermediate_size"),
    )
    shapes = {
        "attn_q": (q, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_output": (hidden, q),
        "ffn_gate": (ffn, hidden),
        "ffn_up": (ffn, hidden),
        "ffn_down": (hidden, ffn),
    }
    vocab = family.size("vocab_size")

    def dense(name: str, gguf: str, *shape: int, mean: float = 0.0, gemma: bool = False) -> None:
        values = bf16(mean - gemma + (0.2 if mean else 1) * random.standard_normal(shape).astype(np.float32))
        made.tensors[name] = ("BF16", values)
        made.dense[gguf] = values + np.float32(gemma)

    prefix = family.prefix
    dense(f"{prefix}embed_tokens.weight", "token_embd", vocab, hidden)
    dense(f"{prefix}norm.weight", "output_norm", hidden, mean=1, gemma=family.gemma)
    if family.config.get("tie_word_embeddings") is False:
        dense("lm_head.weight", "output", vocab, hidden)
    for layer in range(family.size("num_hidden_layers")):
        here, block = f"{prefix}layers.{layer}.", f"blk.{layer}."
        norms = {"input_layernorm": ("attn_norm", hidden), "post_attention_layernorm": ("ffn_norm", hidden)}
        if family.gemma:
            norms["post_attention_layernorm"] = ("post_attention_norm", hidden)
            norms["pre_feedforward_layernorm"] = ("ffn_norm", hidden)
            norms["post_feedforward_layernorm"] = ("post_ffw_norm", hidden)
        if family.input_norms:
            norms |= {
                "self_attn.q_norm": ("attn_q_norm", head_dim),
                "self_attn.k_norm": ("attn_k_norm", head_dim),
            }
        if family.sub_norms:
            norms |= {family.sub_norms[0]: ("attn_sub_norm", q), family.sub_norms[1]: ("ffn_sub_norm", ffn)}
        for name, (stem, size) in norms.items():
            dense(f"{here}{name}.weight", block + stem, size, mean=1, gemma=family.gemma)
        for name, stem in LINEAR.items():
            if family.input_norms:
                dense(f"{here}{name}.norm.weight", f"{block}{stem}_norm_in", shapes[stem][1], mean=1)
            _add_linear(made, f"{here}{name}.weight", block + stem, shapes[stem], random)
        if family.sub_norms == _NORMS_1BIT:
            made.tensors[f"{here}self_attn.rotary_emb.inv_freq"] = ("F32", np.ones(head_dim // 2, np.float32))


def _add_linear(
    made: Made, name: str, stem: str, shape: tuple[int, int], random: np.random.Generator
) -> None:
    storage = made.family.storage
    latent = bf16(random.standard_normal(shape).astype(np.float32) * np.float32(0.02))
    scale = np.float32(np.abs(latent).mean(dtype=np.float64))
    codes = np.clip(np.rint(latent * (np.float32(1) / scale)), -1, 1).astype(np.int8)
    if storage == "latent":
        made.tensors[name] = ("BF16", latent)
    elif storage == "dequantised":
        scale = bf16(np.full(1, scale))[0]
        made.tensors[name] = ("BF16", codes * scale)
    else:
        divides = made.family.config["quantization_config"].get("linear_class") != "autobitlinear"
        stored = bf16(np.full(1, 1 / scale if divides else scale, np.float32))
        made.tensors[name] = ("U8", pack(codes))
        made.tensors[f"{name}_scale"] = ("BF16", stored)
        scale = np.float32(1) / stored[0] if divides else stored[0]
    made.codes[stem], made.scales[stem] = codes, float(scale)


def pack(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """As transformers packs: four stripes of rows."""
    stripes = (codes + 1).astype(np.uint8).reshape(4, -1, codes.shape[1])
    return stripes[0] | stripes[1] << 2 | stripes[2] << 4 | stripes[3] << 6


def bf16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to bfloat16."""
    bits = values.astype(np.float32).view(np.uint32)
    return (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, NDArray[Any]]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = []
    offset = 0
    for name, (dtype, values) in tensors.items():
        raw = (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2") if dtype == "BF16" else values
        body = np.ascontiguousarray(raw).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [offset, offset + len(body)],
        }
        offset += len(body)
        data.append(body)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


def write_tokenizer(family: Family, folder: Path) -> None:
    kind, size = family.tokenizer, family.size("vocab_size")
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
