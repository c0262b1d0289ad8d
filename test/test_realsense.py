"""The RealSense driver over recordings: alignment, stamps, three at once, and every way in which a stream can die."""

from __future__ import annotations

import importlib
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import realsense_file
from realsense_file import BASELINE_M, COEFFICIENTS, COLOR_FX, DEPTH_FX, DEPTH_M, FPS, HEIGHT, HOLE, WIDTH, picture, record

from vla_ros.cameras import realsense, realsense_devices
from vla_ros.cameras.realsense import RealSense
from vla_ros.cameras.realsense_devices import Connected
from vla_ros.core.clock import ClockMap
from vla_ros.core.errors import ConfigError, DeviceError, NotInstalled
from vla_ros.core.types import Frame
from vla_ros.nodes.camera_stream import CameraStream

S = 1_000_000_000
TOLD_S = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("realsense")


@pytest.fixture(scope="module")
def file(folder: Path) -> str:
    return str(record(folder / "live.db3", 30))


@pytest.fixture(scope="module")
def frozen_file(folder: Path) -> str:
    return str(record(folder / "frozen.db3", 40, lambda number: picture(min(number, 10)), depth=False))


def all_frames(camera: RealSense) -> list[Frame]:
    camera.start()
    frames: list[Frame] = []
    with pytest.raises(DeviceError, match="has ended"):
        while True:
            frame = camera.read()
            frames += [frame] if frame is not None else []
    camera.stop()
    return frames


def test_colour_depth_and_lens_of_a_recording(file: str) -> None:
    frames = all_frames(RealSense("front", file=file))
    frame = frames[20]
    assert frame.image.shape == (HEIGHT, WIDTH, 3)
    assert frame.image[400, 10].tolist() == list(realsense_file.LEFT) and frame.image[400, 600].tolist() == list(realsense_file.RIGHT)
    assert frame.depth.shape == (HEIGHT, WIDTH) and frame.depth_scale_m == 0.001
    assert np.median(frame.depth) == round(DEPTH_M * 1000), "a wall stays a wall"
    hole = np.argwhere(frame.depth[100:400, 100:-100] == 0).mean(axis=0) + 100
    row, column = HOLE[0].start + 20 - 238.5, HOLE[1].start + 20 - 321.5
    expected = row / DEPTH_FX * COLOR_FX + 238.5, (column / DEPTH_FX + BASELINE_M / DEPTH_M) * COLOR_FX + 321.5
    assert hole == pytest.approx(expected, abs=2), "aligned: the hole is where the colour camera sees it"
    lens = frame.intrinsics
    assert (lens.width, lens.height, lens.fx, lens.cx) == (WIDTH, HEIGHT, COLOR_FX, 321.5)
    assert lens.distortion == pytest.approx(COEFFICIENTS) and lens.distortion_model == "plumb_bob"
    periods_ms = np.diff([frame.stamp_ns for frame in frames]) * 1e-6
    assert periods_ms.min() > 0 and np.median(periods_ms) == pytest.approx(1000 / FPS, abs=0.5), "the device's clock, not the arrivals"


def test_without_depth(file: str) -> None:
    camera = RealSense("front", file=file, depth=False)
    camera.start()
    while (frame := camera.read()) is None:
        pass
    camera.stop()
    assert frame.depth is None and frame.image.shape == (HEIGHT, WIDTH, 3)


def test_holes_are_filled_only_when_asked_for(folder: Path) -> None:
    path = str(record(folder / "short.db3", 6))
    plain, filled = (all_frames(RealSense("front", file=path, hole_filling=how))[-1].depth for how in ("", "nearest"))
    assert (plain == 0).sum() > 500 and (filled == 0).sum() == 0


def test_three_at_once_in_one_process(file: str) -> None:
    """Whether frames are lost depends on the machine: benchmarks/cameras.py counts them. Here: each gets its own, at its own pace."""
    with ThreadPoolExecutor(3) as pool:
        played = list(pool.map(lambda name: all_frames(RealSense(name, file=file)), ("front", "left", "right")))
    for name, frames in zip(("front", "left", "right"), played, strict=True):
        assert len(frames) > 20 and {frame.frame_id for frame in frames} == {f"{name}_color_optical_frame"}
        assert (np.diff([frame.stamp_ns for frame in frames]) > 0).all() and all(frame.depth is not None for frame in frames)


