"""How to reach a server: its address, the key, and what to do when it is slow or away. All checked here."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from bitnet.errors import ValidationError
from bitnet.values import as_flag, as_integer, as_number, nearest

_MAX_MS = 10**9


class Secret:
    """A text that does not show where the object that holds it does: in reprs, logs and tracebacks."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


def as_key(value: Any) -> Secret | None:
    """An API key: a string, a Secret or a pydantic.SecretStr; None or "" = none.

    Raises ValidationError, which does not show it.
    """
    if isinstance(value, Secret):
        value = value.reveal()
    elif hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValidationError(f"api_key must be a string, not {type(value).__name__}", field="api_key")
    if not (value.isascii() and value.isprintable() and not value.isspace()) or value != value.strip():
        raise ValidationError(
            "api_key has characters that cannot be sent in a header, such as a line break at its end",
            field="api_key",
        )
    return Secret(value)


@dataclass(frozen=True)
class Timeout:
    """Milliseconds; 0 = no limit. connect: to reach the server. total: for a whole answer with retries."""

    connect: int = 10_000
    total: int = 120_000

    @property
    def connect_seconds(self) -> float | None:
        return self.connect / 1000 or None

    @property
    def total_seconds(self) -> float | None:
        return self.total / 1000 or None


def as_timeout(value: Any) -> Timeout:
    """A Timeout, from a mapping of its fields, or from a number: the seconds a whole answer may take."""
    if value is None or isinstance(value, Timeout):
        return value or Timeout()
    if isinstance(value, Mapping):
        given = _known("timeout", value, Timeout)
        return Timeout(**{name: as_integer(f"timeout.{name}", given[name], 0, _MAX_MS) for name in given})
    return Timeout(total=math.ceil(1000 * as_number("timeout", value, 0, _MAX_MS / 1000)))


@dataclass(frozen=True)
class Retry:
    """When a request is sent again that did not reach the server, or that it was too busy for.

    max_retries: attempts after the first. The wait before the first of them is initial_wait_ms, before each
    further one exponential_base times longer, and never longer than max_wait_ms. jitter: each wait is made
    shorter by a random part, up to half of it, so that clients do not come together.
    """

    enabled: bool = True
    max_retries: int = 3
    initial_wait_ms: int = 1_000
    max_wait_ms: int = 30_000
    exponential_base: float = 2
    jitter: bool = True

    def shortest_wait(self, attempt: int, retry_after: float | None) -> float:
        """Seconds to wait at least after the attempt of this number (1 is the first). retry_after: what the
        server asked for."""
        if retry_after is not None:
            return min(retry_after, self.max_wait_ms / 1000)
        return self._full_wait(attempt) / (2 if self.jitter else 1)

    def wait(self, attempt: int, retry_after: float | None) -> float:
        """Seconds to wait after the attempt of this number."""
        least = self.shortest_wait(attempt, retry_after)
        if retry_after is not None or not self.jitter:
            return least
        return random.uniform(least, self._full_wait(attempt))

    def _full_wait(self, attempt: int) -> float:
        most = self.max_wait_ms / 1000
        try:
            return min(self.initial_wait_ms / 1000 * self.exponential_base ** (attempt - 1), most)
        except OverflowError:
            return most


def as_retry(value: Any) -> Retry:
    """A Retry, from a mapping of its fields; False = no retries."""
    if value is None or isinstance(value, Retry):
        return value or Retry()
    if isinstance(value, bool):
        return Retry(enabled=value)
    given = _known("retry", value, Retry)
    for name in given:
        field = f"retry.{name}"
        if name in ("enabled", "jitter"):
            given[name] = as_flag(field, given[name])
        elif name == "exponential_base":
            given[name] = as_number(field, given[name], 1, 100)
        else:
            given[name] = as_integer(field, given[name], 0, 1000 if name == "max_retries" else _MAX_MS)
    return Retry(**given)


_Options = TypeVar("_Options", Timeout, Retry)


def _known(name: str, value: Any, kind: type[_Options]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValidationError(f"{name} must be a mapping, not {value!r:.100}", field=name)
    known = [entry.name for entry in fields(kind)]
    for key in value:
        if key not in known:
            raise ValidationError(
                f"{name} has an unknown key {key!r}; {nearest(str(key), known)}", field=name
            )
    return dict(value)


@dataclass(frozen=True)
class Address:
    """Where a server is. root: without the /v1 of the OpenAI API. says_v1: whether base_url ended with it.

    username, password: those that stood in base_url, and do not stand in root.
    """

    root: str
    says_v1: bool
    username: str = ""
    password: Secret | None = None


def as_address(value: Any) -> Address:
    """The parts of base_url, with or without /v1. Raises ValidationError."""

    def wrong(why: str) -> ValidationError:
        return ValidationError(f"base_url {why}; give it like http://localhost:8080", field="base_url")

    if not isinstance(value, str):
        raise wrong(f"must be a string, not {type(value).__name__}")
    try:
        parts = urlsplit(value.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong("is not a URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise wrong("must begin with http:// or https:// and name a host")
    if parts.query or parts.fragment:
        raise wrong("must not have a ? or # in it")
    name = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/")
    says_v1 = path.endswith("/v1")
    password = None if parts.password is None else Secret(unquote(parts.password))
    return Address(
        root=f"{parts.scheme}://{name}{'' if port is None else f':{port}'}{path.removesuffix('/v1')}",
        says_v1=says_v1,
        username=unquote(parts.username or ""),
        password=password,
    )


class BaseUrl(str):
    """A base_url that shows without user and password."""

    __slots__ = ()

    def __repr__(self) -> str:
        address = as_address(str.__str__(self))
        return repr(address.root + ("/v1" if address.says_v1 else ""))
