"""The tokenizer of a Hugging Face folder as metadata of a GGUF file.

tokenizer.json (byte-level BPE, or SentencePiece-like BPE with byte fallback), or tokenizer.model
(SentencePiece). What comes out is compared with the tokenizer it came from, on texts that differ between
tokenizers: one that splits otherwise gives wrong tokens without any sign of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bitnet.errors import BitNetError, ConversionError
from bitnet.models.hf_config import HfConfig, read_object
from bitnet.models.sentence_piece_file import read_sentence_piece
from bitnet.text.byte_level import SPLITTERS
from bitnet.text.tokenizer import Tokenizer
from bitnet.text.vocabulary import TokenType

if TYPE_CHECKING:
    import tokenizers

_MAX_TEMPLATE_BYTES: Final = 1 << 20
_ADDED_SCORE: Final = -1000.0
_SPACE: Final = "\u2581"
_PROBES: Final = (
    "Hello world",
    "  two  spaces and a tab\tthere",
    "It's we'LL they'd I'M",
    "1 12 123 1234 12345.678",
    "line\nbreak\r\n\r\n  end  \n",
    "def f(x):\n    return x**2  # !?...",
    "ÄÖÜ café naïve — “quotes”",
    "e\u0301 Å",
    "你好，世界。これはテスト",
    "Привет, мир! 3.14",
    "สวัสดี नमस्ते",
    "\U0001f680 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "a" * 40,
)


@dataclass
class _Vocabulary:
    """What will stand in the file. Lists are indexed by token id."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    space_prefix: bool | None = None
    all_tokens_are_probes: bool = False
    added: dict[str, int] = field(default_factory=dict)


def read_tokenizer(folder: Path, config: HfConfig) -> dict[str, tuple[Any, Any]]:
    """The tokenizer's metadata, key -> (value, kind) as GgufWriter.add_metadata has them. Raises
    ConversionError."""
    settings_path = folder / "tokenizer_config.json"
    settings = read_object(settings_path) if settings_path.exists() else {}
    source = _load(folder / "tokenizer.json") if (folder / "tokenizer.json").exists() else None
    if (folder / "tokenizer.model").exists():
        vocabulary = _of_sentence_piece(folder, config.vocab_size)
    elif source is not None:
        vocabulary = _of_json(folder / "tokenizer.json", config.vocab_size)
    else:
        raise ConversionError(f"{folder} has no tokenizer.json and no tokenizer.model")
    ids = {token: token_id for token_id, token in reversed(list(enumerate(vocabulary.tokens)))}
    metadata: dict[str, tuple[Any, Any]] = {
        "tokenizer.ggml.model": (vocabulary.model, "string"),
        "tokenizer.ggml.pre": (vocabulary.pre, "string"),
        "tokenizer.ggml.tokens": (vocabulary.tokens, ("array", "string")),
        "tokenizer.ggml.token_type": (vocabulary.types, ("array", "i32")),
    }
    if vocabulary.scores is not None:
        metadata["tokenizer.ggml.scores"] = (vocabulary.scores, ("array", "f32"))
    if vocabulary.merges is not None:
        metadata["tokenizer.ggml.merges"] = (vocabulary.merges, ("array", "string"))
    if vocabulary.space_prefix is not None:
        metadata["tokenizer.ggml.add_space_prefix"] = (vocabulary.space_prefix, "bool")
    _add_special(metadata, folder, config, settings, ids, source)
    template = _chat_template(folder, settings)
    if template is not None:
        metadata["tokenizer.chat_template"] = (template, "string")
    if source is not None:
        _compare(folder, metadata, source, vocabulary)
    return metadata


