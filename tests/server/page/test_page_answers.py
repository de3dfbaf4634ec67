"""The chat page in a browser: questions, answers, and what goes wrong with them."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from browsing import (
    UNLIMITED,
    Eventually,
    Opener,
    Serve,
    answers,
    expect_answer,
    expect_text,
    send,
    slow_engine,
    stored_chats,
)
from hosting import Hosted, hosted

from bitnet import BitNet
from bitnet.errors import BitNetError, OverloadedError
from bitnet.server import create_app
from bitnet.server.page import content_security_policy
from bitnet.testing import FakeEngine, FakeReply

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SOURCE = (resources.files("bitnet.server") / "page.html").read_bytes()

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    ("example", "word"),
    [("capital of France", "Paris"), ("opposite of hot", "cold"), ("brave fox", "fox named")],
)
def test_bundled_model_answers_the_examples(
    open_page: Opener, server: Hosted, example: str, word: str
) -> None:
    page = open_page(server.url, settings={"temperature": 0})
    page.get_by_role("button", name=example).click()
    page.locator(".stats").wait_for()
    assert word in answers(page).inner_text()
    stats = page.locator(".stats").inner_text()
    assert re.search(r"\d+ tokens\s+[\d,.]+ tokens/s\s+first token [\d.,]+ m?s\s+prompt \d+", stats)
    expect_text(page.locator("#room"), "of 2,048 tokens")
    assert page.title().endswith("· BitNet chat")


def test_stream_is_seen_while_it_comes_and_stop_stops_the_computation(
    open_page: Opener, serve: Serve, eventually: Eventually
) -> None:
    engine = slow_engine()
    page = open_page(serve(engine).url, settings=UNLIMITED)
    for stop in (
        lambda: page.get_by_role("button", name="Stop").click(),
        lambda: page.keyboard.press("Escape"),
    ):
        send(page, "Go on")
        expect_text(answers(page).last, "word word word")
        assert engine.health().running == 1
        stop()
        eventually(lambda: engine.health().running == 0)
        expect_text(page.locator(".answer").last, "Stopped.")
        assert page.evaluate("document.activeElement.id") == "message"
        assert "about" in page.locator(".stats").last.inner_text()  # no usage came
    assert page.get_by_role("button", name="Send", exact=True).is_visible()


def test_text_stays_as_it_is(open_page: Opener, serve: Serve) -> None:
    text = (
        '<b>bold?</b>  two  spaces\n\n\ttab & &amp; <img src=x onerror="alert(1)">\n  2**3**4 __init__ * a *'
    )
    page = open_page(serve(text).url)
    send(page, text)
    expect_answer(page, text)
    assert page.locator(".user .body").inner_text() == text
    assert stored_chats(page)[0]["messages"][1]["content"] == text
    page.reload()
    expect_answer(page, text)


def test_not_even_a_mistake_could_make_html_of_text(browser: Browser, server: Hosted) -> None:
    with browser.new_page() as page:  # not watched: the browser reports what it prevents
        page.goto(server.url)
        with pytest.raises(Exception, match="TrustedHTML"):
            page.evaluate("document.body.innerHTML = '<b>text</b>'")


def test_code_and_strong_words(open_page: Opener, serve: Serve, eventually: Eventually) -> None:
    code = "def f():\n\treturn '<b>' # ** not strong **\n\n"
    text = f"Use `a < b` and **this**:\n\n```python\n{code}```\n\nDone.\n~~~\nopen"
    page = open_page(serve(text).url)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    send(page, "Code")
    page.locator(".stats").wait_for()
    body = answers(page)
    assert body.locator(".text code").inner_text() == "a < b"
    assert body.locator("strong").all_inner_texts() == ["this"]
    assert body.locator("pre").all_text_contents() == [code.removesuffix("\n"), "open"]
    assert body.locator(".text").all_inner_texts() == ["Use a < b and this:", "Done."]
    page.get_by_role("button", name="Copy code").first.click()
    expect_text(page.locator("#live"), "Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == code.removesuffix("\n")
    page.get_by_role("button", name="Copy answer").click()
    # Not wait_for_function: from its second look on it evaluates a string in the page, which that forbids.
    eventually(lambda: page.evaluate("navigator.clipboard.readText()") == text)


def test_options_reach_the_engine(open_page: Opener, serve: Serve) -> None:
    engine = FakeEngine("Yes.")
    page = open_page(serve(engine).url)
    send(page, "Default?")
    expect_answer(page, "Yes.")
    page.get_by_role("button", name="Options").click()
    page.get_by_role("textbox", name="System prompt").fill("Be brief.")
    page.get_by_role("slider", name="Temperature").fill("1.5")
    page.get_by_role("spinbutton", name="Top p").fill("0.25")
    page.get_by_role("spinbutton", name="Top k").fill("7")
    page.get_by_role("spinbutton", name="Max tokens").fill("-3")  # becomes the least that is possible
    page.get_by_role("spinbutton", name="Seed").fill("42")
    page.get_by_role("spinbutton", name="Seed").press("Tab")
    assert page.get_by_role("spinbutton", name="Max tokens").input_value() == "1"
    page.get_by_role("spinbutton", name="Max tokens").fill("99")
    send(page, "And now?")
    expect_answer(page, "Yes.")
    page.reload()
    page.get_by_role("button", name="Back to the server's defaults").click()
    send(page, "Again?")
    expect_answer(page, "Yes.")

    first, second, third = engine.requests
    assert first.sampling == third.sampling
    assert first.max_tokens == third.max_tokens
    assert [(m.role, m.content) for m in first.messages or ()] == [("user", "Default?")]
    sampling = second.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (1.5, 0.25, 7, 42)
    assert second.max_tokens == 99
    assert [(m.role, m.content) for m in third.messages or ()] == [
        ("system", "Be brief."),
        ("user", "Default?"),
        ("assistant", "Yes."),
        ("user", "And now?"),
        ("assistant", "Yes."),
        ("user", "Again?"),
    ]


def test_choice_of_model(open_page: Opener) -> None:
    engines = {name: FakeEngine(f"I am {name}.", name=name) for name in ("first", "second")}
    with contextlib.ExitStack() as stack:
        models = {name: stack.enter_context(BitNet.from_engine(engine)) for name, engine in engines.items()}
        page = open_page(stack.enter_context(hosted(create_app(models))).url)
        send(page, "Who?")
        expect_answer(page, "I am first.")
        page.get_by_role("combobox", name="Model").select_option("second")
        send(page, "Who?")
        expect_answer(page, "I am second.")
        page.reload()
        page.locator("#model option").first.wait_for(state="attached")
        assert page.get_by_role("combobox", name="Model").input_value() == "second"
        assert "second" in page.locator(".stats").last.inner_text()


def test_edit_and_regenerate(open_page: Opener, serve: Serve) -> None:
    engine = FakeEngine(["one", "two", "three", "four"])
    page = open_page(serve(engine).url)
    send(page, "A")
    expect_answer(page, "one")
    send(page, "B")
    expect_answer(page, "two")
    page.get_by_role("button", name="Regenerate").click()
    expect_answer(page, "three")
    page.keyboard.press("ArrowUp")
    box = page.get_by_role("textbox", name="Edit your message")
    assert box.input_value() == "B"
    page.keyboard.press("Escape")
    assert page.locator(".user .body").last.inner_text() == "B"
    page.locator(".user").last.hover()
    page.get_by_role("button", name="Edit and send again").click()
    box.fill("C")
    page.keyboard.press("Enter")
    expect_answer(page, "four")
    assert page.locator(".user .body").all_inner_texts() == ["A", "C"]
    assert [m.content for m in engine.requests[2].messages or ()] == ["A", "one", "B"]
    assert [m.content for m in engine.requests[3].messages or ()] == ["A", "one", "C"]


# What goes wrong


def test_overload_tells_when_to_try_again(open_page: Opener, serve: Serve) -> None:
    page = open_page(serve([FakeReply(refuse=OverloadedError("busy")), "Here."]).url)
    send(page, "Hello")
    expect_text(page.locator(".failed"), "The server is busy")
    expect_text(page.locator(".failed"), "Try again in 1 second.")
    page.reload()
    page.get_by_role("button", name="Try again").click()
    expect_answer(page, "Here.")


def test_context_overflow_and_answers_cut_by_the_limit(open_page: Opener, serve: Serve) -> None:
    engine = FakeEngine("0123456789", n_ctx=64)
    page = open_page(serve(engine).url, settings={"max_tokens": 5})
    send(page, "word " * 30)
    expect_text(page.locator(".failed"), "This chat is too long for the model")
    expect_text(page.locator(".failed"), "a context of 64")
    send(page, "short")
    expect_answer(page, "01234")
    expect_text(page.locator(".answer").last, "Cut here")
    # The question that was not answered is not sent again.
    assert [m.content for m in engine.requests[-1].messages or ()] == ["short"]


def test_error_in_the_middle_keeps_the_text_so_far(open_page: Opener, serve: Serve) -> None:
    page = open_page(serve(FakeReply(["Half an ", "answer"], error=BitNetError("defect"), delay=0.05)).url)
    send(page, "Hello")
    expect_text(page.locator(".failed"), "The answer broke off")
    assert answers(page).inner_text() == "Half an answer"


def test_server_that_is_gone(open_page: Opener, serve: Serve) -> None:
    page = open_page(serve("Back.").url)
    page.locator("#model option").first.wait_for(state="attached")
    page.context.set_offline(True)
    send(page, "Hello")
    expect_text(page.locator(".failed"), "The server cannot be reached")
    page.context.set_offline(False)
    page.locator(".failed").get_by_role("button", name="Try again").click()
    expect_answer(page, "Back.")


def test_notice_while_the_models_cannot_be_loaded(open_page: Opener, serve: Serve) -> None:
    page = open_page(serve("Back.").url)
    page.locator("#model option").first.wait_for(state="attached")
    page.context.set_offline(True)
    page.evaluate("loadModels()")
    expect_text(page.get_by_role("alert"), "The server cannot be reached.")
    page.context.set_offline(False)
    page.get_by_role("alert").get_by_role("button", name="Try again").click()
    page.get_by_role("alert").wait_for(state="hidden")


def test_key_is_asked_for_and_kept_in_the_tab_only(open_page: Opener, serve: Serve) -> None:
    page = open_page(serve("Welcome.", api_keys=["sesame-1"]).url)
    field = page.get_by_label("API key", exact=True)
    field.fill("with spaces")
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").is_visible()
    field.fill("wrong")
    page.keyboard.press("Enter")
    expect_text(page.get_by_role("dialog"), "refused this API key")
    field.fill("sesame-1")
    page.get_by_role("button", name="Use this key").click()
    page.locator("#model option[value=m]").wait_for(state="attached")
    send(page, "Hello")
    expect_answer(page, "Welcome.")
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage) + document.documentElement.outerHTML")
    assert "sesame" not in page.url
    page.reload()  # the same tab
    send(page, "Again")
    expect_answer(page, "Welcome.")
    page.get_by_role("button", name="Options").click()
    page.get_by_role("button", name="Forget the API key").click()
    send(page, "And now?")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    expect_text(page.locator(".failed"), "The server wants an API key")


@contextlib.contextmanager
def raw_server(pieces: Sequence[bytes]) -> Iterator[str]:
    """The page, and an answer in exactly these pieces of bytes. Gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            home = self.path == "/"
            body = SOURCE if home else b'{"data": [{"id": "raw", "max_model_len": 64}]}'
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if home else "application/json")
            self.send_header("Content-Security-Policy", content_security_policy(SOURCE).decode())
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(0.01)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def chunk(text: str, finish: str | None = None) -> str:
    """One event. As pretty-printed JSON it has many lines."""
    value = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}
    return "".join(f"data: {line}\n" for line in json.dumps(value, indent=1, ensure_ascii=False).split("\n"))


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_stream_cut_anywhere(open_page: Opener, line_end: str) -> None:
    text = "Grüße 🦊 „zitat“\nnext"
    events = f": hello\n\n{chunk(text[:7])}\nevent: x\nid: 1\n{chunk(text[7:], 'stop')}\ndata: [DONE]\n\n"
    stream = events.replace("\n", line_end).encode()
    with raw_server([stream[i : i + 3] for i in range(0, len(stream), 3)]) as url:
        page = open_page(url)
        send(page, "Hello")
        expect_answer(page, text)
        assert not page.locator(".failed").count()


def test_stream_that_ends_too_soon_and_nonsense(open_page: Opener) -> None:
    with raw_server([chunk("Half").encode() + b"\n"]) as url:
        page = open_page(url)
        send(page, "Hello")
        expect_text(page.locator(".failed"), "The connection broke off")
        assert answers(page).inner_text() == "Half"
    with raw_server([b"data: <html>\n\n"]) as url:
        page = open_page(url)
        send(page, "Hello")
        expect_text(page.locator(".failed"), "The server sent something strange")
