"""Records what a RealSense would have seen: `.db3` files of librealsense, from a device in software."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vla_ros.cameras.realsense_devices import rs  # finds libusb where the system has none

WIDTH, HEIGHT, FPS = 640, 480, 30
BASELINE_M = 0.015  # from the depth sensor to the colour sensor
SERIAL, DEPTH_M = "923322071234", 0.75
COLOR_FX, DEPTH_FX = 610.0, 390.0
COEFFICIENTS = (0.1, -0.2, 0.001, 0.002, 0.05)
START_NS = 1_700_000_000_000_000_000
HOLE = (slice(230, 270), slice(340, 380))  # rows and columns of the depth picture that measured nothing
LEFT, RIGHT = (200, 30, 10), (10, 60, 220)  # RGB of the picture's halves


def picture(number: int) -> np.ndarray:
    """RGB [480, 640, 3]: red left, blue right, a white bar that wanders, some noise."""
    image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    image[:, : WIDTH // 2], image[:, WIDTH // 2 :] = LEFT, RIGHT
    image[200:280, number * 8 % (WIDTH - 16) :][:, :16] = 255
    image[:32] = np.random.default_rng(number).integers(0, 256, (32, WIDTH, 3), dtype=np.uint8)
    return image


def wall() -> np.ndarray:
    """Depth [480, 640] in mm of a wall at `DEPTH_M`, with a hole."""
    depth = np.full((HEIGHT, WIDTH), round(DEPTH_M * 1000), np.uint16)
    depth[HOLE] = 0
    return depth


def record(path: Path, frames: int, picture_of: Callable[[int], np.ndarray] = picture, depth: bool = True) -> Path:
    """Writes `frames` frames at 30 Hz; recorded as fast as it goes, then given the times at which they would have come."""
    _write(path, frames, picture_of, depth)  # on its way out the recorder writes the end of the file
    _retime(path)
    return path


def _write(path: Path, frames: int, picture_of: Callable[[int], np.ndarray], depth: bool) -> None:
    device = rs.software_device()
    device.register_info(rs.camera_info.name, "Intel RealSense D435I")
    device.register_info(rs.camera_info.serial_number, SERIAL)
    device.register_info(rs.camera_info.usb_type_descriptor, "3.2")
    streams = [(device.add_sensor("RGB Camera"), rs.stream.color, rs.format.rgb8, 3, COLOR_FX)]
    if depth:
        streams.append((device.add_sensor("Stereo Module"), rs.stream.depth, rs.format.z16, 2, DEPTH_FX))
    profiles = [sensor.add_video_stream(_stream(uid, *what)) for uid, (sensor, *what) in enumerate(streams)]
    if depth:
        streams[1][0].add_read_only_option(rs.option.depth_units, 0.001)
        offset = rs.extrinsics()
        offset.rotation, offset.translation = [1, 0, 0, 0, 1, 0, 0, 0, 1], [BASELINE_M, 0, 0]
        profiles[1].register_extrinsics_to(profiles[0], offset)
    recorder, queue = rs.recorder(str(path), device), rs.frame_queue(16)
    sensors = recorder.query_sensors()
    for sensor in sensors:
        sensor.open(sensor.get_stream_profiles()[0])
        sensor.start(queue)
    for number in range(frames):
        planes = [picture_of(number), wall()]
        for (sensor, *_), profile, plane in zip(streams, profiles, planes, strict=False):
            sensor.on_video_frame(_frame(number, profile, plane))
            queue.wait_for_frame()  # the recorder drops what comes too fast
    for sensor in sensors:
        sensor.stop()
        sensor.close()


def _stream(uid: int, kind: rs.stream, pixels: rs.format, size: int, focal: float) -> rs.video_stream:
    lens = rs.intrinsics()
    lens.width, lens.height, lens.fx, lens.fy, lens.ppx, lens.ppy = WIDTH, HEIGHT, focal, focal, 321.5, 238.5
    lens.model = rs.distortion.inverse_brown_conrady if kind == rs.stream.color else rs.distortion.brown_conrady
    lens.coeffs = list(COEFFICIENTS) if kind == rs.stream.color else [0.0] * 5
    stream = rs.video_stream()
    stream.type, stream.index, stream.uid, stream.fmt, stream.bpp = kind, 0, uid, pixels, size
    stream.width, stream.height, stream.fps, stream.intrinsics = WIDTH, HEIGHT, FPS, lens
    return stream


def _frame(number: int, profile: rs.stream_profile, pixels: np.ndarray) -> rs.software_video_frame:
    frame = rs.software_video_frame()
    frame.bpp = pixels.nbytes // (WIDTH * HEIGHT)
    frame.pixels, frame.stride = pixels.reshape(-1).view(np.uint8), WIDTH * frame.bpp
    frame.timestamp, frame.domain = START_NS * 1e-6 + number * 1000 / FPS, rs.timestamp_domain.global_time
    frame.frame_number, frame.profile = number, profile.as_video_stream_profile()
    if frame.bpp == 2:
        frame.depth_units = 0.001
    return frame


def _retime(path: Path) -> None:
    """Playback goes by the times at which messages were written: gives the k-th message of each topic of frames its time at 30 Hz."""
    with sqlite3.connect(path) as file:
        for (topic,) in file.execute("select id from topics where name like '%/image/%'").fetchall():
            messages = file.execute("select id from messages where topic_id = ? order by timestamp, id", (topic,)).fetchall()
            times = [(round((k + 1) * 1e9 / FPS), message) for k, (message,) in enumerate(messages)]
            file.executemany("update messages set timestamp = ? where id = ?", times)
