"""The chat page in a browser: what it keeps there."""

from __future__ import annotations

import json

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

from bitnet.testing import FakeEngine, FakeReply

pytestmark = pytest.mark.browser


def test_reload_keeps_the_chats(open_page: Opener, serve: Serve) -> None:
    page = open_page(serve(lambda request: f"About {request.messages[-1].content}").url)
    for text in ("apples", "pears"):
        page.get_by_role("button", name="New chat").click()
        send(page, text)
        expect_answer(page, f"About {text}")
    page.reload()
    expect_answer(page, "About pears")
    titles = page.locator("#chats .open")
    assert titles.all_inner_texts() == ["pears", "apples"]
    assert titles.first.get_attribute("aria-current") == "true"
    titles.last.click()
    expect_answer(page, "About apples")
    send(page, "plums")
    expect_answer(page, "About plums")
    assert titles.all_inner_texts() == ["apples", "pears"]
    # Another tab begins a new chat, and has the same list.
    other = page.context.new_page()
    other.goto(page.url)
    assert other.locator("#chats .open").all_inner_texts() == ["apples", "pears"]
    send(other, "cherries")
    expect_text(titles, "cherries")


def test_reload_in_the_middle_of_an_answer(open_page: Opener, serve: Serve, eventually: Eventually) -> None:
    engine = slow_engine()
    page = open_page(serve(engine).url, settings=UNLIMITED)
    send(page, "Go on")
    expect_text(answers(page), "word word")
    page.reload()
    expect_text(page.locator(".answer"), "Interrupted")
    assert answers(page).inner_text().startswith("word word")
    eventually(lambda: engine.health().running == 0)


def test_answer_goes_on_behind_another_chat(open_page: Opener, serve: Serve) -> None:
    slow, quick = FakeReply(("slow ",) * 5000, delay=0.02), FakeReply("quick")
    engine = FakeEngine(lambda asked: slow if asked.messages[-1].content == "First" else quick, n_ctx=60_000)
    page = open_page(serve(engine).url, settings=UNLIMITED)
    send(page, "First")
    expect_text(answers(page), "slow")
    page.get_by_role("button", name="New chat").click()
    page.get_by_role("img", name="answering").wait_for()
    send(page, "Second")
    expect_answer(page, "quick")
    before = next(chat for chat in stored_chats(page) if chat["title"] == "First")["messages"][1]["content"]
    page.get_by_role("button", name="First", exact=True).click()
    expect_text(answers(page), before + "slow slow")
    page.keyboard.press("Escape")
    expect_text(page.locator(".answer"), "Stopped.")
    assert page.locator("#chats .running").count() == 0


def test_rename_delete_and_export(open_page: Opener, serve: Serve) -> None:
    page = open_page(serve("Yes.").url)
    for text in ("one", "two", "three"):
        page.get_by_role("button", name="New chat").click()
        send(page, text)
        expect_answer(page, "Yes.")
    titles = page.locator("#chats .open")
    titles.nth(1).hover()
    page.get_by_role("button", name="Rename “two”").click()
    page.get_by_label("Title").fill("zwei <2>")
    page.keyboard.press("Enter")
    expect_text(titles, "zwei <2>")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all as JSON").click()
    exported = json.loads(download.value.path().read_text())
    assert sorted(chat["title"] for chat in exported["chats"]) == ["one", "three", "zwei <2>"]
    assert exported["chats"][0]["messages"][1]["content"] == "Yes."
    titles.first.hover()
    page.get_by_role("button", name="Delete “three”").click()
    page.keyboard.press("Escape")  # after all not
    page.get_by_role("button", name="Delete “three”").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="three", exact=True).wait_for(state="detached")
    assert page.locator("#empty").is_visible()  # it was on the screen
    page.reload()
    assert titles.all_inner_texts() == ["zwei <2>", "one"]
    page.get_by_role("button", name="Delete all chats").click()
    page.get_by_role("button", name="Delete all", exact=True).click()
    expect_text(page.locator("#chats"), "Your chats will be listed here.")
    assert stored_chats(page) == []
