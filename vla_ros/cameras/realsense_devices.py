"""librealsense: loading it, and what is connected."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from vla_ros.core.errors import NotInstalled


def load_sdk() -> ModuleType:
    """Imports pyrealsense2. Its wheel needs libusb, which small systems lack: the PyPI package libusb-package brings the same library.

    Raises:
        NotInstalled: names what to install.
    """
    try:
        return import_module("pyrealsense2")
    except ModuleNotFoundError as error:
        raise NotInstalled("RealSense cameras need pyrealsense2: pip install pyrealsense2 (or `make setup`)") from error
    except ImportError as error:
        if "libusb" not in str(error):
            raise
    try:
        library = import_module("libusb_package").get_library_path()
    except ModuleNotFoundError as error:
        raise NotInstalled("pyrealsense2 needs libusb-1.0: sudo apt install libusb-1.0-0, or pip install libusb-package") from error
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return import_module("pyrealsense2")


rs = load_sdk()


@dataclass(frozen=True)
class Connected:
    """One RealSense on USB. `usb` is the negotiated version ("3.2"), `modes` are its colour modes as (width, height, Hz)."""

    name: str
    serial: str
    usb: str
    firmware: str
    port: str
    modes: tuple[tuple[int, int, int], ...]

    @property
    def usb_is_slow(self) -> bool:
        """USB 2 carries less than 640x480 colour and depth at 30 Hz."""
        return self.usb.startswith("2")


def connected() -> list[Connected]:
    """The RealSense cameras of this machine, by serial."""
    return sorted((describe(device) for device in rs.context().query_devices()), key=lambda camera: camera.serial)


def describe(device: rs.device) -> Connected:
    """What a device says of itself; a value that it does not know is ""."""
    keys = ("name", "serial_number", "usb_type_descriptor", "firmware_version", "physical_port")
    infos = [getattr(rs.camera_info, key) for key in keys]
    return Connected(*(device.get_info(info) if device.supports(info) else "" for info in infos), modes=_colour_modes(device))


def in_words(cameras: list[Connected]) -> str:
    """For the end of an error message."""
    found = ", ".join(f"{camera.serial} ({camera.name}, USB {camera.usb or 'unknown'})" for camera in cameras)
    return f"connected: {found}" if found else "no RealSense is connected: check cable, USB 3 port and udev rules (docs/cameras.md)"


def _colour_modes(device: rs.device) -> tuple[tuple[int, int, int], ...]:
    modes = set()
    for sensor in device.query_sensors():
        for profile in sensor.get_stream_profiles():
            if profile.stream_type() == rs.stream.color and profile.is_video_stream_profile():
                video = profile.as_video_stream_profile()
                modes.add((video.width(), video.height(), profile.fps()))
    return tuple(sorted(modes))
