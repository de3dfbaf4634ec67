"""Folders that are damaged, hostile or of another kind: refused, with the reason, before they cost much."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_folders import DIVIDE, FAMILIES, MULTIPLY, ONLINE, Made, make_folder, write_safetensors

from bitnet import BitNet, ConversionError, ModelNotFoundError
from bitnet.models.hf_config import read_config
from bitnet.models.hf_folder import read_folder
from bitnet.models.safetensors_file import read_header
from bitnet.models.sentence_piece_file import read_sentence_piece


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make_folder(FAMILIES["2b-4t-packed"], tmp_path / "m")


def header_file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensor(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": list(offsets) if isinstance(offsets, tuple) else offsets,
    }


@pytest.mark.parametrize(
    ("header", "length", "reason"),
    [
        ({}, 2**63, "a header of 9223372036854775808 bytes"),
        ({}, 99_999_999, "a header of 99999999 bytes in"),
        ({}, 0, "a header of 0 bytes"),
        (b"{" * 5000, None, "is not a safetensors file"),
        (b"[" * 100_000, None, "is not a safetensors file"),
        (b"\xff\xff", None, "is not a safetensors file"),
        ([], None, "its header is no object"),
        ({"a": 1}, None, "is not described"),
        ({"a": tensor(dtype="F8_E4M3")}, None, "has the type 'F8_E4M3'"),
        ({"a": tensor(dtype=["F32"])}, None, "has the type"),
        ({"a": tensor(shape=(2**40, 2**40), offsets=(0, 4))}, None, "does not fit"),
        ({"a": tensor(shape=(-4,))}, None, "no sound shape"),
        ({"a": tensor(shape=(4.0,))}, None, "no sound shape"),
        ({"a": tensor(shape=(True,), offsets=(0, 1))}, None, "no sound shape"),
        ({"a": tensor(shape="4")}, None, "no sound shape"),
        ({"a": tensor(shape=tuple([1] * 9), offsets=(0, 1))}, None, "no sound shape"),
        ({"a": tensor(offsets=(0, 4, 8))}, None, "no sound shape"),
        ({"a": tensor(offsets=(4, 0))}, None, "does not fit"),
        ({"a": tensor(offsets=(2, 6))}, None, "does not fit"),
        ({"a": tensor(offsets=(0, 3))}, None, "does not fit"),
        ({"a": tensor(), "b": tensor()}, None, "overlaps"),
        (
            {"a": tensor(shape=(2,), offsets=(0, 2)), "b": tensor(shape=(3,), offsets=(1, 4))},
            None,
            "overlaps",
        ),
    ],
)
def test_headers(header: Any, length: int | None, reason: str, tmp_path: Path) -> None:
    path = header_file(tmp_path / "model.safetensors", header, bytes(4), length)
    tracemalloc.start()
    try:
        with pytest.raises(ConversionError, match=reason):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert read_header(header_file(path, {"a": tensor()}, bytes(4)))[0].all().tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", 7, ""]
)
def test_an_index_names_files_beside_it(made: Made, name: Any) -> None:
    (made.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ConversionError, match=r"names of files beside it are expected"):
        read_folder(made.folder)


def test_a_split_model_is_read_whole(made: Made) -> None:
    names = list(made.tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    whole = {t.name: t.read() for t in read_folder(made.folder).ternary}
    (made.folder / "model.safetensors").unlink()
    for file, part in parts.items():
        write_safetensors(made.folder / file, {name: made.tensors[name] for name in part})
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (made.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for tensor_ in read_folder(made.folder).ternary:
        codes, scale = tensor_.read()
        assert np.array_equal(codes, whole[tensor_.name][0])
        assert scale == whole[tensor_.name][1]
    (made.folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        ConversionError, match=r"model-00002-of-00002.safetensors is missing; download the model again"
    ):
        read_folder(made.folder)


def test_pickles_are_not_read(made: Made) -> None:
    (made.folder / "model.safetensors").rename(made.folder / "pytorch_model.bin")
    with pytest.raises(
        ConversionError, match=r"only pytorch_model.bin, which can run code when they are read"
    ):
        read_folder(made.folder)
    with pytest.raises(ModelNotFoundError, match=r"no .gguf file and no safetensors"):
        BitNet(made.folder)


@pytest.mark.parametrize(
    "what",
    [
        "missing",
        "twice",
        "unknown",
        "shape",
        "code",
        "no scale",
        "scale shape",
        "scale value",
        "nan",
        "layer",
        "dtype",
    ],
)
def test_tensors_that_do_not_belong(made: Made, what: str, tmp_path: Path) -> None:
    tensors = dict(made.tensors)
    q = "model.layers.0.self_attn.q_proj.weight"
    reasons = {
        "missing": ("model.norm.weight", None, "lacks tensors: output_norm.weight; 1 in all"),
        "twice": ("norm.weight", tensors["model.norm.weight"], "is there twice"),
        "unknown": (
            "model.layers.0.self_attn.q_proj.bias",
            tensors["model.norm.weight"],
            "'model.layers.0.self_attn.q_proj.bias' is not known",
        ),
        "shape": (
            q,
            ("U8", np.zeros((127, 512), np.uint8)),
            r"has the shape \[127, 512\]; \[128, 512\] fits config.json",
        ),
        "code": (q, ("U8", np.full((128, 512), 0xFF, np.uint8)), "holds the code 3"),
        "no scale": (f"{q}_scale", None, "have no model.layers.0.self_attn.q_proj.weight_scale"),
        "scale shape": (f"{q}_scale", ("F32", np.ones(4, np.float32)), "must be one number"),
        "scale value": (f"{q}_scale", ("F32", np.array([-1], np.float32)), "weight_scale is -1.0"),
        "nan": ("model.norm.weight", ("F32", np.full(512, np.nan, np.float32)), "not finite"),
        "layer": (
            "model.layers.7.input_layernorm.weight",
            tensors["model.norm.weight"],
            "is not known in this kind",
        ),
        "dtype": ("model.norm.weight", ("I32", np.ones(512, np.int32)), "has the type I32, not a float"),
    }
    name, value, reason = reasons[what]
    tensors.pop(name, None)
    if value is not None:
        tensors[name] = value
    write_safetensors(made.folder / "model.safetensors", tensors)
    from bitnet.models.conversion import write_model

    with pytest.raises(ConversionError, match=reason):
        write_model(read_folder(made.folder), tmp_path / "out.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "'MistralForCausalLM' are not known"),
        ({"architectures": None}, "must name one model class"),
        ({"architectures": ["a", "b"]}, "must name one model class"),
        ({"hidden_act": "gelu"}, "the activation 'gelu' is not known"),
        ({"hidden_act": None, "model_type": "llama"}, "does not say which activation"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised by 'gptq' are not ternary"),
        ({"quantization_config": {**MULTIPLY, "linear_class": "other"}}, "linear_class 'other' is not known"),
        (
            {"quantization_config": {**MULTIPLY, "quantization_mode": "x"}},
            "quantization_mode 'x' is not known",
        ),
        ({"quantization_config": {**MULTIPLY, "use_rms_norm": True}}, "use_rms_norm"),
        (
            {"quantization_config": {**MULTIPLY, "modules_to_not_convert": ["model.layers.0.mlp.down_proj"]}},
            "linear layers that are not ternary",
        ),
        ({"attention_bias": True}, "models with attention_bias"),
        ({"use_sliding_window": True}, "sliding window"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "rope scaling 'llama3' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope scaling"),
        ({"rope_theta": None}, "does not say the base"),
        ({"rope_theta": -1}, "rope_theta must be between"),
        ({"rope_theta": float("nan")}, "rope_theta must be between"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be between"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers must be a whole number"),
        ({"vocab_size": 2**40}, "vocab_size must be a whole number"),
        ({"hidden_size": True}, "hidden_size must be a whole number"),
        ({"num_attention_heads": 3}, "is no multiple of 3 heads"),
        (
            {"quantization_config": None, "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"},
            "not declared to be a BitNet model",
        ),
        (
            {"architectures": ["LlamaForCausalLM"], "hidden_act": "relu2"},
            "with hidden_act 'relu2' are not known",
        ),
    ],
)
def test_configurations(made: Made, change: dict[str, Any], reason: str) -> None:
    path = made.folder / "config.json"
    config = {key: value for key, value in {**made.family.config, **change}.items() if value is not None}
    path.write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=reason):
        read_config(path)


def test_what_configurations_may_leave_out_or_spell_otherwise(made: Made) -> None:
    path = made.folder / "config.json"
    base = dict(made.family.config)

    def read(**change: Any) -> Any:
        path.write_text(
            json.dumps({key: value for key, value in {**base, **change}.items() if value is not None})
        )
        return read_config(path)

    plain = read()
    assert (plain.architecture, plain.weight_scale, plain.latent) == ("bitnet-b1.58", "mul", False)
    assert read(architectures=["BitnetForCausalLM"]) == plain
    assert read(hidden_act=None) == plain  # transformers' own default
    assert read(hidden_act="silu").architecture == "bitnet"
    assert read(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}) == plain
    assert read(quantization_config=DIVIDE).weight_scale == "div"
    assert (
        read(quantization_config={"quant_method": "bitnet", "linear_class": "bitlinear"}).weight_scale
        == "div"
    )
    assert read(quantization_config=None).weight_scale is None
    assert read(quantization_config=None).latent
    assert read(quantization_config=ONLINE).latent
    assert read(weight_bits=1, quantization_config=None).latent
    assert read(num_key_value_heads=None).n_kv_heads == base["num_attention_heads"]


def test_gemma_with_windows_holds_what_fits_into_one(tmp_path: Path) -> None:
    family = FAMILIES["embedding-270m"]
    folder = make_folder(
        family, tmp_path / "m", layer_types=["sliding_attention", "full_attention"], sliding_window=512
    ).folder
    assert read_config(folder / "config.json").context_length == 512
    folder = make_folder(family, tmp_path / "n", rope_local_base_freq=10000.0, rope_theta=1e6).folder
    with pytest.raises(ConversionError, match=r"layers with different rope bases"):
        read_config(folder / "config.json")


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "[" * 200_000, "{}"])
def test_json_that_is_none(made: Made, text: str) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        path = made.folder / name
        before = path.read_text()
        path.write_text(text)
        if (name, text) != ("tokenizer_config.json", "{}"):
            with pytest.raises(ConversionError):
                read_folder(made.folder)
        path.write_text(before)


def test_huge_json_is_not_read(made: Made) -> None:
    with (made.folder / "config.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(ConversionError, match=r"has 1099511627776 bytes; at most 16777216 are read"):
        read_folder(made.folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data["model"].update(type="Unigram"), "is not a tokenizer"),
        (
            lambda data: data.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
            "'WordLevel' is not supported",
        ),
        (lambda data: data["model"]["vocab"].update(x=10**9), "id 1000000000, but the model only 640 rows"),
        (
            lambda data: data["added_tokens"].append({**data["added_tokens"][0], "id": 3, "content": "<x>"}),
            "the id 3 is that of",
        ),
        (
            lambda data: data["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\d+"),
            "split by a pattern that is not known",
        ),
        (
            lambda data: data["pre_tokenizer"]["pretokenizers"].insert(
                0, {"type": "Digits", "individual_digits": True}
            ),
            "step 'Digits' is not known",
        ),
        (lambda data: data.update(normalizer={"type": "Lowercase"}), "the normalizer"),
        (lambda data: data["model"].update(ignore_merges=False), "cannot be carried over: 'word"),
    ],
)
def test_tokenizers_that_cannot_be_carried_over(made: Made, change: Any, reason: str) -> None:
    path = made.folder / "tokenizer.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ConversionError, match=reason):
        read_folder(made.folder)


def test_sentence_piece_files(tmp_path: Path) -> None:
    made = make_folder(FAMILIES["bitnet-large"], tmp_path / "m")
    path = made.folder / "tokenizer.model"
    good = path.read_bytes()
    assert len(read_sentence_piece(path).pieces) == 320
    for bad in (
        b"",
        b"\x00",
        b"\x0a\xff\xff\xff\xff\x7f",
        good[:100],
        good[:-1],
        b"\xff" * 64,
        good.replace(b"\x18\x02", b"\x18\x01"),
        b"\x0f",
    ):
        path.write_bytes(bad)
        with pytest.raises(ConversionError):
            read_folder(made.folder)
    random = np.random.Generator(np.random.PCG64(5))
    for _ in range(300):
        damaged = bytearray(good)
        for position in random.integers(0, len(good), 8):
            damaged[position] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read_sentence_piece(path)
        except ConversionError:
            continue


def test_damaged_headers_never_crash(made: Made) -> None:
    path = made.folder / "model.safetensors"
    good = path.read_bytes()
    length = struct.unpack("<Q", good[:8])[0]
    random = np.random.Generator(np.random.PCG64(6))
    refused = 0
    for _ in range(300):
        damaged = bytearray(good)
        for position in random.integers(0, length + 8, 4):
            damaged[position] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read_folder(made.folder)
        except ConversionError:
            refused += 1
    assert refused > 250