def watch(camera: RealSense, frozen_after_s: float | None, act) -> tuple[str, float]:
    """Steps a stream until it is in trouble; `act(camera, frames)` is called at each new frame.

    Returns (what was told, s since the last frame that brought something new).
    """
    stream = CameraStream(camera, "f", 2.0, frozen_after_s, period_s=1 / FPS)
    stream.start(time.monotonic_ns())
    news_s, last = time.monotonic(), None
    try:
        while True:
            frame = stream.step(time.monotonic_ns(), time.time_ns)
            if frame is not None:
                if last is None or not np.array_equal(frame.image, last):
                    news_s, last = time.monotonic(), frame.image
                act(camera, stream.frames)
            if told := stream.trouble(time.monotonic_ns()):
                return told, time.monotonic() - news_s
    finally:
        stream.stop()


def test_the_end_is_told_in_time(file: str) -> None:
    told, after_s = watch(RealSense("front", file=file), 0.35, lambda camera, frames: None)
    assert "live.db3): the recording has ended" in told and after_s < TOLD_S


def test_a_stalled_stream_is_told_in_time(file: str) -> None:
    def stall(camera: RealSense, frames: int) -> None:
        if frames == 5:
            camera._playback.pause()  # frames stop without an error, as on a USB bus that chokes

    told, after_s = watch(RealSense("front", file=file), 0.35, stall)
    assert told == "stalled: no frames come" and after_s < TOLD_S


def test_a_frozen_picture_is_told_in_time(frozen_file: str) -> None:
    told, after_s = watch(RealSense("front", file=frozen_file, depth=False), 0.35, lambda camera, frames: None)
    assert told == "frozen: identical pictures" and after_s < TOLD_S


def test_a_stall_becomes_an_error_of_the_driver(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realsense, "_STALL_S", 0.05)
    camera = RealSense("front", file=file)
    camera.start()
    while camera.read() is None:
        pass
    camera._playback.pause()
    with pytest.raises(DeviceError, match=r"stalled, no frame for 0\.05 s") as error:
        for _ in range(20):
            camera.read()
    assert error.value.reason == "stalled"
    camera.stop()


def test_repetition_keeps_the_stamps_rising(folder: Path) -> None:
    camera = RealSense("front", file=str(record(folder / "loop.db3", 10, depth=False)), repeat=True, depth=False)
    stream = CameraStream(camera, "f", 2.0, None)
    stream.start(time.monotonic_ns())
    stamps: list[int] = []
    while len(stamps) < 25:
        frame = stream.step(time.monotonic_ns(), time.time_ns)
        stamps += [frame.stamp_ns] if frame is not None else []
        assert not stream.error
    stream.stop()
    assert (np.diff(stamps) > 0).all() and stamps[-1] - stamps[0] > 0.7 * S


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hole_filling": "nearst"}, "did you mean 'nearest'"),
        ({"serial": "123", "file": "a.db3"}, "serial 123 and file a.db3; give one"),
    ],
)
def test_options_without_a_meaning(options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RealSense("front", **options)


def test_a_file_that_is_no_recording_and_a_mode_that_it_does_not_hold(folder: Path, file: str) -> None:
    (folder / "text.db3").write_text("no recording")
    with pytest.raises(DeviceError, match=r"text\.db3\): .*"):
        RealSense("front", file=str(folder / "text.db3")).start()
    with pytest.raises(DeviceError, match="does the file hold 1280x720 at 30 Hz with depth"):
        RealSense("front", file=file, width=1280, height=720).start()


# A live device, as far as it can be told without one.


def found(serial: str, usb: str = "3.2") -> Connected:
    return Connected("Intel RealSense D435I", serial, usb, "5.16.0.1", "2-1", ((640, 480, 30),))


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch):
    """What `query_devices` finds; `chosen` is what the pipeline would be told to open."""
    state = SimpleNamespace(devices=[], chosen="")
    context = SimpleNamespace(query_devices=lambda: state.devices)
    config = SimpleNamespace(enable_device=lambda serial: setattr(state, "chosen", serial))
    monkeypatch.setattr(realsense, "describe", lambda device: device)
    state.choose = lambda serial: RealSense("front", serial=serial)._choose_device(context, config)
    return state


