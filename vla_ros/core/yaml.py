"""Strict YAML: a file is read into a dataclass, and every mistake is an error with file, line, key and fix.

The dataclass is the whole schema: fields with a default may be left out, every other key must be there, unknown keys are errors.
Understood types: bool, int, float, str, Literal, X | None, tuple[X, ...], tuple[X, Y], dict[str, X], dataclasses, object (plain data).
A dataclass may have `problems(self) -> Iterator[(key, message)]` for what types cannot say (lengths, limits).
A field with metadata {"key": True} receives the key under which its dataclass stands.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from vla_ros.core.errors import ConfigError, did_you_mean

T = TypeVar("T")
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}


@dataclass(frozen=True)
class Node:
    """A value with the place where it was written. `value` is a dict[str, Node], list[Node], bool, int, float, str or None."""

    value: Any
    path: Path
    line: int

    def error(self, key: str, message: str) -> ConfigError:
        """Returns `file:line: key: message`, the file relative to the working directory where it lies inside."""
        path = self.path.resolve()
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        return ConfigError(f"{shown}:{self.line}: {f'{key}: ' if key else ''}{message}")

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def leaves(self, key: str = "") -> Iterator[tuple[str, Node]]:
        """Yields (dotted key, node) of every scalar below."""
        if isinstance(self.value, dict):
            for name, node in self.value.items():
                yield from node.leaves(_join(key, name))
        elif isinstance(self.value, list):
            for i, node in enumerate(self.value):
                yield from node.leaves(f"{key}[{i}]")
        else:
            yield key, self


class _Loader(yaml.SafeLoader):
    """Without anchors: a value is written where it is used, and a small file cannot grow into a huge one."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"alias *{event.anchor}: anchors are not allowed, write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


def read(path: str | Path) -> Node:
    """Reads a YAML file whose top level is a mapping. Raises ConfigError: no such file, not YAML, duplicate keys, anchors."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error})") from None
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # a character that no YAML may hold
        raise Node(None, path, 1).error("", f"not valid YAML: {error}") from None
    try:
        root = loader.get_single_node()
        node = Node({}, path, 1) if root is None else _convert(loader, root, path, root.start_mark.line + 1)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Node(None, path, line).error("", f"not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise Node(None, path, 1).error("", f"not valid YAML: {error}") from None
    except (ValueError, RecursionError) as error:  # a date that does not exist, a number of thousands of digits, brackets without end
        raise Node(None, path, 1).error("", f"a value cannot be read: {error}") from None
    finally:
        loader.dispose()
    if not isinstance(node.value, dict):
        raise node.error("", f"expected `key: value` lines, found {_shown(node)}")
    return node


def _convert(loader: yaml.SafeLoader, node: yaml.Node, path: Path, line: int) -> Node:
    if isinstance(node, yaml.ScalarNode):
        return Node(loader.construct_object(node), path, line)
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(loader, item, path, item.start_mark.line + 1) for item in node.value], path, line)
    children: dict[str, Node] = {}
    for key_node, value_node in node.value:
        at = key_node.start_mark.line + 1
        key = loader.construct_object(key_node) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            raise Node(None, path, at).error("", f"key {key!r} is not text; write it in quotes")
        if key in children:
            raise Node(None, path, at).error(key, f"the key is there twice, first on line {children[key].line}")
        children[key] = _convert(loader, value_node, path, at)
    return Node(children, path, line)


def merge(base: Node, overlay: Node) -> Node:
    """Lays `overlay` over `base`: mappings key by key, everything else replaced. Places stay those of the file each value is from."""
    if not (isinstance(base.value, dict) and isinstance(overlay.value, dict)):
        return overlay
    merged = dict(base.value)
    for key, node in overlay.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, base.path, base.line)


def load(path: str | Path, cls: type[T]) -> T:
    """Reads `path` into the dataclass `cls`. Raises ConfigError `file:line: dotted.key: what is wrong and what is valid`."""
    return build(read(path), cls)


def build(node: Node, kind: Any, key: str = "") -> Any:
    """Turns `node` into a value of the type `kind`; `key` is its dotted name for messages. Raises ConfigError."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is object:
        return node.plain()
    if is_dataclass(kind):
        return _build_dataclass(node, kind, key)
    if origin in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        return None if node.value is None else build(node, inner[0], key)
    if origin is Literal:
        if node.value not in arguments:
            raise node.error(key, f"{node.value!r} is unknown; {did_you_mean(str(node.value), map(str, arguments))}")
        return node.value
    if origin is tuple:
        return _build_tuple(node, arguments, key)
    if origin is dict:
        _expect(node, dict, key, "`key: value` lines")
        return {name: build(child, arguments[1], _join(key, name)) for name, child in node.value.items()}
    return _build_scalar(node, kind, key)


def _build_scalar(node: Node, kind: type, key: str) -> Any:
    # bool is an int in Python, but never a number in a file; a whole number is a fine float
    fits = type(node.value) is kind or (kind is float and type(node.value) is int)
    if not fits:
        hint = " (YAML reads 1e-3 as text: write 1.0e-3)" if kind is float and isinstance(node.value, str) else ""
        raise node.error(key, f"{_shown(node)}, expected {_WORDS.get(kind, kind.__name__)}{hint}")
    return kind(node.value)


def _build_tuple(node: Node, arguments: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    _expect(node, list, key, "a list")
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(node.value)
    if len(arguments) != len(node.value):
        raise node.error(key, f"{len(node.value)} values, expected {len(arguments)}")
    return tuple(build(item, kind, f"{key}[{i}]") for i, (item, kind) in enumerate(zip(node.value, arguments, strict=True)))


def _build_dataclass(node: Node, cls: type[T], key: str) -> T:
    _expect(node, dict, key, "`key: value` lines")
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls) if not field.metadata.get("key")}
    for name, child in node.value.items():
        if name not in known:
            raise child.error(_join(key, name), f"unknown key; {did_you_mean(name, known)}")
    for name, field in known.items():
        if name not in node.value and field.default is MISSING and field.default_factory is MISSING:
            raise node.error(_join(key, name), "the key is missing")
    values = {name: build(child, hints[name], _join(key, name)) for name, child in node.value.items()}
    values |= {field.name: key.rpartition(".")[2] for field in fields(cls) if field.metadata.get("key")}
    built = cls(**values)
    for name, message in _problems(built):
        raise node.value.get(name, node).error(_join(key, name), message)
    return built


def _problems(built: object) -> Iterable[tuple[str, str]]:
    return built.problems() if hasattr(built, "problems") else ()


def _expect(node: Node, kind: type, key: str, words: str) -> None:
    if not isinstance(node.value, kind):
        raise node.error(key, f"{_shown(node)}, expected {words}")


def _shown(node: Node) -> str:
    if isinstance(node.value, dict):
        return "`key: value` lines"
    return "a list" if isinstance(node.value, list) else "null" if node.value is None else repr(node.value)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
