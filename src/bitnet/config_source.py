"""Where a configuration comes from: a YAML file or a mapping.

Finds the bitnet block in it, puts environment variables in, and remembers the line of every key for error
messages. What the keys mean is config.py's business.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bitnet.errors import ConfigError

MAX_BYTES = 2**20  # a configuration is some kilobytes; more is a mistake, such as a model file
MAX_VALUES, MAX_DEPTH = 10_000, 4
KeyPath = tuple[str, ...]

# ${NAME} or ${NAME:-default}
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


@dataclass(frozen=True)
class Source:
    """The values of one bitnet block.

    file: where they came from, None for a mapping. block: the keys that lead to it: (), ("bitnet",) or
    ("inference", "bitnet"). lines: of every key below it, counted from 1.
    """

    values: dict[str, Any]
    file: Path | None = None
    block: KeyPath = ()
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """`path` for an error message: "bitnet.yaml:12: timeout.total", or "bitnet.timeout.total"."""
        name = ".".join(path)
        if self.file is None:
            return ".".join((*(self.block or ("bitnet",)), *path))
        while path and path not in self.lines:  # a key that is missing is blamed on what it is missing from
            path = path[:-1]
        return f"{self.file}:{self.lines.get(path, 1)}: {name}".rstrip(": ")


def read(source: str | os.PathLike[str] | Mapping[str, Any]) -> Source:
    """Read a YAML file, or a mapping as one would have it. Raises ConfigError."""
    if isinstance(source, Mapping):
        block, values = _find_block(source, "the configuration")
        found = Source(_plain(values), None, block)
    else:
        found = _read_file(Path(os.path.abspath(Path(source).expanduser())))
    return Source(_substitute(found, found.values, ()), found.file, found.block, found.lines)


def _read_file(file: Path) -> Source:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{file} is larger than {MAX_BYTES} bytes; that is no configuration file")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8: byte {error.start} is {data[error.start]:#04x}") from None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _refuse_duplicates(file, node, set())
        document = loader.construct_document(node) if node is not None else {}
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{file}:{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from None
    if document is None:
        document = {}
    if not isinstance(document, Mapping):
        raise ConfigError(f"{file}:1: must hold keys and values, not {_kind(document)}")
    block, values = _find_block(document, str(file))
    lines: dict[KeyPath, int] = {}
    for key in block:
        node, line = _entry(node, key)
        lines[()] = line
    _number(node, (), lines)
    return Source(_plain(values), file, block, lines)


def _find_block(document: Mapping[Any, Any], where: str) -> tuple[KeyPath, Mapping[Any, Any]]:
    """The bitnet block: under `inference: bitnet:`, under `bitnet:`, or the document itself."""
    inference = document.get("inference")
    block: KeyPath
    if isinstance(inference, Mapping) and "bitnet" in inference:
        block, values = ("inference", "bitnet"), inference["bitnet"]
    elif "bitnet" in document:
        block, values = ("bitnet",), document["bitnet"]
    elif "inference" in document:
        raise ConfigError(f"{where} has no bitnet: under inference:")
    else:
        return (), document
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: {'.'.join(block)} must hold keys and values, not {_kind(values)}")
    return block, values


def _plain(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Copies of mappings and lists: the caller's are not changed.

    YAML aliases can make a small file stand for an enormous tree, so depth and number of values are bounded.
    """
    budget = [MAX_VALUES]

    def copy(value: Any, path: KeyPath) -> Any:
        budget[0] -= 1
        if len(path) > MAX_DEPTH or budget[0] < 0:
            raise ConfigError(f"{'.'.join(path)}: too much, or nested too deeply, for a configuration")
        if isinstance(value, Mapping):
            return {str(key): copy(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [copy(item, (*path, str(index))) for index, item in enumerate(value)]
        return value

    return {str(key): copy(item, (str(key),)) for key, item in values.items()}


def _substitute(source: Source, value: Any, path: KeyPath) -> Any:
    """Environment variables put in. What becomes empty by that counts as not given, and is None."""
    if isinstance(value, dict):
        return {key: _substitute(source, item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        items = [_substitute(source, item, (*path, str(index))) for index, item in enumerate(value)]
        return [item for item in items if item is not None]
    if not isinstance(value, str) or "${" not in value:
        return value

    def replacement(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        if found := os.environ.get(name):
            return found
        if default is None:
            raise ConfigError(
                f"{source.place(path)}: the environment variable {name} is not set; "
                f"set it, or write ${{{name}:-DEFAULT}}"
            )
        return default

    return _VARIABLE.sub(replacement, value) or None


def _refuse_duplicates(file: Path, node: Any, seen: set[int]) -> None:
    """PyYAML lets the last of two equal keys win; here that is an error. Anchors are visited once."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in first:
                    raise ConfigError(
                        f"{file}:{line}: the key {key.value!r} was given before, in line {first[key.value]}"
                    )
                first[key.value] = line
            _refuse_duplicates(file, item, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(file, item, seen)


def _entry(node: Any, name: str) -> tuple[Any, int]:
    """The value of a key in a mapping node, and the key's line."""
    for key, item in node.value:
        if key.value == name:
            return item, key.start_mark.line + 1
    raise AssertionError(name)  # the document has it


def _number(node: Any, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    """The line of every key below `node`, to the depth a configuration can have."""
    if not isinstance(node, yaml.MappingNode) or len(path) > 2:
        return
    for key, item in node.value:
        if isinstance(key, yaml.ScalarNode):
            below = (*path, key.value)
            lines[below] = key.start_mark.line + 1
            _number(item, below, lines)


def _kind(value: Any) -> str:
    return {str: "text", list: "a list", bool: "true or false"}.get(type(value), type(value).__name__)
