"""`bitnet serve`: an OpenAI-compatible server."""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet.cli import options
from bitnet.errors import BitNetError, ValidationError
from bitnet.models import bundled

if TYPE_CHECKING:
    from bitnet.config import BitNetConfig
    from bitnet.server.serving import ModelSource

# More than for a single user: a server has several.
N_BATCH = 4
_NAME = re.compile(r"([A-Za-z0-9._:@-]+(?:/[A-Za-z0-9._:@-]+)*)=(.+)", re.DOTALL)


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="[NAME=]MODEL",
            help="A file, folder or name as bitnet run -m takes it, and the name that requests call it by "
            "(default: the file's, without its ending). May be given several times: the first is loaded now "
            "and answers requests that name no model, the others when they are first asked for. Default: the "
            "bundled model.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Address to listen on. 127.0.0.1: this machine only; 0.0.0.0: everybody who can reach it.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port to listen on; 0: any free one.")
    ] = 8080,
    api_key_file: Annotated[
        str | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help="A file of keys, one a line. Requests must send one of them as Authorization: Bearer KEY.",
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            metavar="NAME",
            help='A further name in the Host header of requests to answer, or "*" for any. May be given '
            "several times. Default: localhost and ADDRESS while it listens on this machine only and there "
            "are no keys, else any.",
        ),
    ] = None,
    threads: options.Threads = None,
    ctx: options.Context = None,
    kv_type: options.KvType = None,
    layout: options.Layout = None,
    tl_config: options.TlConfig = None,
    activation: options.Activation = None,
    scales: options.Scales = None,
    override: options.Override = None,
    engine: options.Engine = None,
    gpu_layers: options.GpuLayers = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            metavar="N",
            min=1,
            max=256,
            help=f"Answers computed together; memory for keys and values grows with it. Default: {N_BATCH}.",
        ),
    ] = None,
    queue: Annotated[
        int,
        typer.Option(
            "--queue", metavar="N", min=0, help="Requests that may wait for their turn; more get status 429."
        ),
    ] = 64,
    keep_alive: Annotated[
        float | None,
        typer.Option(
            "--keep-alive",
            metavar="SECONDS",
            help="How long a model stays loaded without requests; negative: for ever. Default: for ever with "
            "one model, 300 with several.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            metavar="N",
            min=1,
            help="The most tokens a request may ask for. Default: what fits into the context.",
        ),
    ] = None,
    max_body: Annotated[
        int, typer.Option("--max-body", metavar="BYTES", min=1024, help="The largest request body.")
    ] = 4 << 20,
    max_requests: Annotated[
        int,
        typer.Option(
            "--max-requests",
            metavar="N",
            min=1,
            help="Requests under way at the same time, for all models together; more get status 429.",
        ),
    ] = 256,
    request_timeout: Annotated[
        float,
        typer.Option(
            "--request-timeout", metavar="SECONDS", min=0.001, help="The longest a request may take."
        ),
    ] = 600.0,
    client_timeout: Annotated[
        float,
        typer.Option(
            "--client-timeout",
            metavar="SECONDS",
            min=0.001,
            help="How long to wait for a client that sends its request, or reads its answer, slowly.",
        ),
    ] = 30.0,
    drain_timeout: Annotated[
        float,
        typer.Option(
            "--drain-timeout",
            metavar="SECONDS",
            min=0,
            help="How long running requests may go on after SIGTERM or Ctrl-C.",
        ),
    ] = 30.0,
    template_arg: Annotated[
        list[str] | None,
        typer.Option(
            "--template-arg",
            metavar="NAME",
            help="A further name that requests may set for the chat template, in chat_template_kwargs. May "
            "be given several times. Always allowed: enable_thinking.",
        ),
    ] = None,
    access_log: Annotated[
        bool,
        typer.Option(
            "--access-log/--no-access-log", help="Whether to log a line for each request, on stderr."
        ),
    ] = True,
    config: options.Config = None,
) -> None:
    """Serve models over HTTP, as OpenAI's API does.

    Any OpenAI client can use it with the base URL http://ADDRESS:PORT/v1. There is a page to chat on at /,
    and /metrics for Prometheus. SIGTERM or Ctrl-C ends it, after the requests that are running.

    Example: bitnet serve -m model.gguf, then curl http://127.0.0.1:8080/v1/chat/completions -d
    '{"messages": [{"role": "user", "content": "Hi"}]}'
    """
    try:
        from bitnet.server.app import create_app
        from bitnet.server.runner import Listening, run
    except ImportError as error:
        raise BitNetError(
            f"bitnet serve needs the package {error.name}: pip install 'bitnet-cpp[server]'"
        ) from None
    from bitnet.server.gate import is_loopback
    from bitnet.server.keys import ApiKeys
    from bitnet.server.limits import Limits

    keys = ApiKeys() if api_key_file is None else ApiKeys.from_file(api_key_file)
    _log(access_log)
    settings = _settings(
        config,
        model or [],
        n_ctx=ctx,
        n_threads=threads,
        n_batch=batch,
        kv_type=kv_type,
        layout=layout,
        tl_config=tl_config,
        activation=activation,
        scales=scales,
        override=override,
        engine=engine,
        n_gpu_layers=gpu_layers,
    )
    sources = {name: _source(found, queue) for name, found in settings.items()}
    if keep_alive is None:
        keep_alive = -1 if len(sources) == 1 else 300
    defaults = Limits()
    limits = Limits(
        max_body_bytes=max_body,
        max_requests=max_requests,
        max_tokens=max_tokens,
        default_max_tokens=next(iter(settings.values())).max_tokens,
        request_seconds=request_timeout,
        template_args=defaults.template_args.union(template_arg or []),
    )
    alone = is_loopback(host)
    if not alone and not keys:
        logging.getLogger("bitnet.server").warning(
            "listening on %s without --api-key-file: everybody who can reach this machine can use it", host
        )
    app = create_app(
        sources,
        api_keys=keys,
        limits=limits,
        allowed_hosts=_hosts(host, allowed_host or [], restricted=alone and not keys),
        keep_alive=keep_alive,
    )
    run(
        app,
        Listening(
            host=host,
            port=port,
            drain_seconds=drain_timeout,
            receive_seconds=client_timeout,
            stall_seconds=client_timeout,
        ),
    )


