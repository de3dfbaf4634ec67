"""A browser, and pages in it that are watched.

It takes the playwright package and a Chromium; without them these tests are skipped. With
BITNET_REQUIRE_BROWSER=1 they fail instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browsing import Opener

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

# A fresh browser that asks nobody anything.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    def missing(what: str) -> None:
        if os.environ.get("BITNET_REQUIRE_BROWSER"):
            pytest.fail(what)
        pytest.skip(what)

    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("tests of the page in a browser need playwright: pip install playwright")
    # Only while these tests run: its event loop would be in the way of asyncio.run elsewhere.
    with sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, CHROMIUMS)), playwright.chromium.executable_path)
        if not Path(path).exists():
            missing("tests of the page in a browser need Chromium: apt-get install chromium")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Opener]:
    """Opens the page of a server in a browser that remembers nothing.

    At the end: nothing but that server was asked for anything, and nothing was wrong in the page.
    """
    with contextlib.ExitStack() as stack:
        wrong: list[str] = []

        def note(message: ConsoleMessage) -> None:
            # That a request failed is for the page to tell, and for tests to expect.
            expected = message.text.startswith("Failed to load resource") and "/v1/" in str(message.location)
            if message.type in ("error", "warning") and not expected:
                wrong.append(message.text)

        def open_it(url: str, *, settings: dict[str, Any] | None = None, **options: Any) -> Page:
            options = {"viewport": {"width": 1280, "height": 800}, **options}
            if settings:
                kept = [{"name": "bitnet.settings", "value": json.dumps(settings)}]
                options["storage_state"] = {"origins": [{"origin": url, "localStorage": kept}]}
            context = browser.new_context(**options)
            stack.callback(context.close)
            context.set_default_timeout(60_000)  # for busy machines
            context.on("console", note)
            context.on("weberror", lambda error: wrong.append(str(error.error)))

            def check(request_url: str) -> None:
                if not request_url.startswith((url + "/", "data:", "blob:")):
                    wrong.append(f"request to {request_url}")

            context.on("request", lambda request: check(request.url))
            page = context.new_page()
            page.goto(url + "/")
            return page

        yield open_it
    assert not wrong, "\n".join(wrong)
