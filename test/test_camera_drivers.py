"""OpenCV and video cameras: network streams for real, V4L2 over a double of OpenCV's capture, calibration files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from camera_devices import FPS, HEIGHT, WIDTH, NetworkCamera, pattern, write_video
from typer.testing import CliRunner

from vla_ros.cameras import opencv, realsense_devices, v4l2_devices
from vla_ros.cameras.calibration import load_calibration
from vla_ros.cameras.opencv import OpenCVCamera
from vla_ros.cameras.realsense_devices import Connected
from vla_ros.cameras.video import VideoCamera
from vla_ros.cli import main
from vla_ros.core.errors import ConfigError, DeviceError
from vla_ros.core.types import Frame
from vla_ros.nodes.camera_stream import CameraStream

CALIBRATION = """
image_width: 160
image_height: 120
camera_name: dabai
camera_matrix: {rows: 3, cols: 3, data: [140.5, 0.0, 80.25, 0.0, 141.5, 60.75, 0.0, 0.0, 1.0]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [0.1, -0.2, 0.001, 0.002, 0.0]}
rectification_matrix: {rows: 3, cols: 3, data: [1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0]}
projection_matrix: {rows: 3, cols: 4, data: [140.0, 0, 80.0, 0, 0, 141.0, 60.0, 0, 0, 0, 1.0, 0]}
"""
TOLD_S = 0.5


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    path = tmp_path / "dabai.yaml"
    path.write_text(CALIBRATION)
    return path


def next_frame(camera: OpenCVCamera | VideoCamera) -> Frame:
    deadline_s = time.monotonic() + 10
    while (frame := camera.read()) is None:
        assert time.monotonic() < deadline_s, "no frame within 10 s"
    return frame


def network(address: str, **options) -> OpenCVCamera:
    return OpenCVCamera("front", device=address, width=WIDTH, height=HEIGHT, fps=FPS, **options)


# Calibration


def test_a_calibration_gives_the_lens(calibration: Path) -> None:
    lens = load_calibration(calibration, 160, 120)
    assert (lens.fx, lens.fy, lens.cx, lens.cy) == (140.5, 141.5, 80.25, 60.75)
    assert lens.distortion == (0.1, -0.2, 0.001, 0.002, 0.0) and lens.distortion_model == "plumb_bob"
    text = CALIBRATION.replace("plumb_bob", "rational_polynomial").replace(
        "cols: 5, data: [0.1, -0.2, 0.001, 0.002, 0.0]", "cols: 8, data: [1.0, 2, 3, 4, 5, 6, 7, 8]"
    )
    calibration.write_text(text)
    assert load_calibration(calibration, 160, 120).distortion == tuple(range(1, 9))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("image_width: 160", "image_width: 640", "calibrated at 640x120, but the camera gives 160x120"),
        ("plumb_bob", "fisheye", r"dabai.yaml:6: distortion_model: 'fisheye', expected one of plumb_bob"),
        ("cols: 5, data: [0.1, ", "cols: 2, data: [", r"distortion_coefficients.data: 4 values for 1 x 2"),
        ("camera_name", "camera_nam", r"dabai.yaml:4: camera_nam: unknown key; did you mean 'camera_name'"),
    ],
)
def test_calibrations_that_are_refused(calibration: Path, old: str, new: str, words: str) -> None:
    calibration.write_text(CALIBRATION.replace(old, new))
    with pytest.raises(ConfigError, match=words):
        network("http://127.0.0.1:1", calibration=str(calibration))


# A network camera, through OpenCV and FFmpeg


def test_a_network_camera_that_dies_is_told_in_time_and_comes_back(calibration: Path) -> None:
    with NetworkCamera() as server:
        stream = CameraStream(network(server.address, calibration=str(calibration)), "f", 1.0, 0.35, period_s=1 / FPS)
        stream.start(time.monotonic_ns())
        while stream.frames < 5:
            frame = stream.step(time.monotonic_ns(), time.time_ns)
            last_s = time.monotonic() if frame is not None else None
        server.silent.set()
        while not stream.trouble(time.monotonic_ns()):
            last_s = time.monotonic() if stream.step(time.monotonic_ns(), time.time_ns) is not None else last_s
        assert stream.trouble(time.monotonic_ns()) == "stalled: no frames come" and time.monotonic() - last_s < TOLD_S
        server.silent.clear()
        before = stream.frames
        while stream.frames < before + 3:
            stream.step(time.monotonic_ns(), time.time_ns)
        assert not stream.trouble(time.monotonic_ns())
        stream.stop()


def test_a_network_camera_that_freezes_is_told_in_time() -> None:
    with NetworkCamera(picture_of=lambda number: pattern(min(number, 5))) as server:
        stream = CameraStream(network(server.address), "f", 1.0, 0.35, period_s=1 / FPS)
        stream.start(time.monotonic_ns())
        news_s, last = time.monotonic(), None
        while not (told := stream.trouble(time.monotonic_ns())):
            frame = stream.step(time.monotonic_ns(), time.time_ns)
            if frame is not None and (last is None or not np.array_equal(frame.image, last)):
                news_s, last = time.monotonic(), frame.image
        assert told == "frozen: identical pictures" and time.monotonic() - news_s < TOLD_S
        stream.stop()


def test_the_end_of_a_connection_is_an_error_without_the_password() -> None:
    with NetworkCamera() as server:
        camera = network(server.address)
        camera.start()
        next_frame(camera)
        server.gone.set()
        with pytest.raises(DeviceError, match=r"camera front \(http://127.0.0.1:\d+/video.mjpg\): no more frames"):
            for _ in range(600):
                camera.read()
        camera.stop()
        with pytest.raises(DeviceError, match="cannot be opened; is it on, and is the address right") as error:
            camera.start()
    assert "secret" not in str(error.value)


def test_another_size_than_asked_for_is_refused() -> None:
    with NetworkCamera() as server, pytest.raises(DeviceError, match="gives 160x120, asked for 640x480"):
        OpenCVCamera("front", device=server.address).start()


# V4L2, over a double of OpenCV's capture: no machine of the project has a /dev/video0


class Capture:
    """What cv2.VideoCapture does for a USB camera; stamps are V4L2's, 20 ms before the grab."""

    refuses: int | None = None
    unplugged = False
    captured_ms: float | None = None

    def __init__(self, device: str, api: int) -> None:
        self.opened, self.settings, self.released = (device, api), [], False
        type(self).made = self

    def isOpened(self) -> bool:
        return True

    def set(self, key: int, value: float) -> bool:
        self.settings.append((key, value))
        return key != self.refuses

    def get(self, key: int) -> float:
        if key == cv2.CAP_PROP_POS_MSEC:
            return time.monotonic() * 1e3 - 20 if self.captured_ms is None else self.captured_ms
        return dict(self.settings)[key]

    def grab(self) -> bool:
        time.sleep(0.005)
        return not self.unplugged

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, pattern(0)[..., ::-1].copy()

    def release(self) -> None:
        self.released = True


