"""bitnet.connection: what adapters derive from, and what is known of a model before it is loaded."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError as PydanticError

import bitnet
from bitnet import BitNet, ModelFileError, ModelNotFoundError, ValidationError
from bitnet.connection import Connection
from bitnet.engines import registry
from bitnet.testing import FakeEngine


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BITNET_BASE_URL", "BITNET_API_KEY", "BITNET_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def n_loaded(path: Path) -> int:
    return sum(
        entry.engine is not None and str(path) in repr(key) for key, entry in registry._entries.items()
    )


@pytest.mark.parametrize(("n_ctx", "expected"), [(None, 2048), (0, 4096), (100, 100)])
def test_the_header_says_the_context(slow_path: Path, n_ctx: int | None, expected: int) -> None:
    with BitNet(slow_path, n_ctx=n_ctx, lazy=True) as model:
        known = model.n_ctx, model.has_chat_template
        assert known == (expected, True)  # of a known model, though the file brings none
        assert n_loaded(slow_path) == 0
        model.load()
        assert known == (model.info.n_ctx, model.info.has_chat_template)


def test_the_header_of_the_bundled_model(base_path: Path) -> None:
    with BitNet(lazy=True) as model:
        known = model.n_ctx, model.has_chat_template
        assert known == (model.info.n_ctx, True)
    with BitNet(base_path, lazy=True) as model:
        assert not model.has_chat_template
    with BitNet(base_path, lazy=True, n_ctx=10**6) as model, pytest.raises(ValidationError, match="n_ctx"):
        _ = model.n_ctx


def test_a_damaged_header(tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(b"GGUF nonsense")
    with pytest.raises(ModelFileError):
        Connection(model=str(path)).context_size()


def test_an_engine_of_ones_own() -> None:
    model = BitNet.from_engine(FakeEngine("Hello", n_ctx=77, name="scripted"))
    connection = Connection(client=model)
    assert connection.connect() is model
    assert (connection.context_size(), connection.has_chat_template(), connection.label) == (
        77,
        True,
        "scripted",
    )
    connection.disconnect()
    assert model.generate("Hi").text == "Hello"
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(connection)


def test_objects_share_a_model_and_give_it_back(random_path: Path) -> None:
    first = Connection(model=str(random_path), n_batch=3, keep_alive=0)
    second = Connection(model=str(random_path), n_batch=3, keep_alive=0)
    assert n_loaded(random_path) == 0
    first.connect().load()
    second.connect().load()
    assert n_loaded(random_path) == 1
    assert first.connect().info.n_batch == 3
    first.disconnect()
    assert n_loaded(random_path) == 1
    second.disconnect()
    assert n_loaded(random_path) == 0
    assert first.connect().generate("Hi", max_tokens=2, ignore_eos=True).usage.completion_tokens == 2
    first.disconnect()


def test_copies_and_pickles_open_for_themselves(random_path: Path) -> None:
    original = Connection(model=str(random_path), keep_alive=0)
    original.connect().load()
    for other in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert other == original
        assert other.connect() is not original.connect()
        other.disconnect()
    assert original.connect().generate("Hi", max_tokens=1).usage.completion_tokens <= 1
    original.disconnect()


def test_a_changed_copy_is_another_connection(random_path: Path) -> None:
    original = Connection(model=str(random_path), n_ctx=64)
    assert original.connect().n_ctx == 64
    changed = original.model_copy(update={"n_ctx": 32})
    assert (changed.connect().n_ctx, changed.settings.n_ctx) == (32, 32)
    assert original.connect().n_ctx == 64
    for connection in (original, changed):
        connection.disconnect()


def test_a_configuration_and_arguments_that_win(random_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "bitnet.yaml"
    file.write_text(f"bitnet:\n  model_path: {random_path}\n  n_ctx: 64\n  n_batch: 5\n")
    connection = Connection.from_config(file)
    assert connection.label == random_path.stem
    assert (connection.context_size(), connection.settings.n_batch) == (64, 5)
    changed = Connection.from_config(file, n_ctx=32)
    assert (changed.context_size(), changed.settings.n_batch) == (32, 5)
    with pytest.raises(ModelNotFoundError, match=r"other\.gguf"):
        Connection.from_config(file, model=str(tmp_path / "other.gguf")).connect()


def test_a_server_is_not_asked_for_what_it_has() -> None:
    connection = Connection(
        base_url="http://127.0.0.1:9/v1", model="big", n_ctx=4096, timeout=1.5, max_retries=0
    )
    assert (connection.context_size(), connection.has_chat_template(), connection.label) == (
        4096,
        True,
        "big",
    )
    settings = connection.settings
    assert (settings.mode, settings.base_url, settings.timeout.total, settings.retry.enabled) == (
        "api",
        "http://127.0.0.1:9/v1",
        1500,
        False,
    )
    assert Connection(base_url="http://127.0.0.1:9/v1").context_size() == 2048


def test_no_secret_is_shown() -> None:
    connection = Connection(
        base_url="http://127.0.0.1:9/v1", api_key="s3cret", config={"bitnet": {"api_key": "s3cret"}}
    )
    assert connection.settings.api_key is not None
    assert connection.settings.api_key.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(connection) + str(connection.model_dump()) + connection.model_dump_json()


def test_fields_are_for_the_constructor() -> None:
    connection = Connection()
    with pytest.raises(PydanticError, match="frozen"):
        connection.n_ctx = 5
    assert connection.label == "bitnet-tiny"
    assert bitnet.BitNet(lazy=True).n_ctx == connection.context_size()
