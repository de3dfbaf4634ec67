"""What generations of api mode promise: cancelling, closing, event loops, threads, forks, proxies."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import multiprocessing
import os
import pickle
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_server import KEY, Asked, ScriptedServer, Talk, chat_chunk, openai_routes

from bitnet import BitNet, EngineClosedError, ServerUnreachableError, ValidationError, unload_all
from bitnet.engines.http import HttpEngine
from conftest import Connect, Scripted

CHAT = "POST /v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
Wait = Callable[[Callable[[], bool]], None]


async def endless(asked: Asked, talk: Talk) -> None:
    """Words until the client hangs up."""
    await talk.head()
    gone = asyncio.ensure_future(talk.until_gone())
    with contextlib.suppress(ConnectionError):
        while not gone.done():
            await talk.event(chat_chunk("word "))
            await asyncio.sleep(0.005)
    await gone


def test_cancelling_hangs_up_whenever_it_comes(
    scripted: Scripted, connect: Connect, eventually: Wait
) -> None:
    """While it connects, asks, waits for the response or reads it."""
    server = scripted(**{CHAT: endless})
    model = connect(server)
    for milliseconds in [0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 20] * 10:
        with pytest.raises(TimeoutError):
            model.stream_chat(HI).result(timeout=milliseconds / 1000)
    eventually(lambda: server.n_open <= 1)  # one may be kept that was not used in the end


def test_cancelling_hangs_up(scripted: Scripted, connect: Connect, eventually: Wait) -> None:
    server = scripted(**{CHAT: endless})
    model = connect(server)

    generation = model.stream_chat(HI)
    seen = [next(generation), next(generation)]
    generation.cancel()
    seen += generation
    reply = generation.result()
    assert (reply.finish_reason, reply.text) == ("cancelled", "".join(delta.text for delta in seen))
    eventually(lambda: server.n_gone == 1)

    for _ in model.stream_chat(HI):
        break  # dropped
    gc.collect()
    eventually(lambda: server.n_gone == 2)

    with pytest.raises(TimeoutError):
        model.stream_chat(HI).result(timeout=0.1)
    eventually(lambda: server.n_gone == 3)

    async def some() -> None:
        task = asyncio.ensure_future(model.achat(HI))
        while len(server.asked("/v1/chat/completions")) < 4:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async for _ in model.astream_chat(HI):
            break

    asyncio.run(some())
    gc.collect()
    eventually(lambda: server.n_gone == 5)
    eventually(lambda: model._lease.engine().health().running == 0)


def test_cancelled_before_the_first_token(scripted: Scripted, connect: Connect, eventually: Wait) -> None:
    server = scripted(**{CHAT: lambda asked, talk: talk.until_gone()})
    model = connect(server)
    model.load()
    generation = model.stream_chat(HI, n=2)
    generation.cancel()  # perhaps before anything was sent
    assert [sample.finish_reason for sample in generation.result().samples] == ["cancelled"] * 2
    generation = model.stream_chat(HI)
    eventually(lambda: len(server.asked("/v1/chat/completions")) >= 1)
    generation.cancel()
    assert (generation.result().text, generation.result().finish_reason) == ("", "cancelled")
    eventually(lambda: server.n_gone >= 1)


def test_cancelled_embeddings(scripted: Scripted, connect: Connect, eventually: Wait) -> None:
    server = scripted(**{"POST /v1/embeddings": lambda asked, talk: talk.until_gone()})
    model = connect(server)

    async def some() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model.aembed("x"), 0.3)

    model.load()
    asyncio.run(some())
    eventually(lambda: server.n_gone == 1)


def test_event_loops_and_threads(scripted: Scripted, connect: Connect) -> None:
    model = connect(scripted())

    async def several() -> list[str]:
        replies = await asyncio.gather(*(model.achat(HI) for _ in range(8)))
        return [reply.text for reply in replies]

    for _ in range(3):
        assert asyncio.run(several()) == ["Hello!"] * 8
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(model.chat(HI).text)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["Hello!"] * 8
    assert len([t for t in threading.enumerate() if t.name == "bitnet-http"]) == 1


def test_a_loop_is_not_held_up(scripted: Scripted, connect: Connect) -> None:
    async def slow(asked: Asked, talk: Talk) -> None:
        await asyncio.sleep(0.4)
        await talk.json({"data": [{"id": "tiny"}]})

    model = connect(scripted(**{"GET /v1/models": slow, CHAT: endless}))

    async def ticks() -> int:
        asking = asyncio.ensure_future(anext(model.astream_chat(HI)))
        count = 0
        while not asking.done():
            await asyncio.sleep(0.01)
            count += 1
        await asking
        return count

    assert asyncio.run(ticks()) >= 10


def test_a_consumer_that_comes_later(scripted: Scripted, connect: Connect, eventually: Wait) -> None:
    generation = connect(scripted()).stream_chat(HI)
    eventually(lambda: generation.done)

    async def read() -> list[str]:
        return [delta.text async for delta in generation]

    assert asyncio.run(read()) == ["Hel", "lo", "!"]


def test_close(scripted: Scripted, connect: Connect, eventually: Wait) -> None:
    server = scripted(**{CHAT: endless})
    model = connect(server)
    generations = [model.stream_chat(HI) for _ in range(3)]
    next(generations[0])
    model.close()
    for generation in generations:
        with pytest.raises(EngineClosedError):
            generation.result()
    for use in (lambda: model.chat(HI), lambda: model.embed("x")):
        with pytest.raises(EngineClosedError):
            use()
    model.close()
    eventually(lambda: not [t for t in threading.enumerate() if t.name == "bitnet-http"])
    eventually(lambda: server.n_gone == len(server.asked("/v1/chat/completions")))
    assert model.info.name == "tiny"
    assert "closed" in repr(model)


def test_close_ends_waiting_calls(scripted: Scripted, connect: Connect, eventually: Wait) -> None:
    server = scripted(**{"POST /v1/embeddings": lambda asked, talk: talk.until_gone()})
    model = connect(server)
    errors: list[BaseException] = []

    def embed() -> None:
        try:
            model.embed("x")
        except EngineClosedError as error:
            errors.append(error)

    async def aembed() -> None:
        try:
            await model.aembed("x")
        except EngineClosedError as error:
            errors.append(error)

    threads = [threading.Thread(target=embed), threading.Thread(target=lambda: asyncio.run(aembed()))]
    for thread in threads:
        thread.start()
    eventually(lambda: len(server.asked("/v1/embeddings")) == 2)
    model.close()
    for thread in threads:
        thread.join(10)
    assert len(errors) == 2


def test_dropped_without_close(scripted: Scripted, eventually: Wait) -> None:
    server = scripted()
    engine = HttpEngine(server.url)
    assert BitNet.from_engine(engine).chat(HI).text == "Hello!"
    del engine
    gc.collect()
    eventually(lambda: not [t for t in threading.enumerate() if t.name == "bitnet-http"])


def test_unloaded_and_used_again(scripted: Scripted, connect: Connect) -> None:
    model = connect(scripted())
    assert model.chat(HI).text == "Hello!"
    unload_all()
    assert model.chat(HI).text == "Hello!"


def test_copies_and_pickles(scripted: Scripted, connect: Connect) -> None:
    server = scripted()
    model = connect(server)
    twin = copy.deepcopy(model)
    other = pickle.loads(pickle.dumps(model))
    model.close()
    for each in (twin, other):
        assert each.chat(HI).text == "Hello!"
        assert KEY not in repr(each)
        each.close()
    assert {asked.headers["authorization"] for asked in server.requests} == {f"Bearer {KEY}"}


def test_a_model_that_is_not_lazy_asks_at_once(scripted: Scripted, connect: Connect) -> None:
    server = scripted()
    model = connect(server, lazy=False)
    assert [asked.path for asked in server.requests] == ["/v1/models", "/props"]
    assert model.info.name == "tiny"
    server.close()
    with pytest.raises(ServerUnreachableError):
        BitNet(base_url=server.url, retry=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_fork(scripted: Scripted, connect: Connect, eventually: Wait) -> None:
    server = scripted(**{CHAT: endless})
    model = connect(server)
    generation = model.stream_chat(HI)
    next(generation)
    here, there = multiprocessing.get_context("fork").Pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                generation.result()
            except EngineClosedError:
                there.send("left behind")
            there.send(next(model.stream_chat(HI)).text)
            there.recv()  # lives on until the parent has hung up
        except BaseException as error:
            there.send(repr(error))
        finally:
            os._exit(0)
    answers = [here.recv() if here.poll(20) else "nothing" for _ in range(2)]
    assert answers == ["left behind", "word "]
    assert next(generation).text == "word "
    before = server.n_gone
    generation.cancel()
    eventually(lambda: server.n_gone > before)  # though the child has the socket as well
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert next(model.stream_chat(HI)).text == "word "


def test_an_interpreter_that_ends_in_the_middle(scripted: Scripted) -> None:
    server = scripted(**{CHAT: endless})
    program = (
        "import sys; from bitnet import BitNet\n"
        "model = BitNet(base_url=sys.argv[1])\n"
        "generation = model.stream_chat([{'role': 'user', 'content': 'Hi'}])\n"
        "print(next(generation).text)\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, server.url], capture_output=True, text=True, timeout=60
    )
    assert (run.stdout, run.stderr, run.returncode) == ("word \n", "", 0)


def test_importing_bitnet_does_not_import_a_client() -> None:
    program = "import sys, bitnet.model; sys.exit('httpx' in sys.modules or 'tenacity' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


# Proxies and certificates


async def proxy(asked: Asked, talk: Talk) -> None:
    await talk.head()
    await talk.event(chat_chunk("through the proxy", "stop"))


def proxy_routes() -> dict[str, Any]:
    host = "http://far.example"
    models = openai_routes()["GET /v1/models"]
    return {f"GET {host}/v1/models": models, f"POST {host}/v1/chat/completions": proxy}


def test_proxies(scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    server = scripted(proxy_routes())
    url = f"http://user:pass@127.0.0.1:{server.port}"
    model = connect("http://far.example", proxy=url)
    assert model.chat(HI).text == "through the proxy"
    assert server.requests[0].headers["proxy-authorization"].startswith("Basic ")
    monkeypatch.setenv("HTTP_PROXY", url)
    assert connect("http://far.example").chat(HI).text == "through the proxy"
    direct = scripted()
    assert connect(direct, proxy="").chat(HI).text == "Hello!"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert connect(direct, model="tiny").chat(HI).text == "Hello!"


def test_a_proxy_that_is_none(scripted: Scripted, connect: Connect) -> None:
    with pytest.raises(ValidationError) as caught:
        connect(scripted(), proxy="nonsense://user:password@x").chat(HI)
    assert caught.value.field == "proxy"
    assert "password" not in str(caught.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of 127.0.0.1 that nobody has signed but itself, in one file."""
    folder = tmp_path_factory.mktemp("certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl makes no certificate here")
    certificate.write_bytes(key.read_bytes() + certificate.read_bytes())
    return certificate


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[ScriptedServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = ScriptedServer(openai_routes(), tls=context)
    yield server
    server.close()


def test_certificates(tls_server: ScriptedServer, connect: Connect, certificate: Path) -> None:
    assert tls_server.url.startswith("https:")
    with pytest.raises(ServerUnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
        connect(tls_server, retry=False).chat(HI)
    assert connect(tls_server, verify=str(certificate)).chat(HI).text == "Hello!"
    assert connect(tls_server, verify=False).chat(HI).text == "Hello!"
    with pytest.raises(ValidationError, match="cannot read certificates") as caught:
        connect(tls_server, verify="/nowhere.pem").chat(HI)
    assert caught.value.field == "verify"
