"""Intel RealSense (D400) over librealsense: colour, and depth aligned to it. A live device and a recorded file share all code."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np

from vla_ros.cameras.realsense_devices import Connected, connected, describe, in_words, rs
from vla_ros.core.clock import ClockMap
from vla_ros.core.errors import ConfigError, DeviceError, did_you_mean
from vla_ros.core.types import Frame, Intrinsics

_HOLE_FILLING = {"left": 0, "farthest": 1, "nearest": 2}  # librealsense's numbers
# librealsense's five coefficients are those of plumb_bob in this order, except where the model is another
_MODELS = {rs.distortion.kannala_brandt4: "equidistant"}
_UNUSABLE = (rs.distortion.ftheta,)
_QUEUE, _BACKLOG = 8, 4  # frames: a reader that was kept from running for four periods loses none, and is never further behind
_STALL_S, _FIRST_FRAME_S = 1.0, 10.0
_CLOCK_JUMP_NS = 250_000_000
_log = logging.getLogger(__name__)


class RealSense:
    """Implements `core.interfaces.Camera`.

    Args:
        name: of the camera in the rig.
        serial: of the device, also with the leading underscore of realsense-ros' launch arguments; empty: the only one connected.
        file: `.db3` or `.bag` instead of a device, played at the pace at which it was recorded.
        repeat: plays the file again and again; else its end is a DeviceError with the reason "ended".
        width, height, fps: of colour and depth, px and Hz; one of the modes that `vla cameras` lists.
        depth: also gives depth, aligned to colour.
        hole_filling: "left", "farthest" or "nearest" invents depth where there is none; empty: 0 there.
        exposure_us: of the colour sensor; None: automatic.

    Raises:
        ConfigError: an option has no meaning.
    """

    def __init__(
        self,
        name: str,
        *,
        serial: str = "",
        file: str = "",
        repeat: bool = False,
        width: int = 640,
        height: int = 480,
        fps: int = 30,
        depth: bool = True,
        hole_filling: str = "",
        exposure_us: int | None = None,
    ) -> None:
        if hole_filling and hole_filling not in _HOLE_FILLING:
            raise ConfigError(f"camera {name}: hole_filling '{hole_filling}'; {did_you_mean(hole_filling, _HOLE_FILLING)}")
        if serial and file:
            raise ConfigError(f"camera {name}: serial {serial} and file {file}; give one of them")
        self.name = name
        self._serial, self._file, self._repeat = str(serial).lstrip("_"), file and str(Path(file).expanduser()), repeat
        self._mode, self._depth, self._exposure_us = (width, height, fps), depth, exposure_us
        self._align = rs.align(rs.stream.color) if depth else None
        self._fill = rs.hole_filling_filter(_HOLE_FILLING[hole_filling]) if hole_filling else None
        self._pipeline: rs.pipeline | None = None
        self._queue: rs.frame_queue | None = None
        self._unplugged = False

    def start(self) -> None:
        """Starts the stream. Raises DeviceError with the serial or file and the fix."""
        if self._pipeline is not None:
            return
        context, config = rs.context(), rs.config()
        device = self._choose(config) if self._file else self._choose_device(context, config)
        config.enable_stream(rs.stream.color, *self._mode[:2], rs.format.rgb8, self._mode[2])
        if self._depth:
            config.enable_stream(rs.stream.depth, *self._mode[:2], rs.format.z16, self._mode[2])
        self._queue, pipeline = rs.frame_queue(_QUEUE, keep_frames=True), rs.pipeline(context)
        try:
            profile = pipeline.start(config, self._queue)
        except RuntimeError as error:
            raise DeviceError(f"{self._named}: {error}; {self._hint(device)}", "device") from error
        self._pipeline, self._device = pipeline, profile.get_device()
        self._playback = self._device.as_playback() if self._file else None
        self._intrinsics = _intrinsics(profile.get_stream(rs.stream.color).as_video_stream_profile().get_intrinsics(), self._named)
        self._clock, self._number, self._unplugged = ClockMap(_CLOCK_JUMP_NS), 0, False
        self._due_s = time.monotonic() + _FIRST_FRAME_S
        if not self._file:
            self._context = context
            context.set_devices_changed_callback(self._on_devices_changed)
            self._set_up_sensors()

    def read(self) -> Frame | None:
        """Returns the next frame, at most four behind the newest, or None after one frame period.

        Raises:
            DeviceError: not started, unplugged, stalled (reason "stalled"), or the file has ended (reason "ended").
        """
        if self._pipeline is None:
            raise DeviceError(f"{self._named}: not started", "device")
        while self._queue.size() > _BACKLOG:
            self._queue.poll_for_frame()
        found, frames = self._queue.try_wait_for_frame(round(1000 / self._mode[2]))
        if not found:
            self._check_alive()
            return None
        colour = frames.as_frameset().get_color_frame()
        if not colour:  # the depth of a pair whose colour was lost on the way
            return None
        self._due_s = time.monotonic() + _STALL_S
        stamp_ns, depth, scale_m = self._stamp_ns(colour), None, 0.001
        if self._depth and frames.as_frameset().get_depth_frame():
            depth, scale_m = self._aligned(frames.as_frameset())
        # a copy: librealsense stops when sixteen of its own buffers are held
        image, number = np.array(colour.get_data()), self._number
        self._number += 1
        return Frame(stamp_ns, image, number, f"{self.name}_color_optical_frame", self._intrinsics, depth, scale_m)

    def stop(self) -> None:
        """Stops the stream. Idempotent."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is None:
            return
        try:
            pipeline.stop()
        except RuntimeError as error:  # of a device that is gone
            _log.info("%s: %s", self._named, error)
        self._device = self._playback = self._context = None

    @property
    def _named(self) -> str:
        return f"camera {self.name} ({self._file or f'RealSense {self._serial}'.strip()})"

    def _choose(self, config: rs.config) -> None:
        if not Path(self._file).is_file():
            raise DeviceError(f"{self._named}: there is no such file", "device")
        try:
            rs.config.enable_device_from_file(config, self._file, self._repeat)
        except RuntimeError as error:
            raise DeviceError(
                f"{self._named}: {error}; expected a recording of librealsense 2.57 or newer (.db3) or older (.bag)"
            ) from error

    def _choose_device(self, context: rs.context, config: rs.config) -> Connected:
        found = [describe(device) for device in context.query_devices()]
        chosen = [camera for camera in found if self._serial in ("", camera.serial)]
        if not chosen:
            raise DeviceError(f"{self._named}: not connected; {in_words(found)}", "device")
        if len(chosen) > 1:
            raise DeviceError(f"{self._named}: which one? set options.serial; {in_words(found)}", "device")
        self._serial = chosen[0].serial
        if chosen[0].usb_is_slow:
            _log.warning("%s: on USB %s, so frames will be lost; use a USB 3 port and cable", self._named, chosen[0].usb)
        config.enable_device(self._serial)
        return chosen[0]

    def _hint(self, device: Connected | None) -> str:
        width, height, fps = self._mode
        if device is None:
            return f"does the file hold {width}x{height} at {fps} Hz{' with depth' if self._depth else ''}?"
        modes = ", ".join(f"{mode[0]}x{mode[1]}x{mode[2]}" for mode in device.modes)
        return f"is another program using it? {width}x{height}x{fps} was asked for, on USB {device.usb} it has {modes}"

    def _set_up_sensors(self) -> None:
        """Capture stamps in the host's time, and the exposure: a camera keeps the last program's until it loses power."""
        try:
            for sensor in self._device.query_sensors():
                if sensor.supports(rs.option.global_time_enabled):
                    sensor.set_option(rs.option.global_time_enabled, 1)
                # a D405 has its colour in the depth sensor
                if not any(profile.stream_type() == rs.stream.color for profile in sensor.get_stream_profiles()):
                    continue
                if sensor.supports(rs.option.enable_auto_exposure):
                    sensor.set_option(rs.option.enable_auto_exposure, float(self._exposure_us is None))
                if self._exposure_us is not None:
                    sensor.set_option(rs.option.exposure, float(self._exposure_us))
        except RuntimeError as error:
            self.stop()
            raise DeviceError(f"{self._named}: exposure_us {self._exposure_us}: {error}", "device") from error

    def _on_devices_changed(self, event: rs.event_information) -> None:
        self._unplugged |= self._device is not None and event.was_removed(self._device)

    def _check_alive(self) -> None:
        if self._unplugged:
            raise DeviceError(f"{self._named}: unplugged", "device")
        if self._playback and self._playback.current_status() == rs.playback_status.stopped:
            raise DeviceError(f"{self._named}: the recording has ended; `repeat: true` plays it again", "ended")
        if time.monotonic() > self._due_s:
            where = "" if self._file else f"; {in_words(connected())}"
            raise DeviceError(f"{self._named}: stalled, no frame for {_STALL_S:g} s{where}", "stalled")

    def _stamp_ns(self, colour: rs.video_frame) -> int:
        """Capture time in ROS system time. Global time is that already; a device's own clock, and a file's, are mapped."""
        device_ns, arrival_ns = round(colour.get_timestamp() * 1e6), time.time_ns()
        if not self._file and colour.get_frame_timestamp_domain() != rs.timestamp_domain.hardware_clock:
            return min(device_ns, arrival_ns)
        return self._clock.host_ns(device_ns, arrival_ns)

    def _aligned(self, frames: rs.composite_frame) -> tuple[np.ndarray, float]:
        depth = self._align.process(frames).get_depth_frame()
        scale_m = round(depth.get_units(), 9)  # librealsense keeps it as a float32
        if self._fill is not None:
            depth = self._fill.process(depth)
        return np.array(depth.get_data()), scale_m


def _intrinsics(lens: rs.intrinsics, named: str) -> Intrinsics:
    if lens.model in _UNUSABLE:
        raise DeviceError(f"{named}: distortion model {lens.model} has no counterpart in camera_info", "device")
    model = _MODELS.get(lens.model, "plumb_bob")
    coefficients = tuple(lens.coeffs[:4] if model == "equidistant" else lens.coeffs)
    return Intrinsics(lens.width, lens.height, lens.fx, lens.fy, lens.ppx, lens.ppy, coefficients, model)