def _load(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    read_object(path)  # its size and shape
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ConversionError(f"{path} is not a tokenizer: {error}") from None


def _of_json(path: Path, size: int) -> _Vocabulary:
    data = read_object(path)
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        kind = model.get("type") if isinstance(model, dict) else None
        raise ConversionError(f"{path}: a tokenizer of kind {kind!r} is not supported; BPE is")
    added = [one for one in data.get("added_tokens") or () if isinstance(one, dict)]
    tokens = _tokens(path, model["vocab"], added, size)
    merges = [" ".join(one) if isinstance(one, list) else str(one) for one in model.get("merges") or ()]
    added_ids = {one["id"]: one for one in added}
    types = [_type(token_id, token, added_ids, model["vocab"]) for token_id, token in enumerate(tokens)]
    names = {str(one["content"]): int(one["id"]) for one in added}
    steps = _steps(data.get("pre_tokenizer"))
    if any(step.get("type") == "ByteLevel" for step in steps):
        pre, exact = _splitter(path, steps, data)
        return _Vocabulary("gpt2", pre, tokens, types, None, merges, None, not exact, names)
    if not model.get("byte_fallback"):
        raise ConversionError(f"{path}: the tokenizer neither splits bytes nor falls back to them")
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model.get("merges") or ()):
        pair = merge if isinstance(merge, list) else str(merge).split(" ", 1)
        ranks.setdefault("".join(pair), rank)
    scores = []
    for token_id, token in enumerate(tokens):
        if token_id in added_ids or types[token_id] == TokenType.UNUSED:
            scores.append(_ADDED_SCORE)
        else:
            scores.append(-float(ranks[token]) if token in ranks else 0.0)
    return _Vocabulary("llama", "default", tokens, types, scores, None, _prepends_space(data), False, names)


def _tokens(path: Path, vocab: Mapping[str, Any], added: list[dict[str, Any]], size: int) -> list[str]:
    """All tokens by id; ids without one get a name that no text contains."""
    tokens: list[str | None] = [None] * size
    for text, token_id in [*vocab.items(), *((one.get("content"), one.get("id")) for one in added)]:
        if not isinstance(text, str) or type(token_id) is not int or token_id < 0:
            raise ConversionError(f"{path}: the token {text!r} has the id {token_id!r}")
        if token_id >= size:
            raise ConversionError(
                f"{path} has a token with the id {token_id}, but the model only {size} rows"
            )
        if tokens[token_id] not in (None, text):
            raise ConversionError(
                f"{path}: the id {token_id} is that of {tokens[token_id]!r} and of {text!r}"
            )
        tokens[token_id] = text
    return [f"[PAD{token_id}]" if token is None else token for token_id, token in enumerate(tokens)]


def _type(token_id: int, token: str, added: Mapping[int, dict[str, Any]], vocab: Mapping[str, Any]) -> int:
    if token_id in added:
        return TokenType.CONTROL if added[token_id].get("special") else TokenType.USER_DEFINED
    if token not in vocab:
        return TokenType.UNUSED
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return TokenType.BYTE
    return TokenType.UNKNOWN if token == "<unk>" else TokenType.NORMAL


def _steps(pre_tokenizer: Any) -> list[dict[str, Any]]:
    if not isinstance(pre_tokenizer, dict):
        return []
    if pre_tokenizer.get("type") == "Sequence":
        return [step for one in pre_tokenizer.get("pretokenizers") or () for step in _steps(one)]
    return [pre_tokenizer]


def _splitter(path: Path, steps: list[dict[str, Any]], data: Mapping[str, Any]) -> tuple[str, bool]:
    """tokenizer.ggml.pre, and whether it says exactly what the file says."""
    patterns = []
    own_pattern = False
    for step in steps:
        if step.get("type") == "Split" and isinstance(step.get("pattern"), dict) and not step.get("invert"):
            patterns.append(step["pattern"].get("Regex"))
        elif step.get("type") == "ByteLevel" and not step.get("add_prefix_space"):
            own_pattern = own_pattern or bool(step.get("use_regex", True))
        else:
            raise ConversionError(f"{path}: the pre-tokenizer step {step.get('type')!r} is not known here")
    if own_pattern and not patterns:
        patterns = [None]
    normalizer = data.get("normalizer")
    compose = isinstance(normalizer, dict) and normalizer.get("type") == "NFC"
    if normalizer is not None and not compose:
        raise ConversionError(f"{path}: the normalizer {normalizer!r} is not known"[:300])
    merged = bool(data["model"].get("ignore_merges"))
    if len(patterns) == 1:
        for name in ("llama-bpe", "qwen2", "gpt-2"):
            splitter = SPLITTERS[name]
            if splitter.pattern == patterns[0] and splitter.compose == compose:
                return name, splitter.ignore_merges == merged
    raise ConversionError(f"{path}: text is split by a pattern that is not known: {patterns!r}"[:600])


