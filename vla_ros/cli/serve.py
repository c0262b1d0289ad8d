"""`vla serve`: one of our policies behind openpi's protocol, for this machine or another."""

from __future__ import annotations

from typing import Annotated

import typer

from vla_ros.core.errors import ConfigError
from vla_ros.core.types import PolicySpec


def serve(
    checkpoint: Annotated[str, typer.Argument(help='Name, folder, "script", lerobot:FOLDER or module:Class.')],
    embodiment: Annotated[str | None, typer.Option(help="The robot that it will drive: name in config/embodiments, or path.")] = None,
    rig: Annotated[str | None, typer.Option(help="Instead: a rig that names the robot, and the policy's options.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="KEY=VALUE of the policy, VALUE as in YAML; once for each.")] = None,
    host: Annotated[str, typer.Option(help="Where to listen; anything but this machine needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    token: Annotated[str, typer.Option(envvar="VLA_TOKEN", help="What clients must send in Authorization: Bearer.")] = "",
    max_request_mb: Annotated[float, typer.Option(help="A longer message ends its connection.")] = 64.0,
    clients: Annotated[int, typer.Option(help="Connections at a time. Only with 1 does each have a history of its own.")] = 1,
    batch: Annotated[int, typer.Option(help="Observations answered together, if the policy can.")] = 1,
    batch_wait_ms: Annotated[float, typer.Option(help="How long the first of a batch waits for others.")] = 0.0,
) -> None:
    """Answers openpi's clients (`openpi-client`, `policy: openpi`) until Ctrl-C. docs/policies.md says what travels.

    Examples:

      vla serve robovlms_franka --embodiment franka

      vla serve lerobot:models/act --rig kinova --port 8001

      VLA_TOKEN=secret vla serve robovlms_franka --embodiment franka --host 0.0.0.0 --clients 8 --batch 8 --batch-wait-ms 5
    """
    import asyncio
    import logging

    from vla_ros.policies import load_policy
    from vla_ros.policies.serving.server import PolicyServer, ServeSettings

    logging.basicConfig(format="%(levelname)s %(message)s")
    settings = ServeSettings(host, port, token, max_request_mb, clients, batch=batch, batch_wait_ms=batch_wait_ms)
    robot, options = _robot(checkpoint, embodiment, rig)
    policy = load_policy(checkpoint, robot, {**options, **_options(option or [])})
    try:
        asyncio.run(PolicyServer(policy, settings).run(lambda port: print(_told(policy.spec, host, port), flush=True)))
    except KeyboardInterrupt:
        print("ended")


def _told(spec: PolicySpec, host: str, port: int) -> str:
    pictures, chunk = ", ".join(spec.cameras) or "no cameras", f"{spec.horizon} rows every {spec.dt_s:g} s"
    return f"{spec.name} for {spec.embodiment} at openpi://{host}:{port} ({pictures}; {chunk})"


def _robot(checkpoint: str, embodiment: str | None, rig: str | None) -> tuple[object, dict[str, object]]:
    """Returns the embodiment, and the options that the rig has for this policy."""
    from vla_ros.core.embodiment import load_embodiment
    from vla_ros.core.rig import load_rig

    if (embodiment is None) == (rig is None):
        raise ConfigError("give --embodiment NAME or --rig NAME, so that the policy knows its robot")
    if rig is None:
        return load_embodiment(embodiment), {}
    resolved = load_rig(rig)
    return resolved.embodiment, resolved.policy_options(checkpoint)


def _options(texts: list[str]) -> dict[str, object]:
    import yaml

    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--option {text!r}, expected KEY=VALUE, as in --option dt_s=0.05")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--option {text!r}: the value is not YAML") from None
    return options