@pytest.fixture
def v4l2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    node = tmp_path / "video0"
    node.touch()
    capture = type("Capture", (Capture,), {})
    monkeypatch.setattr(opencv.cv2, "VideoCapture", capture)
    make = lambda **options: OpenCVCamera("front", device=str(node), width=WIDTH, height=HEIGHT, **options)  # noqa: E731
    return SimpleNamespace(node=node, capture=capture, make=make)


def test_v4l2_is_set_up_format_first_and_stamped_by_the_driver(v4l2) -> None:
    camera = v4l2.make(fps=25, fourcc="MJPG", controls={"auto_exposure": 1, "exposure": 120})
    camera.start()
    frame = next_frame(camera)
    camera.stop()
    assert v4l2.capture.made.opened == (str(v4l2.node), cv2.CAP_V4L2) and v4l2.capture.made.released
    keys = [cv2.CAP_PROP_FOURCC, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS]
    assert [key for key, _ in v4l2.capture.made.settings][:4] == keys
    assert v4l2.capture.made.settings[0][1] == cv2.VideoWriter.fourcc(*"MJPG")
    assert v4l2.capture.made.settings[-2:] == [(cv2.CAP_PROP_AUTO_EXPOSURE, 1), (cv2.CAP_PROP_EXPOSURE, 120)]
    assert np.array_equal(frame.image, pattern(0)), "RGB, not BGR"


def test_v4l2_stamps_are_monotonic_time_and_nonsense_is_not_believed(v4l2) -> None:
    capture = v4l2.capture("x", 0)
    camera = v4l2.make()
    assert time.time_ns() - camera._stamp_ns(capture) == pytest.approx(20e6, abs=15e6)
    for nonsense_ms in (0.0, time.time() * 1e3):
        capture.captured_ms = nonsense_ms
        assert abs(time.time_ns() - camera._stamp_ns(capture)) < 15e6


def test_v4l2_faults_name_the_device_and_the_fix(v4l2, monkeypatch: pytest.MonkeyPatch) -> None:
    v4l2.capture.refuses = cv2.CAP_PROP_EXPOSURE
    with pytest.raises(DeviceError, match=r"video0\): refuses exposure = 7; v4l2-ctl --list-ctrls"):
        v4l2.make(controls={"exposure": 7}).start()
    assert v4l2.capture.made.released
    monkeypatch.setattr(opencv.os, "access", lambda path, mode: False)
    with pytest.raises(DeviceError, match=r"video0\): no permission; sudo usermod -aG video \$USER"):
        v4l2.make().start()
    with pytest.raises(ConfigError, match="did you mean 'exposure'"):
        v4l2.make(controls={"exposur": 1})
    with pytest.raises(ConfigError, match="fourcc 'MJPEG', expected four letters"):
        v4l2.make(fourcc="MJPEG")


