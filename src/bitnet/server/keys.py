"""API keys: who may use the server."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from bitnet.errors import ValidationError


class ApiKeys:
    """Keys, of which only hashes are kept. Without any, everybody may use the server."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        # Hashes of one length, so that comparing them tells nothing of a key's length either.
        self._digests = [_digest(key) for key in dict.fromkeys(keys)]
        self._secret = secrets.token_bytes(32)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> ApiKeys:
        """One key a line; empty lines and lines that begin with # are none. Raises ValidationError."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ValidationError(f"cannot read the API key file {os.fspath(path)}: {reason}") from None
        keys = [line.strip() for line in text.splitlines()]
        keys = [key for key in keys if key and not key.startswith("#")]
        if not keys:
            raise ValidationError(
                f"the API key file {os.fspath(path)} holds no key: write one a line, or leave the option out"
            )
        return cls(keys)

    def __len__(self) -> int:
        return len(self._digests)

    def tenant(self, authorization: str | None) -> str | None:
        """Who sends this header ("Bearer KEY"): a name that tells nothing of the key; None = nobody.

        "" if there are no keys. Takes the same time for every wrong key.
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        digest = _digest(key.strip())
        known = False
        for other in self._digests:
            known |= hmac.compare_digest(digest, other)
        if not known or scheme.lower() != "bearer":
            return None
        # Another one in every process: nobody who sees it can check guesses of the key with it.
        return hmac.new(self._secret, digest, hashlib.sha256).hexdigest()[:32]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