def test_a_missing_serial_lists_what_is_connected(bus) -> None:
    with pytest.raises(DeviceError, match="no RealSense is connected: check cable, USB 3 port and udev rules"):
        bus.choose("111")
    bus.devices = [found("222"), found("333", "2.1")]
    with pytest.raises(
        DeviceError, match=r"RealSense 111\): not connected; connected: 222 \(Intel RealSense D435I, USB 3.2\), 333 .*USB 2.1"
    ):
        bus.choose("111")
    with pytest.raises(DeviceError, match="which one"):
        bus.choose("")


def test_the_underscore_of_launch_arguments_is_taken_off(bus) -> None:
    bus.devices = [found("222"), found("333")]
    assert bus.choose("_333").serial == bus.chosen == "333"


def test_usb_2_is_warned_of(bus, caplog: pytest.LogCaptureFixture) -> None:
    bus.devices = [found("333", "2.1")]
    with caplog.at_level(logging.WARNING):
        bus.choose("")
    assert bus.chosen == "333" and "on USB 2.1, so frames will be lost; use a USB 3 port" in caplog.text


def test_nothing_is_connected_here() -> None:
    with pytest.raises(DeviceError, match="not connected"):
        RealSense("front", serial="_0000").start()


class Sensor:
    """What the driver asks of a live sensor."""

    def __init__(self, kind: str) -> None:
        self.kind, self.set = getattr(realsense.rs.stream, kind), {}

    def supports(self, option: object) -> bool:
        return True

    def get_stream_profiles(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(stream_type=lambda: self.kind)]

    def set_option(self, option: object, value: float) -> None:
        if value > 10_000:
            raise RuntimeError('out of range value for argument "value"')
        self.set[option.name] = value


@pytest.mark.parametrize("exposure_us", [None, 156])
def test_exposure_is_of_the_colour_sensor_and_automatic_again_without_it(exposure_us: int | None) -> None:
    camera, sensors = RealSense("front", serial="222", exposure_us=exposure_us), [Sensor("depth"), Sensor("color")]
    camera._device = SimpleNamespace(query_sensors=lambda: sensors)
    camera._set_up_sensors()
    assert sensors[0].set == {"global_time_enabled": 1}
    exposure = {"enable_auto_exposure": 1.0} if exposure_us is None else {"enable_auto_exposure": 0.0, "exposure": 156.0}
    assert sensors[1].set == {"global_time_enabled": 1, **exposure}


def test_an_exposure_that_the_camera_refuses_is_named() -> None:
    camera = RealSense("front", serial="222", exposure_us=20_000)
    camera._device = SimpleNamespace(query_sensors=lambda: [Sensor("color")])
    with pytest.raises(DeviceError, match=r"RealSense 222\): exposure_us 20000: out of range"):
        camera._set_up_sensors()


def test_stamps_of_a_live_device(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 1_795_000_000 * S
    monkeypatch.setattr(realsense.time, "time_ns", lambda: now_ns)
    camera = RealSense("front", serial="222")
    camera._clock = ClockMap(realsense._CLOCK_JUMP_NS)

    def frame(ms: float, domain: str) -> SimpleNamespace:
        kind = getattr(realsense.rs.timestamp_domain, domain)
        return SimpleNamespace(get_timestamp=lambda: ms, get_frame_timestamp_domain=lambda: kind)

    captured_ms = now_ns * 1e-6 - 25
    assert camera._stamp_ns(frame(captured_ms, "global_time")) == pytest.approx(now_ns - 25e6, abs=1000), "capture, not arrival"
    assert camera._stamp_ns(frame(now_ns * 1e-6 + 3, "global_time")) == now_ns, "never in the future"
    first = camera._stamp_ns(frame(1000.0, "hardware_clock"))
    now_ns += 90_000_000
    assert camera._stamp_ns(frame(1033.0, "hardware_clock")) - first == pytest.approx(33e6, abs=1e5), "a late arrival is not a late capture"


def test_without_libusb_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str):
        if name == "pyrealsense2":
            raise ImportError("libusb-1.0.so.0: cannot open shared object file: No such file or directory")
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(realsense_devices, "import_module", missing)
    with pytest.raises(NotInstalled, match=r"sudo apt install libusb-1\.0-0, or pip install libusb-package"):
        realsense_devices.load_sdk()
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    monkeypatch.setattr(realsense_devices, "import_module", importlib.import_module)
    with pytest.raises(NotInstalled, match="pip install pyrealsense2"):
        realsense_devices.load_sdk()
