"""Errors that tell the reader the value, the limit and the fix."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class VlaError(Exception):
    """Base of every error that vla_ros raises on purpose.

    Args:
        message: a sentence for a person: value, limit, fix.
        reason: one word for counters, status messages and diagnostics ("stale", "not_finite", "channels", "limits", ...).
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class ConfigError(VlaError):
    """A YAML file, a checkpoint's config or an argument is wrong."""


class DataError(VlaError):
    """A value that travels (chunk, action, frame, state) has the wrong shape, name, unit or is not finite."""


class LimitError(VlaError):
    """A command lies outside what the embodiment allows."""


class StaleData(VlaError):
    """The newest data is too old: a dead link, a frozen camera, a late chunk."""


class DeviceError(VlaError):
    """A device refused, failed or is not there."""


class PolicyError(VlaError):
    """A policy or its checkpoint cannot be used."""


class NotInstalled(VlaError):
    """An optional package is missing; the message says what to install."""


def did_you_mean(value: str, valid: Iterable[str]) -> str:
    """Returns "did you mean 'x'? " or "", then "valid: a, b, c" for the end of an error message."""
    names = sorted(str(name) for name in valid)
    close = get_close_matches(str(value), names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}valid: {', '.join(names) or '(none)'}"
