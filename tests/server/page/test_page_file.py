"""The file of the chat page: small, whole in itself, and harmless."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib import resources

import pytest

from bitnet.server.page import content_security_policy

SOURCE = (resources.files("bitnet.server") / "page.html").read_bytes()


class Elements(HTMLParser):
    """Start tags with their attributes, and the text in each script and style."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style") and data.strip():
            self.inline.append((self.tags[-1][0], data))


@pytest.fixture(scope="module")
def elements() -> Elements:
    parser = Elements()
    parser.feed(SOURCE.decode())
    return parser


def test_page_is_small_and_whole(elements: Elements) -> None:
    assert len(SOURCE) < 60_000
    text = SOURCE.decode()
    # Namespaces of SVG name a place, but nobody goes there.
    assert re.findall(r"(?:https?:)?//[a-z][\w.-]+\.\w+", text) == ["http://www.w3.org"] * 2
    assert not re.search(r"@import|url\(", text)
    for tag, attributes in elements.tags:
        assert tag not in ("iframe", "object", "embed", "img", "base")
        assert "src" not in attributes
        assert tag != "link" or str(attributes["href"]).startswith("data:")


def test_policy_allows_exactly_what_is_in_the_page(elements: Elements) -> None:
    policy = dict(part.strip().split(" ", 1) for part in content_security_policy(SOURCE).decode().split(";"))
    assert policy["default-src"] == "'none'"
    for kind in ("script", "style"):
        digests = [hashlib.sha256(text.encode()).digest() for tag, text in elements.inline if tag == kind]
        assert digests
        expected = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
        assert policy[f"{kind}-src"] == expected
    # The policy refuses these attributes: they would do nothing.
    for _, attributes in elements.tags:
        assert not any(name == "style" or name.startswith("on") for name in attributes)


def test_text_of_models_cannot_become_html() -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|Function\(|srcdoc|DOMParser"
    assert not re.search(forbidden, SOURCE.decode())


def test_every_id_and_icon_exists(elements: Elements) -> None:
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    text = SOURCE.decode()
    made_by_script = {f"{name}-slider" for name in ("max_tokens",)}
    assert set(re.findall(r'\$\("([\w-]+)"\)', text)) <= {*map(str, ids), *made_by_script}
    icons = {*re.findall(r'data-icon="([\w-]+)"', text), *re.findall(r'icon(?:Button)?\("([\w-]+)"', text)}
    assert {f"i-{name}" for name in icons} <= set(map(str, ids))
