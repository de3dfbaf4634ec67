"""A server with the bundled model, and a maker of servers with scripted ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from hosting import Hosted, hosted

from bitnet import BitNet
from bitnet.server import create_app
from bitnet.server.runner import Listening
from bitnet.testing import FakeEngine, Script


@pytest.fixture(scope="session")
def server(model: BitNet) -> Iterator[Hosted]:
    """The bundled model as "tiny"."""
    with hosted(create_app({"tiny": model})) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Hosted) -> Iterator[openai.OpenAI]:
    """The official client of that server."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def serve() -> Iterator[Callable[..., Hosted]]:
    """Serves a script (see FakeEngine) or a model, with the options of create_app."""
    with contextlib.ExitStack() as stack:

        def start(
            script: Script | FakeEngine | BitNet,
            *,
            listening: Listening | None = None,
            send_buffer: int | None = None,
            **options: Any,
        ) -> Hosted:
            if not isinstance(script, BitNet):
                engine = script if isinstance(script, FakeEngine) else FakeEngine(script)
                script = stack.enter_context(BitNet.from_engine(engine))
            return stack.enter_context(hosted(create_app({"m": script}, **options), listening, send_buffer))

        yield start