def _settings(config: str | None, models: list[str], **given: Any) -> dict[str, BitNetConfig]:
    """How each model is loaded, by its name. Raises BitNetError."""
    from bitnet.config import load

    found: dict[str, BitNetConfig] = {}
    asked: list[str | None] = [*models] or [None]
    for one in asked:
        name, path = (None, None) if one is None else _split(one)
        settings = options.settings(config, model=path, **given)
        if given["n_batch"] is None and not settings.given("n_batch"):
            settings = load(settings, n_batch=N_BATCH)
        if name is None:
            named = path or settings.model or settings.model_path or bundled.NAME
            name = os.path.basename(named).removesuffix(".gguf")
        if name in found:
            raise ValidationError(f"two models have the name {name!r}: give them names, as -m NAME=FILE")
        found[name] = settings
    return found


def _split(model: str) -> tuple[str | None, str]:
    """[NAME=]FILE"""
    match = None if os.path.exists(model) else _NAME.fullmatch(model)
    return (match[1], match[2]) if match else (None, model)


def _source(settings: BitNetConfig, queue: int) -> ModelSource:
    """Makes the model when it is wanted. A file that does not exist is noticed now."""
    from bitnet.model import BitNet

    def make() -> BitNet:
        return BitNet.from_config(settings, max_waiting=queue, lazy=True)

    make().close()
    return make


def _hosts(host: str, allowed: list[str], *, restricted: bool) -> set[str] | None:
    """Names in the Host header to answer; None = any."""
    if "*" in allowed or not (allowed or restricted):
        return None
    return {"localhost", "127.0.0.1", "::1", host, *allowed}


def _log(access_log: bool) -> None:
    """Lines with the time, on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("bitnet.server", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    if not access_log:
        logging.getLogger("bitnet.server.access").setLevel(logging.WARNING)
