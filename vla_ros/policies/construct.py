"""Makes a policy from a class and the `options` of a rig: a user's own class (`module:Class`), `script`, and the bridges."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from vla_ros.core.embodiment import Embodiment
from vla_ros.core.errors import PolicyError, VlaError, did_you_mean
from vla_ros.core.interfaces import Policy
from vla_ros.core.types import PolicySpec


def construct(cls: object, name: str, embodiment: Embodiment, *first: object, options: Mapping[str, object] | None = None) -> Policy:
    """Returns `cls(embodiment, *first, **options)`, made sure that it is a policy.

    Args:
        cls: what `core.devices.load_device` found.
        name: as the rig names it, for messages.
        embodiment: the robot that it will drive.
        first: further arguments, of a bridge the text after its name.
        options: keyword arguments from the rig's `policy.options`.

    Raises:
        PolicyError: it takes other arguments, fails, or is no `core.interfaces.Policy`.
    """
    options = dict(options or {})
    if not callable(cls):
        raise PolicyError(f"{name}: a {type(cls).__name__}, expected a class that is called with the embodiment")
    _check_arguments(cls, name, (embodiment, *first), options)
    try:
        policy = cls(embodiment, *first, **options)
    except VlaError:
        raise
    except Exception as error:  # foreign code may fail in any way, and the reader wants to know whose it was
        raise PolicyError(f"{name} failed while it was made: {type(error).__name__}: {error}") from error
    _check_policy(policy, name)
    return policy


def _check_arguments(cls: type, name: str, arguments: tuple[object, ...], options: Mapping[str, object]) -> None:
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):
        return  # made of C: the call itself will tell
    parameters = list(signature.parameters.values())
    named = [item.name for item in parameters if item.kind in (item.KEYWORD_ONLY, item.POSITIONAL_OR_KEYWORD)]
    # what comes by position cannot come by name too
    valid = named[len(arguments) :] if parameters and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL else named
    if not any(item.kind is item.VAR_KEYWORD for item in parameters):
        for option in options:
            if option not in valid:
                raise PolicyError(f"policy.options.{option}: {name} has no such option; {did_you_mean(option, valid)}")
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        raise PolicyError(f"{name}{signature} cannot be called with the embodiment and options {', '.join(options)}: {error}") from None


def _check_policy(policy: object, name: str) -> None:
    lacks = [method for method in ("reset", "infer") if not callable(getattr(policy, method, None))]
    if not isinstance(getattr(policy, "spec", None), PolicySpec):
        lacks.insert(0, "spec (a core.types.PolicySpec)")
    if lacks:
        raise PolicyError(
            f"{name} made a {type(policy).__name__} that is no policy: it lacks {', '.join(lacks)}; "
            "see core/interfaces.py: Policy, and the example in docs/policies.md"
        )
