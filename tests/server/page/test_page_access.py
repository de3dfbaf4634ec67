"""The chat page in a browser: for the keyboard, for screen readers, for eyes, for small screens."""

from __future__ import annotations

import pytest
from browsing import UNLIMITED, Opener, Serve, answers, expect_answer, expect_text, send, slow_engine

from bitnet.errors import OverloadedError
from bitnet.testing import FakeEngine, FakeReply

pytestmark = pytest.mark.browser


def test_everything_by_keyboard(open_page: Opener, serve: Serve) -> None:
    engine = FakeEngine("Yes.")
    page = open_page(serve(engine).url)
    press = page.keyboard.press
    page.keyboard.type("two")  # the message box has the focus from the start
    press("Shift+Enter")
    page.keyboard.type("lines")
    press("Enter")
    expect_answer(page, "Yes.")
    assert engine.requests[0].messages is not None
    assert engine.requests[0].messages[0].content == "two\nlines"
    press("Enter")  # nothing to send
    assert len(engine.requests) == 1
    press("Control+/")
    assert page.get_by_role("dialog", name="Keyboard shortcuts").is_visible()
    press("Escape")
    assert not page.get_by_role("dialog").is_visible()
    press("Control+Shift+O")
    assert page.locator("#empty").is_visible()
    press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") != "message"
    press("Shift+Escape")
    assert page.evaluate("document.activeElement.id") == "message"
    # One round through the page meets every control that is there, each with a ring around it.
    page.get_by_role("button", name="Options").click()
    page.locator("#chats .open").click()
    reached = set()
    for _ in range(60):
        press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.ariaLabel"))
        # The ring around the message box is on what looks like the box.
        script = """() => [document.activeElement, document.activeElement.closest("form") ?? document.body]
            .some(node => parseFloat(getComputedStyle(node).outlineWidth) > 0)"""
        assert page.evaluate(script) or page.evaluate("document.activeElement === document.body")
    by_label = {"Copy answer", "Regenerate", "Edit and send again", "Rename “two”", "Delete “two”"}
    by_id = (
        "new export clear shortcuts model theme settings scroll message send system temperature-slider "
        "temperature top_p top_k max_tokens seed defaults key"
    )
    assert {*by_id.split(), *by_label} <= reached


def test_finished_answers_are_announced_and_not_every_token(open_page: Opener, serve: Serve) -> None:
    page = open_page(serve(FakeReply(["many ", "small ", "pieces"] * 5, delay=0.02)).url)
    page.evaluate(
        """() => {
            window.said = [];
            new MutationObserver(() => said.push(document.getElementById("live").textContent))
                .observe(document.getElementById("live"), {childList: true, characterData: true});
        }"""
    )
    send(page, "Hello")
    page.locator(".answer[aria-busy=true]").wait_for()
    page.locator(".stats").wait_for()
    expect_text(page.locator("#live"), "Answer: ")
    said = [text for text in page.evaluate("said") if text]
    assert said == ["Answer: " + "many small pieces" * 5]
    assert page.locator(".answer").get_attribute("aria-busy") == "false"
    assert page.locator("[aria-live]:not(#live)").count() == 0


def test_every_control_has_a_name(open_page: Opener, serve: Serve) -> None:
    page = open_page(serve("Use `this`:\n```\ncode\n```").url)
    send(page, "Hello")
    page.locator(".stats").wait_for()
    page.get_by_role("button", name="Options").click()
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "combobox", "slider", "spinbutton", "region", "navigation", "complementary"}
    found = [node for node in tree if not node["ignored"] and node["role"]["value"] in roles]
    assert {node["role"]["value"] for node in found} == roles
    assert [node["role"]["value"] for node in found if not node["name"]["value"].strip()] == []
    assert page.locator("html").get_attribute("lang") == "en"
    unset = page.get_by_role("slider", name="Top p")
    assert unset.get_attribute("aria-valuetext") == "the server's default"


