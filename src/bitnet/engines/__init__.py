"""Who answers a Request. `Engine` is all that `bitnet.model` knows of the one behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bitnet.engines.generation import Generation
    from bitnet.values import EmbeddingRequest, Health, ModelInfo, Request


class Engine(Protocol):
    """Answers requests, many at a time. Every method may be called from any thread."""

    @property
    def info(self) -> ModelInfo: ...

    def submit(self, request: Request) -> Generation:
        """Start answering. Raises ValidationError, ContextOverflowError, ChatTemplateError, OverloadedError
        and EngineClosedError; what goes wrong later is raised by the Generation."""

    def submits_at_once(self, request: Request) -> bool:
        """Whether an event loop may call `submit`, because it takes a millisecond or two at most."""

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`. add_special: with the tokens the model expects around a text.
        parse_special: special tokens written out in the text become those tokens."""

    def detokenize(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str: ...

    def vocabulary(self) -> Sequence[bytes]:
        """The bytes of every token, by its id; of special tokens the name."""

    def render(self, request: Request) -> str:
        """The prompt of `request` as text, special tokens written out: for showing."""

    def count_tokens(self, request: Request) -> int:
        """Tokens the prompt of `request` has for this model."""

    def logits(
        self, token_ids: Sequence[int], *, first: int = 0, cache_salt: str | None = None
    ) -> NDArray[np.float32]:
        """[len(token_ids) - first, vocab_size]: the logits of what follows each token from `first` on.

        cache_salt: tokens that were computed for the same salt before are not computed again."""

    def logprobs(self, token_ids: Sequence[int], *, first: int = 1) -> NDArray[np.float64]:
        """[len(token_ids) - first]: the log-probability of each token from `first` on, given those before."""

    def embed(self, request: EmbeddingRequest) -> NDArray[np.float32]:
        """[len(request.texts), dim]. Raises ValidationError, ContextOverflowError before anything is
        computed, and EngineClosedError, OverloadedError."""

    async def aembed(self, request: EmbeddingRequest) -> NDArray[np.float32]:
        """`embed`, without blocking the event loop. Cancelling the task stops the computation."""

    def health(self) -> Health: ...

    def close(self) -> None:
        """Stop everything and free the model; generations under way end with EngineClosedError."""
