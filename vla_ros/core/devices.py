"""Lazy look-up of devices, policies and simulators in the one table of their family."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from vla_ros.core.errors import ConfigError, NotInstalled, did_you_mean


def load_device(table: Mapping[str, str], name: str) -> Any:
    """Returns the class that `name` stands for and imports its module only now.

    Args:
        table: name -> "package.module:Class", e.g. `vla_ros.robots.ROBOTS`.
        name: a key of the table, or an import path with a ":" in it (an out-of-tree driver needs no entry).

    Raises:
        ConfigError: unknown name, no such module or class.
        NotInstalled: the module is there, but a package that it imports is not.
    """
    if name not in table and ":" not in name:
        raise ConfigError(f"'{name}' is unknown; {did_you_mean(name, table)}, or an import path module:Class")
    path = table.get(name, name)
    module_name, _, attribute = path.partition(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(f"'{name}' stands for {path}, but there is no module {error.name}") from None
        raise NotInstalled(
            f"'{name}' needs the Python module {error.name}, which is not installed: run `make setup`, or pip install it"
        ) from error
    if not hasattr(module, attribute):
        public = [item for item in vars(module) if not item.startswith("_")]
        raise ConfigError(f"'{name}' stands for {path}, but {module_name} has no {attribute!r}; {did_you_mean(attribute, public)}")
    return getattr(module, attribute)