def _prepends_space(data: Mapping[str, Any]) -> bool:
    def walk(node: Any) -> list[dict[str, Any]]:
        if not isinstance(node, dict):
            return []
        below = node.get("normalizers") or node.get("pretokenizers") or ()
        return [node, *(one for child in below for one in walk(child))]

    for node in [*walk(data.get("normalizer")), *walk(data.get("pre_tokenizer"))]:
        if node.get("type") == "Prepend" and node.get("prepend") == _SPACE:
            return True
        if node.get("type") == "Metaspace":
            return bool(
                node.get("prepend_scheme", "always" if node.get("add_prefix_space", True) else "never")
                != "never"
            )
    return False


def _of_sentence_piece(folder: Path, size: int) -> _Vocabulary:
    path = folder / "tokenizer.model"
    found = read_sentence_piece(path)
    tokens: list[str | None] = [piece.text for piece in found.pieces]
    types = [piece.type for piece in found.pieces]
    scores = [piece.score for piece in found.pieces]
    if len(tokens) > size:
        raise ConversionError(f"{path} has {len(tokens)} tokens, but the model only {size} rows")
    tokens += [None] * (size - len(tokens))
    types += [TokenType.UNUSED] * (size - len(types))
    scores += [_ADDED_SCORE] * (size - len(scores))
    names: dict[str, int] = {}
    for text, token_id, special in _added_tokens(folder):
        if not 0 <= token_id < size:
            raise ConversionError(f"{folder}: the added token {text!r} has the id {token_id} of {size}")
        if token_id >= len(found.pieces):
            tokens[token_id] = text
            types[token_id] = TokenType.CONTROL if special else TokenType.USER_DEFINED
            names[text] = token_id
    texts = [f"[PAD{token_id}]" if text is None else text for token_id, text in enumerate(tokens)]
    return _Vocabulary("llama", "default", texts, types, scores, None, found.add_dummy_prefix, False, names)


def _added_tokens(folder: Path) -> list[tuple[str, int, bool]]:
    """(text, id, special) of the tokens beside a tokenizer.model."""
    found: dict[int, tuple[str, int, bool]] = {}
    path = folder / "added_tokens.json"
    if path.exists():
        for text, token_id in read_object(path).items():
            if type(token_id) is int:
                found[token_id] = (text, token_id, False)
    for path, key in (
        (folder / "tokenizer.json", "added_tokens"),
        (folder / "tokenizer_config.json", "added_tokens_decoder"),
    ):
        entries = read_object(path).get(key) if path.exists() else None
        listed = (
            entries.items()
            if isinstance(entries, dict)
            else [(one.get("id"), one) for one in entries or () if isinstance(one, dict)]
        )
        for token_id, one in listed:
            number = str(token_id)
            if isinstance(one, dict) and isinstance(one.get("content"), str) and number.isdecimal():
                found[int(number)] = (one["content"], int(number), bool(one.get("special")))
    return list(found.values())


