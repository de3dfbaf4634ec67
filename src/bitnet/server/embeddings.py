"""/embeddings."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

from bitnet.errors import ContextOverflowError, ValidationError
from bitnet.server import parameters
from bitnet.server.errors import invalid
from bitnet.server.exchange import Exchange
from bitnet.server.watch import Watch
from bitnet.values import Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bitnet.model import BitNet


async def embeddings(exchange: Exchange) -> None:
    body = await exchange.read_json()
    options = parameters.options_of(body, parameters.EMBEDDINGS)
    texts = _texts(body.get("input"), exchange.service.limits.max_inputs)
    as_base64 = _encoding(body.get("encoding_format"))
    served = exchange.service.models.find(body.get("model"))
    exchange.model = served.name
    async with served.use() as model:
        try:
            vectors = await _embed(exchange, model, texts, options)
        except ContextOverflowError as error:
            raise invalid(
                str(error).replace("texts[", "input["), "input", "context_length_exceeded"
            ) from None
        except ValidationError as error:
            if error.field != "texts":
                raise
            raise invalid(str(error).replace("texts", "input"), "input") from None
        n_tokens = await asyncio.to_thread(_count_tokens, model, texts, options)
    exchange.usage = Usage(n_tokens, 0)
    await exchange.send_json(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _encode(vector, as_base64)}
                for index, vector in enumerate(vectors)
            ],
            "model": served.name,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
    )


async def _embed(
    exchange: Exchange, model: BitNet, texts: list[str], options: dict[str, Any]
) -> NDArray[np.float32]:
    computing = asyncio.ensure_future(model.aembed(texts, **options))
    watch = Watch(exchange, computing.cancel)
    try:
        return await computing
    except asyncio.CancelledError:
        watch.check()
        raise
    finally:
        computing.cancel()  # also if this task is cancelled: that stops the computation
        watch.close()


def _count_tokens(model: BitNet, texts: list[str], options: dict[str, Any]) -> int:
    """Of what was computed: the texts, each with the words before it."""
    prefix = options.get("prefix")
    if prefix is None:
        prefix = model.embedding_prefix(options.get("kind", "document"))
    return sum(model.count_tokens(prefix + text) for text in texts)


def _texts(value: Any, limit: int) -> list[str]:
    if value is None:
        raise invalid("input is missing", "input")
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise invalid("input must be a string or a list of strings, at least one", "input")
    if len(texts) > limit:
        raise invalid(f"input must hold at most {limit} texts here, not {len(texts)}", "input")
    if not all(isinstance(text, str) for text in texts):
        # Clients that send token ids made them with OpenAI's tokenizers, and they mean other words here.
        raise invalid(
            "input must be text: token ids belong to one model's vocabulary (for LangChain's "
            "OpenAIEmbeddings, set check_embedding_ctx_length=False)",
            "input",
        )
    return texts


def _encoding(value: Any) -> bool:
    """Whether vectors go out as base64 of little-endian float32, which is what OpenAI's clients ask for."""
    if value not in (None, "float", "base64"):
        raise invalid('encoding_format must be "float" or "base64"', "encoding_format")
    return bool(value == "base64")


def _encode(vector: NDArray[np.float32], as_base64: bool) -> str | list[float]:
    if as_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    values: list[float] = vector.tolist()
    return values
