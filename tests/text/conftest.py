"""Vocabularies of each kind, each with the reference implementation that was trained with it."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
from vocabularies import CORPUS, GPT2, LLAMA3, LLAMA3_SPECIALS, QWEN2, Trained, train_byte_level


@pytest.fixture(scope="session")
def llama3() -> Trained:
    return train_byte_level("llama-bpe", LLAMA3, LLAMA3_SPECIALS)


@pytest.fixture(scope="session")
def falcon3() -> Trained:
    return train_byte_level("falcon3", LLAMA3, ("<|bos|>", "<|endoftext|>", "<|assistant|>", "<|user|>"))


@pytest.fixture(scope="session")
def qwen2() -> Trained:
    return train_byte_level("qwen2", QWEN2, ("<|im_start|>", "<|endoftext|>", "<|im_end|>"))


@pytest.fixture(scope="session")
def gpt2() -> Trained:
    return train_byte_level("gpt-2", GPT2, ("<|startoftext|>", "<|endoftext|>"))


@pytest.fixture(scope="session")
def spm() -> Trained:
    """SentencePiece BPE as Llama 2 has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SWIG's own, on some versions of Python
        import sentencepiece
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

    def token_type(token_id: int) -> int:
        if reference.is_unknown(token_id):
            return 2
        if reference.is_control(token_id):
            return 3
        return 6 if reference.is_byte(token_id) else 1

    n_tokens = reference.vocab_size()
    return Trained(
        reference,
        {
            "general.architecture": "bitnet",
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": [reference.id_to_piece(i) for i in range(n_tokens)],
            "tokenizer.ggml.scores": [reference.get_score(i) for i in range(n_tokens)],
            "tokenizer.ggml.token_type": [token_type(i) for i in range(n_tokens)],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.add_eos_token": False,
        },
    )


@pytest.fixture(scope="session")
def official_2b(llama3: Trained) -> dict[str, Any]:
    """The metadata of the official ggml-model-i2_s.gguf in small: no pre-tokenizer, no eot, the placeholder
    template.

    Padded to the real number of tokens, by which the missing pre-tokenizer is recognised.
    """
    specials = dict.fromkeys(LLAMA3_SPECIALS)
    ordinary = [token for token in llama3.metadata["tokenizer.ggml.tokens"] if token not in specials]
    n_ordinary = 128000
    tokens = ordinary + [f"filler{i}" for i in range(n_ordinary - len(ordinary))]
    tokens += [f"<|reserved_special_token_{i}|>" for i in range(1, 257)]
    named = {128000: "<|begin_of_text|>", 128001: "<|end_of_text|>", 128006: "<|start_header_id|>"}
    named |= {128007: "<|end_header_id|>", 128009: "<|eot_id|>"}
    for token_id, name in named.items():
        tokens[token_id] = name
    return {
        "general.architecture": "bitnet-b1.58",
        "general.name": "bitnet2b",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": [1] * n_ordinary + [3] * 256,
        "tokenizer.ggml.merges": llama3.metadata["tokenizer.ggml.merges"],
        "tokenizer.ggml.bos_token_id": 128000,
        "tokenizer.ggml.eos_token_id": 128001,
        "tokenizer.ggml.padding_token_id": 128001,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": (
            "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
            "{% if message['role'] == 'user' %}"
            "{{ 'Human: ' + message['content'] + '\n\nBITNETAssistant: ' + eos_token }}"
            "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}"
            "{% endfor %}"
        ),
    }
