"""The video of a rollout: all cameras side by side over a caption and a time line with the chunk boundaries."""

from __future__ import annotations

import bisect
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from vla_ros.cli.record import Outcome, RolloutRecord, StatusSample
from vla_ros.core.errors import DataError

WIDTH, HEIGHT = 480, 360  # px of one camera's picture in the video
CAPTION = 84  # px of the strip below
GAP = 4  # px between the pictures
RATE_HZ = 15
END_S = 1.0  # the last picture stays that long, with the outcome

_BACKGROUND, _TEXT, _DIM = (17, 20, 26), (236, 239, 244), (139, 148, 162)
_BLUE, _AMBER, _GREEN, _RED, _RAIL = (86, 156, 255), (240, 178, 62), (84, 200, 120), (238, 92, 92), (44, 50, 62)


def write_video(record: RolloutRecord, outcome: Outcome, path: Path) -> None:
    """Writes an MP4 (H.264, or MPEG-4 where PyAV lacks it) in real time at 15 Hz.

    Raises:
        DataError: the record holds no camera pictures.
    """
    cameras = {name: pictures for name, pictures in record.frames.items() if pictures}
    if not cameras:
        raise DataError("no camera picture was recorded, so there is no video to write; is the camera node running?")
    painter = _Painter(record, outcome, list(cameras))
    pictures = {name: _Pictures(frames) for name, frames in cameras.items()}
    with _Writer(path, painter.size) as writer:
        for k in range(max(1, int((record.duration_s + END_S) * RATE_HZ))):
            now_ns = record.start_ns + int(k * 1e9 / RATE_HZ)
            writer.write(painter.paint(now_ns, {name: source.at(now_ns) for name, source in pictures.items()}))


class _Pictures:
    """The pictures of one camera by time; decodes each once."""

    def __init__(self, frames: list[tuple[int, bytes]]) -> None:
        self._frames = sorted(frames)
        self._stamps = [stamp for stamp, _ in self._frames]
        self._shown: tuple[int, np.ndarray] | None = None

    def at(self, stamp_ns: int) -> np.ndarray:
        """Returns the newest picture of that instant [HEIGHT, WIDTH, 3] RGB uint8 (the first one before its time)."""
        index = max(0, bisect.bisect_right(self._stamps, stamp_ns) - 1)
        if self._shown is None or self._shown[0] != index:
            image = cv2.imdecode(np.frombuffer(self._frames[index][1], np.uint8), cv2.IMREAD_COLOR)
            if image is None:
                raise DataError(f"picture {index} of the record is not a readable JPEG")
            if image.shape[:2] != (HEIGHT, WIDTH):
                image = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
            self._shown = index, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return self._shown[1]