CONTRAST = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const rgba = colour => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const luminance = rgb => rgb.slice(0, 3).map(v => v / 255)
        .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const behind = node => {
        for (; node; node = node.parentElement) {
            const colour = rgba(getComputedStyle(node).backgroundColor);
            if (colour[3] === 255) return colour;
        }
    };
    const poor = [];
    for (const node of document.querySelectorAll("body *")) {
        const style = getComputedStyle(node);
        const own = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
        if (!(own || node.value || node.placeholder) || !node.checkVisibility({opacityProperty: true}) ||
            node.closest(".unseen, script, option, [type=range]")) continue;
        const colours = [style.color];
        if (node.placeholder) colours.push(getComputedStyle(node, "::placeholder").color);
        for (const colour of colours) {
            const [a, b] = [luminance(rgba(colour)), luminance(behind(node))].sort((x, y) => y - x);
            const ratio = (a + .05) / (b + .05);
            if (ratio < 4.5) poor.push(`${node.tagName}.${node.className} ${colour} ${ratio.toFixed(2)}`);
        }
    }
    return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(open_page: Opener, serve: Serve, scheme: str) -> None:
    reply = "**Use** `this`:\n```\ncode\n```"
    page = open_page(
        serve([FakeReply(reply), FakeReply(refuse=OverloadedError("busy")), reply]).url,
        color_scheme=scheme,
        settings={"max_tokens": 25},
    )
    assert page.evaluate(CONTRAST) == []
    for _ in range(2):
        send(page, "Hello")
        page.locator("#thread:not([data-busy])").wait_for()
    page.get_by_role("button", name="Options").click()
    page.locator(".failed").wait_for()
    assert page.evaluate(CONTRAST) == []
    page.get_by_role("button", name="Keyboard shortcuts").click()
    assert page.evaluate(CONTRAST) == []
    # The other way round, by the button: system, light, dark.
    page.keyboard.press("Escape")
    for _ in range(1 if scheme == "dark" else 2):
        page.get_by_role("button", name="Colours").click()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background
    assert (background == "rgb(250, 249, 246)") == (scheme == "dark")
    assert page.evaluate(CONTRAST) == []


def test_reader_who_scrolls_up_stays_there(open_page: Opener, serve: Serve) -> None:
    page = open_page(serve(slow_engine([f"line {n}\n" for n in range(2000)])).url, settings=UNLIMITED)
    view = page.locator("#scroll")
    below = "node => node.scrollHeight - node.scrollTop - node.clientHeight"
    send(page, "Count")
    expect_text(answers(page), "line 60")
    assert view.evaluate(below) < 40
    view.hover()
    page.mouse.wheel(0, -400)
    page.get_by_role("button", name="Latest").wait_for()
    top = view.evaluate("node => node.scrollTop")
    expect_text(answers(page), "line 100")
    assert view.evaluate("node => node.scrollTop") == top
    page.get_by_role("button", name="Latest").click()
    page.get_by_role("button", name="Latest").wait_for(state="hidden")
    expect_text(answers(page), "line 140")
    assert view.evaluate(below) < 40


def test_narrow_screen(open_page: Opener, serve: Serve) -> None:
    page = open_page(serve("Yes.").url, viewport={"width": 360, "height": 640}, reduced_motion="reduce")
    send(page, "Hello")
    expect_answer(page, "Yes.")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert not page.get_by_role("button", name="New chat").is_visible()
    menu = page.get_by_role("button", name="Conversations", exact=True)
    menu.click()
    assert page.evaluate("document.activeElement.id") == "new"
    assert page.evaluate("document.querySelector('main').inert")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "menu"
    assert menu.get_attribute("aria-expanded") == "false"
    page.get_by_role("button", name="Options").click()
    assert page.evaluate("document.activeElement.id") == "system"
    page.get_by_role("button", name="Close options").click()
    assert not page.get_by_role("textbox", name="System prompt").is_visible()
    assert page.evaluate("document.activeElement.id") == "settings"