def test_v4l2_unplugged_and_plugged_in_again(v4l2) -> None:
    camera = v4l2.make()
    camera.start()
    next_frame(camera)
    v4l2.node.unlink()
    v4l2.capture.unplugged = True
    with pytest.raises(DeviceError, match=r"video0\): unplugged"):
        for _ in range(100):
            camera.read()
    camera.stop()
    with pytest.raises(DeviceError, match=r"video0\): there is no such device"):
        camera.start()
    v4l2.node.touch()
    v4l2.capture.unplugged = False
    camera.start()
    assert next_frame(camera).number == 0
    camera.stop()


def test_a_number_is_a_device() -> None:
    with pytest.raises(DeviceError, match=r"camera front \(/dev/video250\): there is no such device"):
        OpenCVCamera("front", device=250).start()


# Video files


def test_a_video_plays_at_the_pace_that_it_is_told(tmp_path: Path) -> None:
    camera = VideoCamera("front", file=str(write_video(tmp_path / "v.mp4", 10)), fps=100)
    camera.start()
    frames, started_s = [], time.monotonic()
    with pytest.raises(DeviceError, match="the video has ended"):
        while True:
            frame = camera.read()
            frames += [frame] if frame is not None else []
    assert len(frames) > 5 and time.monotonic() - started_s > 0.08
    camera.stop()


def test_videos_that_are_refused(tmp_path: Path, calibration: Path) -> None:
    with pytest.raises(DeviceError, match=r"missing.mp4\): No such file"):
        VideoCamera("front", file=str(tmp_path / "missing.mp4")).start()
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DeviceError, match=r"text.mp4\): Invalid data"):
        VideoCamera("front", file=str(tmp_path / "text.mp4")).start()
    calibration.write_text(CALIBRATION.replace("image_height: 120", "image_height: 100"))
    with pytest.raises(ConfigError, match="calibrated at 160x100"):
        VideoCamera("front", file=str(write_video(tmp_path / "v.mp4", 3)), calibration=str(calibration)).start()


# What is connected


@pytest.fixture
def usb(tmp_path: Path) -> Path:
    """A /sys and a /dev with a Dabai on USB 2: video2 carries its colour, video3 its metadata."""
    interface = tmp_path / "sys/devices/usb1/1-4/1-4:1.0"
    interface.mkdir(parents=True)
    (interface.parent / "version").write_text(" 2.00\n")
    for number, index in ((2, 0), (3, 1)):
        entry = tmp_path / f"sys/class/video4linux/video{number}"
        entry.mkdir(parents=True)
        (entry / "name").write_text("Astra Pro HD Camera\n")
        (entry / "index").write_text(f"{index}\n")
        (entry / "device").symlink_to(interface)
    by_id = tmp_path / "dev/v4l/by-id"
    by_id.mkdir(parents=True)
    (tmp_path / "dev/video2").touch()
    (by_id / "usb-Orbbec_Dabai-video-index0").symlink_to("../../video2")
    return tmp_path


def test_v4l2_cameras_are_listed_by_the_name_that_stays(usb: Path) -> None:
    (device,) = v4l2_devices.connected(usb / "sys", usb / "dev")
    assert (device.name, device.usb, device.may_open) == ("Astra Pro HD Camera", "2.00", True)
    assert device.device == str(usb / "dev/video2") and device.stable.endswith("by-id/usb-Orbbec_Dabai-video-index0")
    assert v4l2_devices.connected(usb / "nothing", usb / "dev") == []


def test_vla_cameras_says_what_to_write_into_the_rig(usb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Connected("Intel RealSense D435I", "923322071234", "2.1", "5.16", "2-1", ((640, 480, 15),))
    (device,) = v4l2_devices.connected(usb / "sys", usb / "dev")
    monkeypatch.setattr(realsense_devices, "connected", lambda: [slow])
    monkeypatch.setattr(v4l2_devices, "connected", lambda: [device])
    monkeypatch.setenv("COLUMNS", "300")
    printed = CliRunner().invoke(main.app, ["cameras"])
    assert printed.exit_code == 0
    assert 'driver: realsense, serial: "923322071234"' in printed.output and "640x480x15" in printed.output
    assert "USB 2: use a USB 3 port" in printed.output and f"driver: opencv, device: {device.stable}" in printed.output
    told = json.loads(CliRunner().invoke(main.app, ["cameras", "--json"]).output)
    assert told["realsense"][0]["serial"] == "923322071234" and told["v4l2"][0]["device"] == device.device
    for module in (realsense_devices, v4l2_devices):
        monkeypatch.setattr(module, "connected", list)
    printed = CliRunner().invoke(main.app, ["cameras"])
    assert printed.exit_code == 1 and "no camera is connected" in printed.output
