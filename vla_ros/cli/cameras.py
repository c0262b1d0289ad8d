"""`vla cameras`: which cameras are connected, and what to write into the rig."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vla_ros.cameras.realsense_devices import Connected
    from vla_ros.cameras.v4l2_devices import VideoDevice


def cameras(
    json: Annotated[bool, typer.Option("--json", help="print the cameras as JSON")] = False,
) -> None:
    """Lists connected RealSense cameras (serial, USB version, colour modes) and V4L2 devices. Opens none of them.

    Exit status: 0 there is a camera, 1 there is none.

    Examples:

      vla cameras

      vla cameras --json
    """
    from vla_ros.cameras import v4l2_devices
    from vla_ros.core.errors import NotInstalled

    missing = ""
    try:
        from vla_ros.cameras import realsense_devices

        realsense = realsense_devices.connected()
    except NotInstalled as error:
        realsense, missing = [], str(error)
    v4l2 = [device for device in v4l2_devices.connected() if "RealSense" not in device.name]
    if json:
        found = {"realsense": [asdict(camera) for camera in realsense], "v4l2": [asdict(device) for device in v4l2]}
        typer.echo(json_module.dumps(found, indent=2))
    else:
        _print(realsense, v4l2, missing)
    raise typer.Exit(0 if realsense or v4l2 else 1)


def _print(realsense: list[Connected], v4l2: list[VideoDevice], missing: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for header in ("camera", "in the rig", "USB", "what to do"):
        table.add_column(header, overflow="fold")
    for camera in realsense:
        advice = "[yellow]USB 2: use a USB 3 port and cable[/]" if camera.usb_is_slow else ""
        table.add_row(camera.name, f'driver: realsense, serial: "{camera.serial}"', camera.usb, advice)
        table.add_row("", f"[dim]{', '.join('x'.join(map(str, mode)) for mode in camera.modes)}[/]", "", "")
    for device in v4l2:
        advice = "" if device.may_open else "[yellow]sudo usermod -aG video $USER, then log in again[/]"
        table.add_row(device.name, f"driver: opencv, device: {device.stable or device.device}", device.usb, advice)
    console = Console()
    if table.row_count:
        console.print(table)
    else:
        console.print("no camera is connected: see docs/cameras.md for cables, USB 3 and udev rules")
    if missing:
        console.print(f"[yellow]{missing}[/]")
