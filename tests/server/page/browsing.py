"""What tests of the page do all the time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hosting import Hosted

from bitnet.testing import FakeEngine, FakeReply

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

Opener = Callable[..., "Page"]
Serve = Callable[..., Hosted]
Eventually = Callable[[Callable[[], bool]], None]

# For answers that do not end by themselves.
UNLIMITED = {"max_tokens": 50_000}


def slow_engine(pieces: Sequence[str] = ("word ",) * 5000) -> FakeEngine:
    """Gives a piece every 20 ms, for longer than any test."""
    return FakeEngine(FakeReply(pieces, delay=0.02), n_ctx=60_000)


def send(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")


def answers(page: Page) -> Locator:
    return page.locator(".answer .body")


def expect_answer(page: Page, text: str, index: int = -1) -> None:
    """The answer is whole, and this."""
    page.locator("#thread:not([data-busy])").wait_for()
    assert answers(page).nth(index).inner_text() == text


def expect_text(locator: Locator, text: str) -> None:
    locator.filter(has_text=text).first.wait_for()


def stored_chats(page: Page) -> list[dict[str, Any]]:
    script = "Object.entries(localStorage).filter(([k]) => k.startsWith('bitnet.chat.')).map(([, v]) => v)"
    return [json.loads(text) for text in page.evaluate(script)]
