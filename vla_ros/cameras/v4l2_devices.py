"""Which V4L2 cameras this machine has, as Linux names them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class VideoDevice:
    """One camera node. `stable` is its name in /dev/v4l/by-id, which stays when cables move; "" without one."""

    name: str
    device: str
    stable: str
    usb: str
    may_open: bool


def connected(sys: Path = Path("/sys"), dev: Path = Path("/dev")) -> list[VideoDevice]:
    """The cameras by number; nodes that carry metadata only are left out."""
    links = {link.resolve().name: str(link) for link in sorted((dev / "v4l/by-id").glob("*"))}
    found = []
    for entry in sorted((sys / "class/video4linux").glob("video*"), key=lambda entry: int(entry.name[5:])):
        if _text(entry / "index") in ("", "0"):
            node = dev / entry.name
            openable = os.access(node, os.R_OK | os.W_OK)
            found.append(VideoDevice(_text(entry / "name"), str(node), links.get(entry.name, ""), _usb_version(entry / "device"), openable))
    return found


def _usb_version(interface: Path) -> str:
    """ "3.20" of the USB device to which an interface belongs; "" for a camera that is not on USB."""
    return _text(interface.resolve().parent / "version")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
