"""What stands in for camera hardware in tests: a recording, a video, a network camera, a simulation. Red is left, blue is right."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import cv2
import numpy as np
import realsense_file

WIDTH, HEIGHT, FPS = 160, 120, 30
FRAMES = 30


@dataclass(frozen=True)
class Counterpart:
    """How to construct a driver over its stand-in.

    `options` play for ever, `ending` end by themselves (None: this kind never ends), `absent` name what is not there.
    """

    options: dict[str, object]
    absent: dict[str, object]
    words: str  # of the error about `absent`
    ending: dict[str, object] | None = None
    has_pattern: bool = True
    name: str = "front"


def pattern(number: int) -> np.ndarray:
    """RGB [120, 160, 3]."""
    image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    image[:, : WIDTH // 2], image[:, WIDTH // 2 :] = realsense_file.LEFT, realsense_file.RIGHT
    image[40:80, number * 4 % (WIDTH - 16) :][:, :16] = 255
    return image


def write_video(path: Path, frames: int = FRAMES) -> Path:
    """An MP4 of `pattern` at 30 Hz."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 4_000_000
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pattern(number), format="rgb24")))
        container.mux(stream.encode())
    return path


@dataclass
class NetworkCamera:
    """An MJPEG camera on 127.0.0.1. `silent` keeps the connection open and sends nothing; `gone` ends it."""

    silent: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)
    picture_of: Callable[[int], np.ndarray] = pattern

    def __enter__(self) -> NetworkCamera:
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera._stream(self)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://user:secret@127.0.0.1:{self._server.server_address[1]}/video.mjpg"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gone.set()
        self._server.shutdown()
        self._server.server_close()

    def _stream(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        number = 0
        while not self.gone.wait(1 / FPS):
            if self.silent.is_set():
                continue
            jpeg = cv2.imencode(".jpg", self.picture_of(number)[..., ::-1])[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            try:
                request.wfile.write(head.encode() + jpeg + b"\r\n")
            except OSError:  # the reader has gone
                return
            number += 1


@contextmanager
def realsense(folder: Path) -> Iterator[Counterpart]:
    file = str(realsense_file.record(folder / "camera.db3", FRAMES))
    missing = str(folder / "missing.db3")
    yield Counterpart({"file": file, "repeat": True}, {"file": missing}, missing, {"file": file})


@contextmanager
def video(folder: Path) -> Iterator[Counterpart]:
    file, missing = str(write_video(folder / "camera.mp4")), str(folder / "missing.mp4")
    yield Counterpart({"file": file, "repeat": True}, {"file": missing}, missing, {"file": file})


@contextmanager
def opencv(folder: Path) -> Iterator[Counterpart]:
    with NetworkCamera() as camera:
        options = {"device": camera.address, "width": WIDTH, "height": HEIGHT, "fps": FPS}
        yield Counterpart(options, {"device": "/dev/video250"}, "/dev/video250.*no such device; there are: ")


@contextmanager
def mujoco(folder: Path) -> Iterator[Counterpart]:
    """A simulation's mirror whose stamps advance in a thread."""
    from vla_ros.sim.fast import FastLoop
    from vla_ros.sim.mirror import MirrorWriter, mirror_path

    address = f"127.8.{os.getpid() % 200 + 1}.7"
    loop = FastLoop("franka", ["front"], 64, 48)
    loop.reset(1, loop.instructions("place")[0])
    writer, ended = MirrorWriter(mirror_path(address), loop._model), threading.Event()

    def move() -> None:
        while not ended.wait(0.02):
            writer.write(loop._data.qpos, time.monotonic(), time.time_ns())

    writer.write(loop._data.qpos, 0.0, time.time_ns())
    mover = threading.Thread(target=move, daemon=True)
    mover.start()
    yield Counterpart(
        {"width": WIDTH, "height": HEIGHT, "fps": FPS, "address": address}, {"address": "127.8.250.7"}, "simul", has_pattern=False
    )
    ended.set()
    mover.join()
    writer.close()
    loop.close()


COUNTERPARTS: dict[str, Callable[[Path], object]] = {"mujoco": mujoco, "opencv": opencv, "realsense": realsense, "video": video}