def _add_special(
    metadata: dict[str, tuple[Any, Any]],
    folder: Path,
    config: HfConfig,
    settings: Mapping[str, Any],
    ids: Mapping[str, int],
    source: tokenizers.Tokenizer | None,
) -> None:
    """Which tokens begin and end a text, and which end an answer."""

    def named(key: str) -> int | None:
        value = settings.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        return ids.get(text) if isinstance(text, str) else None

    bos = named("bos_token")
    bos = config.bos_id if bos is None else bos
    before, after = _around(source)
    is_sentence_piece = metadata["tokenizer.ggml.model"][0] == "llama"
    add_bos, add_eos = bool(before), bool(after)
    if source is None or str(settings.get("tokenizer_class", "")).startswith(("Llama", "Gemma", "CodeLlama")):
        # These classes obey their configuration rather than what tokenizer.json says.
        add_bos = bool(settings.get("add_bos_token", before or is_sentence_piece))
        add_eos = bool(settings.get("add_eos_token", after))
    if len(before) > 1 or len(after) > 1:
        raise ConversionError(f"{folder}: the tokenizer puts {before} before and {after} behind a text")
    bos = before[0] if before else bos
    generation = folder / "generation_config.json"
    more = read_object(generation).get("eos_token_id") if generation.exists() else None
    listed = more if isinstance(more, list) else [more]
    # What stands behind every text is the end of a text, also where answers end otherwise.
    ends = [*after, *config.eos_ids[:1], *(one for one in [named("eos_token")] if one is not None)]
    ends += [one for one in [*config.eos_ids, *listed] if type(one) is int]
    ends = [one for one in dict.fromkeys(ends) if 0 <= one < config.vocab_size]
    if config.is_embedding_model and not add_eos and ends:
        add_eos = True  # the vector is that of the last token, which has to be the end of the text
    pad = named("pad_token")
    special = {
        "bos": bos,
        "eos": ends[0] if ends else None,
        "eot": ends[1] if len(ends) > 1 and not config.is_embedding_model else None,
        "padding": config.pad_id if pad is None else pad,
        "unknown": named("unk_token"),
    }
    for name, token_id in special.items():
        if token_id is not None and token_id < config.vocab_size:
            metadata[f"tokenizer.ggml.{name}_token_id"] = (token_id, "u32")
    if add_bos and bos is None:
        raise ConversionError(f"{folder}: texts begin with a token, but which one is not said (bos_token)")
    if add_eos and not ends:
        raise ConversionError(f"{folder}: texts end with a token, but which one is not said (eos_token)")
    metadata["tokenizer.ggml.add_bos_token"] = (add_bos, "bool")
    metadata["tokenizer.ggml.add_eos_token"] = (add_eos, "bool")


def _around(source: tokenizers.Tokenizer | None) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts before and behind a text."""
    if source is None:
        return [], []
    alone = source.encode("Hello", add_special_tokens=False).ids
    whole = source.encode("Hello").ids
    for first in range(len(whole) - len(alone) + 1):
        if whole[first : first + len(alone)] == alone:
            return whole[:first], whole[first + len(alone) :]
    raise ConversionError("the tokenizer changes a text that gets special tokens; this is not known here")


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        if path.stat().st_size > _MAX_TEMPLATE_BYTES:
            raise ConversionError(
                f"{path} has {path.stat().st_size} bytes; at most {_MAX_TEMPLATE_BYTES} are read"
            )
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    if template is not None and (not isinstance(template, str) or len(template) > _MAX_TEMPLATE_BYTES):
        raise ConversionError(
            f"{folder}: the chat template in tokenizer_config.json is no text of sound length"
        )
    return template


def _compare(
    folder: Path,
    metadata: Mapping[str, tuple[Any, Any]],
    source: tokenizers.Tokenizer,
    vocabulary: _Vocabulary,
) -> None:
    """Raises ConversionError if the tokenizer made from the metadata differs from the one it came from."""
    try:
        made = Tokenizer.from_metadata({key: value for key, (value, _) in metadata.items()})
    except BitNetError as error:
        raise ConversionError(f"{folder}: {error}") from None
    probes = list(_PROBES)
    if vocabulary.all_tokens_are_probes:
        normal = (i for i, kind in enumerate(vocabulary.types) if kind == TokenType.NORMAL)
        texts = (made.token_bytes(token_id) for token_id in normal)
        probes += [text for raw in texts if "\ufffd" not in (text := raw.decode("utf-8", "replace")) and text]
    for probe in probes:
        expected = source.encode(probe, add_special_tokens=False).ids
        found = made.encode(probe, add_special=False)
        if expected != found:
            raise ConversionError(
                f"{folder}: the tokenizer cannot be carried over: {probe!r} would become {found[:12]}, not "
                f"{expected[:12]}"
            )
