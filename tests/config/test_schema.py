"""The schema itself: keys, types, defaults, ranges, the documented file, and the JSON Schema for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from guide import API, DEFAULTS, FULL, GPU, MEMORY, VERBOSE

from bitnet import BitNetConfig, ConfigError
from bitnet.config import json_schema, load

FOLDER = Path(__file__).parents[2] / "config"
DOCUMENTED = FOLDER / "bitnet.yaml"


def keys_of(block: type[Any]) -> dict[str, Any]:
    """Keys and defaults, nested."""
    defaults = block().model_dump()
    assert isinstance(defaults, dict)
    return {**defaults, "stop": list(defaults["stop"])}


def test_the_guides_defaults() -> None:
    config = BitNetConfig()
    assert {key: getattr(config, key) for key in DEFAULTS} == DEFAULTS
    guide = yaml.safe_load(FULL)["bitnet"]
    own = keys_of(BitNetConfig)
    for key, value in guide.items():
        if isinstance(value, dict):
            assert value.items() <= own[key].items()
        elif key != "model_path":
            assert (own[key], type(own[key])) == (value, type(value)), key


@pytest.mark.parametrize("text", [FULL, API, GPU, MEMORY, VERBOSE])
def test_the_guides_blocks_load(text: str, tmp_path: Path) -> None:
    file = tmp_path / "inference.yaml"
    file.write_text(text)
    config = load(file)
    expected = yaml.safe_load(text)["bitnet"]
    assert config == BitNetConfig(**expected)


def test_the_documented_file_has_every_key_at_its_default() -> None:
    documented = yaml.safe_load(DOCUMENTED.read_text())
    assert list(documented) == ["bitnet"]
    assert documented["bitnet"] == keys_of(BitNetConfig)
    assert load(DOCUMENTED) == BitNetConfig()


def test_the_committed_json_schema_is_current() -> None:
    committed = json.loads((FOLDER / "bitnet.schema.json").read_text())
    assert committed == json_schema(), "run: python -m bitnet.config > config/bitnet.schema.json"


@pytest.mark.parametrize("text", [FULL, API, GPU, MEMORY, VERBOSE, DOCUMENTED.read_text()])
@pytest.mark.parametrize("parents", [(), ("bitnet",), ("inference", "bitnet")])
def test_the_json_schema_accepts_what_loads(text: str, parents: tuple[str, ...]) -> None:
    document = yaml.safe_load(text)["bitnet"]
    for parent in reversed(parents):
        document = {parent: document}
    jsonschema.validate(document, json_schema())


@pytest.mark.parametrize(
    "block",
    [{"n_ctxx": 1}, {"n_batch": 0}, {"timeout": {"totl": 1}}, {"mode": "both"}, {"kernel_params": {"bm": 1}}],
)
@pytest.mark.parametrize("parents", [(), ("bitnet",), ("inference", "bitnet")])
def test_the_json_schema_refuses_what_does_not_load(block: dict[str, Any], parents: tuple[str, ...]) -> None:
    document = block
    for parent in reversed(parents):
        document = {parent: document}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema())
    with pytest.raises(ConfigError):
        load(document)


def test_the_json_schema_accepts_variables() -> None:
    jsonschema.validate({"n_ctx": "${N_CTX:-4096}", "timeout": {"total": "${T}"}}, json_schema())


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"n_ctxx": 1}, "bitnet.n_ctxx: unknown key; did you mean 'n_ctx'?"),
        ({"retry": {"max_retry": 1}}, "bitnet.retry.max_retry: unknown key; did you mean 'max_retries'?"),
        (
            {"kernel_params": {"row_blok": 64}},
            "kernel_params.row_blok: unknown key; did you mean 'row_block'",
        ),
        ({"mode": "both"}, "bitnet.mode: must be 'direct' or 'api', not 'both'"),
        ({"quant_type": "tl2"}, "bitnet.quant_type: must be 'i2_s' or 'tl1', not 'tl2'"),
        ({"n_ctx": -1}, "bitnet.n_ctx: must be greater than or equal to 0, not -1"),
        ({"n_ctx": 2.5}, "bitnet.n_ctx: must be a valid integer"),
        ({"n_ctx": True}, "bitnet.n_ctx: must be a number, not True"),
        ({"n_batch": 257}, "bitnet.n_batch: must be less than or equal to 256, not 257"),
        ({"n_gpu_layers": -2}, "bitnet.n_gpu_layers: must be greater than or equal to -1"),
        ({"temperature": float("nan")}, "bitnet.temperature: must be a finite number"),
        ({"temperature": "warm"}, "bitnet.temperature: must be a valid number, unable to parse"),
        ({"top_p": 0}, "bitnet.top_p: must be greater than 0, not 0"),
        ({"use_mmap": "perhaps"}, "bitnet.use_mmap: must be a valid boolean"),
        ({"stop": ["a", ""]}, "bitnet.stop.1: must have at least 1 character"),
        ({"stop": 5}, "bitnet.stop: must be a valid tuple, not 5"),
        ({"base_url": "localhost:8080"}, "bitnet.base_url: must be a URL such as http://localhost:8080"),
        ({"timeout": 5}, "bitnet.timeout: must be"),
        ({"retry": {"exponential_base": 0.5}}, "bitnet.retry.exponential_base: must be greater than or"),
        ({"kernel_params": {"row_block": 33}}, "kernel_params.row_block: must be a multiple of 32, not 33"),
        ({"layout": "x64"}, "bitnet.layout: must be 'x128', 'arm64', 'row4', 'preset' or 'auto', not 'x64'"),
        ({"activation": "gelu"}, "bitnet.activation: must be 'relu2' or 'silu', not 'gelu'"),
        ({"embd_type": "q5_0"}, "bitnet.embd_type: must be 'f32', 'f16', 'q8_0', 'q6_k' or 'q4_0'"),
    ],
)
def test_what_is_wrong_is_named(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(block)
    assert message in str(caught.value)


def test_several_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load({f"key_{i}": i for i in range(9)})
    assert str(caught.value).count("unknown key") == 5
    assert str(caught.value).endswith("; and 4 more")


def test_a_configuration_is_a_value() -> None:
    first, second = BitNetConfig(n_ctx=4096), load({"n_ctx": 4096})
    assert first == second
    with pytest.raises(ValueError, match="frozen"):
        first.n_ctx = 1  # type: ignore[misc]


def test_the_key_of_a_server_is_not_shown() -> None:
    config = load({"mode": "api", "api_key": "sk-secret"})
    assert "sk-secret" not in repr(config) + str(config) + str(config.model_dump()) + config.model_dump_json()
    assert config.server_options()["api_key"] == "sk-secret"
    with pytest.raises(ConfigError) as caught:
        load({"api_key": ["sk-secret"]})
    assert "sk-secret" not in str(caught.value)
