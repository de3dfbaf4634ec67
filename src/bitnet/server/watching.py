"""/models, /health and /metrics: what there is, and how it is doing."""

from __future__ import annotations

from typing import Any

from bitnet.server.errors import unavailable
from bitnet.server.exchange import Exchange
from bitnet.server.metrics import CONTENT_TYPE
from bitnet.server.serving import ServedModel


async def models(exchange: Exchange) -> None:
    served = exchange.service.models.values()
    await exchange.send_json({"object": "list", "data": [_model(model) for model in served]})


async def one_model(exchange: Exchange) -> None:
    name = exchange.scope["path_params"]["name"]
    await exchange.send_json(_model(exchange.service.models.find(name)))


def _model(model: ServedModel) -> dict[str, Any]:
    described: dict[str, Any] = {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "bitnet",
        "loaded": model.loaded,
    }
    info = model.info
    if info is not None:
        described["max_model_len"] = info.n_ctx
        described["meta"] = {
            "name": info.name,
            "architecture": info.architecture,
            "n_params": info.n_parameters,
            "n_vocab": info.vocab_size,
            "n_embd": info.hidden_size,
            "n_ctx": info.n_ctx,
            "n_ctx_train": info.context_length,
            "n_batch": info.n_batch,
            "has_chat_template": info.has_chat_template,
        }
    return described


async def health(exchange: Exchange) -> None:
    """/health and /health/live: the process answers."""
    await exchange.send_json({"status": "ok"})


async def ready(exchange: Exchange) -> None:
    """/health/ready: it takes requests."""
    if exchange.service.draining:
        raise unavailable("the server is shutting down")
    await exchange.send_json({"status": "ok"})


async def metrics(exchange: Exchange) -> None:
    body = exchange.service.metrics.render()
    await exchange.send_bytes(body, ((b"content-type", CONTENT_TYPE),))