class _Painter:
    """Draws one picture of the video."""

    def __init__(self, record: RolloutRecord, outcome: Outcome, cameras: list[str]) -> None:
        from matplotlib import get_data_path
        from PIL import ImageFont

        fonts = Path(get_data_path()) / "fonts" / "ttf"
        self._large = ImageFont.truetype(str(fonts / "DejaVuSans-Bold.ttf"), 17)
        self._small = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), 13)
        self._record, self._outcome, self._cameras = record, outcome, cameras
        width = len(cameras) * WIDTH + (len(cameras) - 1) * GAP
        self.size = (width + width % 2, HEIGHT + CAPTION)
        self._status_stamps = [sample.stamp_ns for sample in record.status]
        self._base = self._paint_base()

    def paint(self, now_ns: int, pictures: dict[str, np.ndarray]) -> np.ndarray:
        """Returns one picture [H, W, 3] RGB uint8."""
        from PIL import Image, ImageDraw

        canvas = self._base.copy()
        for k, name in enumerate(self._cameras):
            canvas[:HEIGHT, k * (WIDTH + GAP) : k * (WIDTH + GAP) + WIDTH] = pictures[name]
        image = Image.fromarray(canvas)
        draw = ImageDraw.Draw(image)
        for k, name in enumerate(self._cameras):
            self._label(draw, k * (WIDTH + GAP) + 10, name)
        self._paint_caption(draw, now_ns)
        return np.asarray(image)

    def _paint_base(self) -> np.ndarray:
        """What never changes: the caption's ground, the instruction, the time line with one mark per chunk."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", self.size, _BACKGROUND)
        draw = ImageDraw.Draw(image)
        draw.text((12, HEIGHT + 10), f"\u201c{self._outcome.instruction}\u201d", _TEXT, self._large)
        top = self.size[1] - 18
        draw.rectangle((12, top, self.size[0] - 12, top + 8), _RAIL)
        for before, after in pairwise(self._record.status):
            if before.hold_reason:
                draw.rectangle((self._x(before.stamp_ns), top, self._x(after.stamp_ns), top + 8), _AMBER)
        for stamp in self._record.chunk_arrival_ns:
            draw.line((self._x(stamp), top, self._x(stamp), top + 8), _DIM)
        return np.asarray(image)

    def _paint_caption(self, draw: object, now_ns: int) -> None:
        done = now_ns >= self._record.end_ns
        sample = self._status_at(now_ns)
        parts = [f"{min(self._record.seconds(now_ns), self._record.duration_s):5.1f} s"]
        parts.append(f"chunk {bisect.bisect_right(self._record.chunk_arrival_ns, now_ns)}")
        if sample is not None:
            parts.append(f"inference {sample.inference_ms:.0f} ms")
            parts.append(f"observation age {sample.observation_age_ms:.0f} ms")
            if sample.hold_reason and not done:
                parts.append(f"holds: {sample.hold_reason}")
        draw.text((12, HEIGHT + 38), "    ".join(parts), _DIM, self._small)
        word, colour = self._state(done, sample)
        draw.text((self.size[0] - 12, HEIGHT + 10), word, colour, self._large, anchor="ra")
        if self._outcome.executor:
            draw.text((self.size[0] - 12, HEIGHT + 38), f"executor {self._outcome.executor}", _DIM, self._small, anchor="ra")
        self._paint_time(draw, now_ns)

    def _paint_time(self, draw: object, now_ns: int) -> None:
        """The play head, and a flash while a chunk takes over."""
        top, x = self.size[1] - 18, self._x(min(now_ns, self._record.end_ns))
        draw.rectangle((12, top + 7, x, top + 8), _BLUE)
        k = bisect.bisect_right(self._record.chunk_arrival_ns, now_ns) - 1
        fresh = k >= 0 and now_ns - self._record.chunk_arrival_ns[k] < 1e9 / RATE_HZ
        radius = 6 if fresh else 4
        draw.ellipse((x - radius, top + 4 - radius, x + radius, top + 4 + radius), _BLUE if fresh else _TEXT)

    def _state(self, done: bool, sample: StatusSample | None) -> tuple[str, tuple[int, int, int]]:
        if done:
            return self._outcome.outcome.replace("_", " "), _GREEN if self._outcome.success else _RED
        return ("holding", _AMBER) if sample is not None and sample.hold_reason else ("running", _BLUE)

    def _status_at(self, now_ns: int) -> StatusSample | None:
        index = bisect.bisect_right(self._status_stamps, now_ns) - 1
        return self._record.status[index] if index >= 0 else None

    def _x(self, stamp_ns: int) -> float:
        share = self._record.seconds(stamp_ns) / max(self._record.duration_s, 1e-3)
        return 12 + (self.size[0] - 24) * min(max(share, 0.0), 1.0)

    def _label(self, draw: object, x: int, name: str) -> None:
        left, top, right, bottom = draw.textbbox((x, 10), name, self._small)
        draw.rounded_rectangle((left - 6, top - 4, right + 6, bottom + 4), 5, _BACKGROUND)
        draw.text((x, 10), name, _TEXT, self._small)


class _Writer:
    """An MP4 file that plays everywhere (yuv420p, index at the front)."""

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        import av

        self._av = av
        self._file = av.open(str(path), "w", options={"movflags": "faststart"})
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        options = {"crf": "20", "preset": "fast"} if codec == "libx264" else {"qscale": "3"}
        self._stream = self._file.add_stream(codec, rate=Fraction(RATE_HZ), options=options)
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"
        if codec == "mpeg4":
            self._stream.bit_rate = 6_000_000

    def __enter__(self) -> _Writer:
        return self

    def write(self, image: np.ndarray) -> None:
        """Appends one picture [H, W, 3] RGB uint8."""
        self._file.mux(self._stream.encode(self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))

    def __exit__(self, *error: object) -> None:
        self._file.mux(self._stream.encode(None))
        self._file.close()
