"""Where a configuration comes from: files, mappings, the environment, and what wins over what."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet import BitNetConfig, ConfigError, ModelNotFoundError
from bitnet.config import load

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(text: str | bytes, name: str = "bitnet.yaml") -> Path:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return make


@pytest.mark.parametrize(
    "text",
    [
        "n_ctx: 99\nstop: [a, b]",
        "bitnet: {n_ctx: 99, stop: [a, b]}",
        "bitnet:\n  n_ctx: 99\n  stop: [a, b]\nother: 1",
        "inference:\n  openai: {n_ctxx: 5}\n  bitnet:\n    n_ctx: 99\n    stop:\n      - a\n      - b",
        "\ufeffn_ctx: 99\nstop: [a, b]",
        '{"bitnet": {"n_ctx": 99, "stop": ["a", "b"]}}',
        "base: &base {n_ctx: 99}\nbitnet:\n  <<: *base\n  stop: [a, b]",
    ],
)
def test_the_block_is_found(text: str, write: Write) -> None:
    config = load(write(text))
    assert (config.n_ctx, config.stop) == (99, ("a", "b"))
    assert config.model_fields_set == {"n_ctx", "stop"}


@pytest.mark.parametrize(
    "text", ["", "bitnet:", "# nothing\n", "inference: {bitnet: }", "n_ctx:\napi_key: null"]
)
def test_nothing_is_the_defaults(text: str, write: Write) -> None:
    assert load(write(text)) == BitNetConfig()


def test_mappings_are_like_files() -> None:
    for mapping in ({"n_ctx": 7}, {"bitnet": {"n_ctx": 7}}, {"inference": {"bitnet": {"n_ctx": 7}}, "x": 1}):
        assert load(mapping).n_ctx == 7
    assert load() == BitNetConfig()


def test_orbits_own_keys_are_accepted() -> None:
    config = load({"inference": {"bitnet": {"enabled": "false", "context_window": "512"}}})
    assert not config.enabled
    assert config.direct_options()["n_ctx"] == 512
    assert load({"n_ctx": 256, "context_window": 512}).direct_options()["n_ctx"] == 256


def test_strings_become_numbers_and_flags() -> None:
    config = load(
        {
            "n_ctx": "4096",
            "temperature": "0.25",
            "use_mmap": "false",
            "stop": "END",
            "timeout": {"total": "5"},
            "kernel_params": {"seed": "12", "enable_custom": "yes"},
        }
    )
    assert (config.n_ctx, config.temperature, config.use_mmap) == (4096, 0.25, False)
    assert (config.stop, config.timeout.total) == (("END",), 5)
    assert (config.kernel_params.seed, config.kernel_params.enable_custom) == (12, True)


def test_environment_variables(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFG_CTX", "123")
    monkeypatch.setenv("CFG_EMPTY", "")
    monkeypatch.delenv("CFG_NONE", raising=False)
    text = """
        n_ctx: ${CFG_CTX}
        n_batch: "${CFG_NONE:-3}"
        model: bitnet-${CFG_CTX}-${CFG_NONE:-x}
        top_k: ${CFG_EMPTY:-}
        max_tokens: ${CFG_EMPTY:-17}
        stop: ["${CFG_NONE:-}", "$5", "${"]
        timeout: {total: "${CFG_CTX}"}
    """
    config = load(write(text))
    assert (config.n_ctx, config.n_batch, config.model) == (123, 3, "bitnet-123-x")
    assert (config.top_k, config.max_tokens, config.timeout.total) == (40, 17, 123)
    assert config.stop == ("$5", "${")


def test_a_missing_variable_is_an_error_with_its_place(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CFG_NONE", raising=False)
    file = write("bitnet:\n  timeout:\n    total: ${CFG_NONE}\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value) == (
        f"{file}:3: timeout.total: the environment variable CFG_NONE is not set; "
        "set it, or write ${CFG_NONE:-DEFAULT}"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mode: direct\nn_ctxx: 5", ":2: n_ctxx: unknown key; did you mean 'n_ctx'?"),
        ("x: 1\nbitnet:\n  a: 1\n", ":3: a: unknown key; known: mode, model_path"),
        ("bitnet:\n  retry:\n    jitter: maybe", ":3: retry.jitter: must be a valid boolean"),
        ("bitnet:\n\n  stop:\n    - a\n    - 5", ":3: stop.1: must be a valid string, not 5"),
        ("a: 1\nb: 2\na: 3", ":3: the key 'a' was given before, in line 1"),
        ("bitnet:\n  n_ctx: 1\n  n_ctx: 2", ":3: the key 'n_ctx' was given before, in line 2"),
        ("a: [1\nb: 2", ":2: not valid YAML"),
        ("a: !!python/object:os.system 1", ":1: not valid YAML"),
        ("- a\n- b", ":1: must hold keys and values, not a list"),
        ("just words", ":1: must hold keys and values, not text"),
        ("bitnet: words", ": bitnet must hold keys and values, not text"),
        ("inference:\n  openai: {}", " has no bitnet: under inference:"),
        (b"model: \xff", " is not UTF-8: byte 7 is 0xff"),
    ],
)
def test_errors_name_file_and_line(text: str | bytes, message: str, write: Write) -> None:
    file = write(text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}{message}")


def test_hostile_files(write: Write, tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for i in range(1, 9):
        bomb += f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n"
    for text in (
        bomb + "bitnet: {stop: *a8}",
        "&a [*a]",
        "bitnet: &b {timeout: *b}",
        "[" * 5000,
        "bitnet: {stop: " + "[" * 200 + "]" * 200 + "}",
        b"\x00",
        "x" * (2**20 + 1),
    ):
        with pytest.raises(ConfigError):
            load(write(text))
    with pytest.raises(ConfigError, match=r"cannot read the configuration file .*nowhere"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot read the configuration file"):
        load(tmp_path)


def test_model_path_is_found_beside_the_file_then_in_the_working_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    file = write("bitnet:\n  model_path: models/m.gguf", "etc/bitnet.yaml")
    with pytest.raises(ModelNotFoundError) as caught:
        load(file).direct_options()
    assert str(caught.value) == (
        f"{file}:2: model_path: there is no model file 'models/m.gguf' beside that file or in {elsewhere}"
    )
    in_directory = write(b"", "elsewhere/models/m.gguf")
    assert load(file).direct_options()["model"] == str(in_directory)
    beside = write(b"", "etc/models/m.gguf")
    assert load(file).direct_options()["model"] == str(beside)
    # Also if the file itself is given by a relative path, and the working directory changes afterwards.
    config = load(os.path.relpath(file, elsewhere))
    monkeypatch.chdir("/")
    assert config.direct_options()["model"] == str(beside)
    absolute = write(f"model_path: {in_directory}")
    assert load(absolute).direct_options()["model"] == str(in_directory)


def test_model_is_the_model_where_there_is_no_path() -> None:
    assert load({"model": "some-name"}).direct_options()["model"] == "some-name"
    assert load({"model": "label", "model_path": "m.gguf"}).direct_options()["model"] == "m.gguf"
    assert load({}).direct_options()["model"] is None


def test_overrides_win_and_nested_ones_are_merged(write: Write) -> None:
    file = write("n_ctx: 100\ntimeout: {connect: 1, total: 2}\nmodel_path: of-the-file.gguf")
    config = load(file, n_ctx=200, timeout={"total": 3}, temperature=None, model_path="other.gguf")
    assert (config.n_ctx, config.timeout.connect, config.timeout.total) == (200, 1, 3)
    assert not config.given("temperature")
    assert config.direct_options()["model"] == "other.gguf"
    again = load(config, n_ctx=300, timeout={"connect": 9})
    assert (again.n_ctx, again.timeout.connect, again.timeout.total, again.top_k) == (300, 9, 3, 40)
    with pytest.raises(ConfigError, match=r"^option n_ctx: must be a valid integer"):
        load(file, n_ctx="many")
    with pytest.raises(ConfigError, match=r"^option n_ctz: unknown key; did you mean 'n_ctx'"):
        load(file, n_ctz=1)


def test_bitnet_config_names_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_CONFIG", str(write("n_ctx: 77")))
    assert load().n_ctx == 77
    assert load({"top_k": 1}).n_ctx == 2048
    assert load(n_ctx=78).n_ctx == 78


def test_a_configuration_of_keyword_arguments_can_be_overridden() -> None:
    config = load(BitNetConfig(n_ctx=5, api_key="sk", timeout={"total": 1}), top_k=3)  # type: ignore[arg-type]
    assert (config.n_ctx, config.top_k, config.timeout.total) == (5, 3, 1)
    assert config.server_options()["api_key"] == "sk"


def test_the_mapping_is_left_alone() -> None:
    mapping: dict[str, Any] = {"bitnet": {"stop": ["a"], "timeout": {"total": 1}}}
    load(mapping, timeout={"connect": 2})
    assert mapping == {"bitnet": {"stop": ["a"], "timeout": {"total": 1}}}
