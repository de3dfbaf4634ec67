"""EmbeddingRequest: texts to turn into vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bitnet.errors import ValidationError

from .checks import as_flag, as_integer, as_text

EmbeddingKind = Literal["query", "document"]
Pooling = Literal["mean", "last"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Texts to turn into vectors, each for itself.

    texts: a list of texts, none empty; a single string is one text.
    kind: what a text is in a search; matters for models that expect different words before each.
    pooling: "mean" of all tokens' hidden states, or the "last" token's; None = as the model declares, which
    for a plain language model is the mean.
    normalize: scale each vector to the length 1.
    dimensions: only that many of each vector's first numbers, before it is scaled; for models that were
    trained to be shortened (Matryoshka). None = all.
    prefix: words before each text; None = those that the model is known to expect for this kind.
    Raises ValidationError naming the field.
    """

    texts: tuple[str, ...]
    kind: EmbeddingKind = "document"
    pooling: Pooling | None = None
    normalize: bool = True
    dimensions: int | None = None
    prefix: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", _texts(self.texts))
        if self.kind not in ("query", "document"):
            raise ValidationError(f'kind must be "query" or "document", not {self.kind!r}', field="kind")
        if self.pooling not in ("mean", "last", None):
            raise ValidationError(
                f'pooling must be "mean", "last" or None, not {self.pooling!r}', field="pooling"
            )
        as_flag("normalize", self.normalize)
        if self.dimensions is not None:
            as_integer("dimensions", self.dimensions, 1, 2**31 - 1)
        if self.prefix is not None:
            as_text("prefix", self.prefix)

    @classmethod
    def build(
        cls,
        texts: str | Iterable[str],
        kind: EmbeddingKind,
        pooling: Pooling | None,
        normalize: bool,
        dimensions: int | None,
        prefix: str | None,
    ) -> EmbeddingRequest:
        """Of texts as callers have them. Raises ValidationError naming the field."""
        return cls(
            texts=texts,  # type: ignore[arg-type]  # made a tuple there
            kind=kind,
            pooling=pooling,
            normalize=normalize,
            dimensions=dimensions,
            prefix=prefix,
        )


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValidationError(f"texts must be a list of strings, not {type(value).__name__}", field="texts")
    texts = tuple(value)
    for index, text in enumerate(texts):
        try:
            as_text(f"texts[{index}]", text)
        except ValidationError as error:
            raise ValidationError(str(error), field="texts") from None
        if not text:
            raise ValidationError(
                f"texts[{index}] is empty: an empty text has no embedding; leave it out", field="texts"
            )
    return texts
