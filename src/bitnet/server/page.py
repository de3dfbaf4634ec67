"""The page at /: one self-contained file of this package, and a policy that lets it do nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from bitnet.server.exchange import Exchange, Headers

_INLINE = re.compile(rb"<(script|style)\b[^>]*>(.*?)</\1\s*>", re.DOTALL | re.IGNORECASE)


async def page(exchange: Exchange) -> None:
    body, headers = _page()
    await exchange.send_bytes(body, headers)


@cache
def _page() -> tuple[bytes, Headers]:
    body = (resources.files("bitnet.server") / "page.html").read_bytes()
    return body, (
        (b"content-type", b"text/html; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"content-security-policy", content_security_policy(body)),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-opener-policy", b"same-origin"),
    )


def content_security_policy(page: bytes) -> bytes:
    """Only the scripts and styles that are in the page itself, by their hashes; requests only to this server.

    So nothing that a model writes can become a script, whatever the page does with it; browsers that know
    Trusted Types do not let it make HTML of text at all (innerHTML raises TypeError). Attributes such as
    onclick="..." and style="..." do not work in it; listeners and element.style do.
    """
    hashes: dict[bytes, list[str]] = {b"script": [], b"style": []}
    for kind, content in _INLINE.findall(page):
        # What is hashed is the text after parsing, which knows one kind of line end only.
        text = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        hashes[kind.lower()].append(f"'sha256-{digest}'")
    scripts, styles = (" ".join(hashes[kind]) or "'none'" for kind in (b"script", b"style"))
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ).encode()
