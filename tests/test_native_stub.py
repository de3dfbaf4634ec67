"""The stub src/bitnet/_native.pyi against the compiled module: the same names, and for every function the
same parameters, kinds and defaults. (mypy's stubtest cannot look into nanobind's function objects.)"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import bitnet
from bitnet import _native

STUB = ast.parse((Path(bitnet.__file__).parent / "_native.pyi").read_text(encoding="utf-8"))
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}

Parameters = list[tuple[str, str, object]]


def _parameters(function: ast.FunctionDef, defaults: tuple[Any, ...] = ()) -> Parameters:
    """(kind, name, default) of every parameter but self. nanobind keeps its defaults apart."""

    def value(node: ast.expr | None) -> object:
        if node is None:
            return "required"
        found = ast.literal_eval(node)
        if isinstance(found, str) and (match := re.fullmatch(r"default (\d+)", found)):
            found = defaults[int(match[1])]
        if isinstance(found, float):
            return round(found, 6)  # the module's are f32
        return tuple(found) if isinstance(found, list) else found

    arguments = function.args
    positional = [a.arg for a in arguments.args if a.arg != "self"]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    parameters: Parameters = [
        ("positional", name, value(default))
        for name, default in zip(positional, missing + list(arguments.defaults), strict=True)
    ]
    parameters += [
        ("keyword", a.arg, value(d)) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    return parameters


def _native_parameters(function: Any) -> Parameters:
    ((signature, _, defaults),) = function.__nb_signature__
    signature = re.sub(r"\\(\d+)", r"'default \1'", signature)
    # Array shapes are written as (*), which is no Python.
    signature = re.sub(r"ndarray\[[^\]]*\]", "ndarray", signature)
    node = ast.parse(signature + ": ...").body[0]
    assert isinstance(node, ast.FunctionDef)
    return _parameters(node, defaults or ())


def _methods(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}


def test_module_names() -> None:
    runtime = {name for name in vars(_native) if not name.startswith("_")}
    assert runtime == set(CLASSES) | set(FUNCTIONS)


@pytest.mark.parametrize("name", CLASSES)
def test_class(name: str) -> None:
    stub, runtime = _methods(CLASSES[name]), vars(getattr(_native, name))
    assert {n for n in runtime if not n.startswith("__")} == set(stub) - {"__init__"}
    for method, node in stub.items():
        if isinstance(runtime[method], property):
            assert any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list), method
        else:
            assert not node.decorator_list, method
            assert _native_parameters(runtime[method]) == _parameters(node), method


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str) -> None:
    assert _native_parameters(getattr(_native, name)) == _parameters(FUNCTIONS[name])
