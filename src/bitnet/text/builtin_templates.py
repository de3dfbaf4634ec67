"""The chat formats of the supported models, and which model has which.

For files that carry no template or a wrong one. Rendering is left to chat_template.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from bitnet.errors import ModelFileError

from .tokenizer import Tokenizer

# BitNet b1.58 2B-4T, as in its tokenizer_config.json on the Hub.
BITNET_2B_4T = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message.role|capitalize + ': ' + message.content|trim + '<|eot_id|>' }}"
    "{% endfor %}{{ 'Assistant: ' if add_generation_prompt }}"
)

# Llama 3 Instruct, of which Llama3-8B-1.58 is made.
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{{ message.content|trim + '<|eot_id|>' }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt }}"
)

# Falcon 3 Instruct.
FALCON3 = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "{{ '<|assistant|>\n' + message.content + eos_token + ('' if loop.last else '\n') }}"
    "{% elif message.role == 'tool' %}"
    "{{ '<|assistant|>\n<tool_response>\n' + message.content + '\n</tool_response>\n' }}"
    "{% else %}{{ '<|' + message.role + '|>\n' + message.content + '\n' }}{% endif %}"
    "{% endfor %}{{ '<|assistant|>\n' if add_generation_prompt }}"
)

# Microsoft's converter writes a template with this word into its files, whatever the model.
_PLACEHOLDER = "BITNETAssistant"


class Choice(NamedTuple):
    """A template, None for a model without one, and a sentence for the log if it is not the file's own."""

    source: str | None
    repair: str | None = None


def choose_template(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> Choice:
    """The file's own template, unless it is missing or the converter's placeholder.

    Raises ModelFileError if `tokenizer.chat_template` is not a string.
    """
    embedded = metadata.get("tokenizer.chat_template")
    if embedded is not None and not isinstance(embedded, str):
        raise ModelFileError(f"tokenizer.chat_template must be a string, not {type(embedded).__name__}")
    if embedded is not None and _PLACEHOLDER in embedded:
        return Choice(
            BITNET_2B_4T,
            "The chat template in the model file is a converter's placeholder; "
            "the one of BitNet b1.58 2B-4T is used (metadata override: tokenizer.chat_template).",
        )
    if embedded is not None and embedded.strip():
        return Choice(embedded)
    known = _known_model(metadata, tokenizer)
    if known is None:
        return Choice(None)
    model, source = known
    return Choice(
        source,
        f"The model file has no chat template; the one of {model} is used "
        "(metadata override: tokenizer.chat_template).",
    )


def _known_model(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[str, str] | None:
    name = re.sub(r"[^a-z0-9]", "", str(metadata.get("general.name", "")).lower())
    architecture = metadata.get("general.architecture")
    # Base models share architectures and vocabularies with chat models, so that the name or a token has to
    # decide.
    if architecture in ("bitnet-b1.58", "bitnet-25") and tokenizer.token_id("<|eot_id|>") is not None:
        return "BitNet b1.58 2B-4T", BITNET_2B_4T
    if "llama38b158" in name and tokenizer.token_id("<|start_header_id|>") is not None:
        return "Llama 3", LLAMA3
    if "falcon3" in name and "instruct" in name and tokenizer.eos_id is not None:
        return "Falcon 3", FALCON3
    return None
