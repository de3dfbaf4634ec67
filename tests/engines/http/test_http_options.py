"""Addresses, keys, timeouts and retries: what is accepted, and what never shows."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pydantic
import pytest

from bitnet import BitNet, ValidationError
from bitnet.engines.http import HttpEngine, Retry, Secret, Timeout, as_timeout
from bitnet.engines.http.options import as_address, as_key, as_retry


@pytest.mark.parametrize(
    ("url", "root", "says_v1"),
    [
        ("http://localhost:8080", "http://localhost:8080", False),
        ("http://localhost:8080/", "http://localhost:8080", False),
        ("http://localhost:8080/v1", "http://localhost:8080", True),
        (" https://Host.example/openai/v1/ ", "https://host.example/openai", True),
        ("http://[::1]:80/v1", "http://[::1]:80", True),
    ],
)
def test_addresses(url: str, root: str, says_v1: bool) -> None:
    address = as_address(url)
    assert (address.root, address.says_v1) == (root, says_v1)


@pytest.mark.parametrize(
    "url", ["localhost:8080", "ftp://x", "http://", "http://x:port", "http://x/?a=1", 5, None]
)
def test_what_is_no_address(url: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        HttpEngine(url)
    assert caught.value.field == "base_url"


def test_user_and_password_do_not_show() -> None:
    engine = HttpEngine("http://me:p%40ss@localhost:1/v1")
    address = as_address("http://me:p%40ss@localhost:1/v1")
    assert (address.username, address.password) == ("me", Secret("p@ss"))
    assert repr(engine) == "HttpEngine('http://localhost:1/v1')"
    assert "p@ss" not in repr(address)
    with pytest.raises(ValidationError, match="give one"):
        HttpEngine("http://me:secret@localhost", api_key="k")


def test_keys_do_not_show() -> None:
    secret = "sk-0123456789"
    for given in (secret, Secret(secret), pydantic.SecretStr(secret)):
        key = as_key(given)
        assert key == Secret(secret)
        assert secret not in f"{key!r} {key}"
    assert as_key(None) is as_key("") is None
    model = BitNet(
        "m", base_url="http://localhost:1", api_key=secret, proxy=f"http://u:{secret}@p", lazy=True
    )
    copy = pickle.loads(pickle.dumps(model))
    for shown in (model, copy, vars(model), vars(copy)):
        assert secret not in repr(shown)
    assert repr(copy) == "BitNet('m', base_url='http://localhost:1')"
    for bad in (f"{secret}\n", f" {secret}", "schlüssel", 5):
        with pytest.raises(ValidationError) as caught:
            as_key(bad)
        assert caught.value.field == "api_key"
        assert secret not in str(caught.value)


def test_timeouts() -> None:
    assert as_timeout(None) == Timeout(10_000, 120_000)
    assert as_timeout({"total": 5}) == Timeout(10_000, 5)
    assert as_timeout({"connect": 0, "total": 0}).total_seconds is None
    assert as_timeout(2.5) == Timeout(10_000, 2500)
    for bad, field in (
        ({"totl": 1}, "timeout"),
        ({"total": -1}, "timeout.total"),
        ({"connect": 1.5}, "timeout.connect"),
        ("5", "timeout"),
        (-1, "timeout"),
    ):
        with pytest.raises(ValidationError) as caught:
            as_timeout(bad)
        assert caught.value.field == field


def test_retries() -> None:
    assert as_retry(None) == Retry()
    assert as_retry(False) == Retry(enabled=False)
    retry = as_retry({"initial_wait_ms": 100, "max_wait_ms": 1000, "exponential_base": 3, "jitter": False})
    waits = [retry.wait(attempt, None) for attempt in (1, 2, 3, 4)]
    assert waits == pytest.approx([0.1, 0.3, 0.9, 1.0])
    assert retry.wait(10_000, None) == 1.0
    assert (retry.wait(1, 0.5), retry.wait(1, 60.0)) == (0.5, 1.0)
    jittered = as_retry({"initial_wait_ms": 100})
    different = {jittered.wait(1, None) for _ in range(50)}
    assert len(different) > 10
    assert all(0.05 <= wait <= 0.1 for wait in different)
    for bad, field in (
        ({"max_retry": 1}, "retry"),
        ({"max_retries": -1}, "retry.max_retries"),
        ({"jitter": 1}, "retry.jitter"),
        ({"exponential_base": 0.5}, "retry.exponential_base"),
        (5, "retry"),
    ):
        with pytest.raises(ValidationError) as caught:
            as_retry(bad)
        assert caught.value.field == field


def test_what_belongs_to_the_other_mode() -> None:
    remote = {"base_url", "api_key", "retry", "verify", "proxy"}
    both = {"self", "model", "keep_alive", "timeout", "defaults", "lazy"}
    local = inspect.signature(BitNet.__init__).parameters.keys() - remote - both
    assert "n_ctx" in local
    for field in local:
        with pytest.raises(ValidationError, match="base_url names a server") as caught:
            BitNet(base_url="http://localhost:1", lazy=True, **{field: "given"})  # type: ignore[arg-type]
        assert caught.value.field == field
    for options, field in (({"api_key": "k"}, "api_key"), ({"retry": {}}, "retry"), ({"proxy": ""}, "proxy")):
        with pytest.raises(ValidationError, match="there is no base_url") as caught:
            BitNet(lazy=True, **options)  # type: ignore[arg-type]
        assert caught.value.field == field


def test_shared_by_address_and_options() -> None:
    def same(**options: Any) -> bool:
        with BitNet(base_url="http://localhost:1", lazy=True, **options) as other:
            return other._lease._entry is model._lease._entry

    with BitNet(base_url="http://localhost:1", api_key="k", timeout={"total": 5}, lazy=True) as model:
        assert same(api_key="k", timeout={"total": 5})
        assert not same(api_key="l", timeout={"total": 5})
        assert not same(api_key="k")
