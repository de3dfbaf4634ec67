"""The OpenAI-compatible HTTP server: `create_app` for any ASGI host, `run` for `bitnet serve`.

    exchange    one HTTP request and its response: reading JSON, sending JSON or events
    gate        who gets in: keys, hosts, draining; and what became of each request: log and metrics
    parameters  every parameter of the OpenAI API, and what it means here
    chat, completions, responses, embeddings, text    the endpoints: OpenAI's shapes to BitNet's and back
    serving     the models behind their names: loaded when needed, unloaded when idle
    watch       stops a computation nobody waits for any more
    runner      uvicorn around it, with time limits for clients and an orderly end

Endpoints translate; what is valid and how it is computed is for `bitnet.BitNet` to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet.server.app import create_app
    from bitnet.server.limits import Limits

__all__ = ["Limits", "create_app"]


def __getattr__(name: str) -> Any:
    value: Any
    if name == "Limits":
        from bitnet.server.limits import Limits as value
    elif name == "create_app":
        from bitnet.server.app import create_app as value
    else:
        raise AttributeError(f"module 'bitnet.server' has no attribute {name!r}")
    return value
