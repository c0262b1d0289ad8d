"""Calibration files as ROS' camera_calibration writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vla_ros.core import yaml
from vla_ros.core.errors import ConfigError
from vla_ros.core.types import Intrinsics

_COEFFICIENTS = {"plumb_bob": (4, 5), "rational_polynomial": (8,), "equidistant": (4,)}


@dataclass(frozen=True)
class Matrix:
    """`data` row by row."""

    rows: int
    cols: int
    data: tuple[float, ...]

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(self.data) != self.rows * self.cols:
            yield "data", f"{len(self.data)} values for {self.rows} x {self.cols}"


@dataclass(frozen=True)
class CalibrationFile:
    """The keys of a file; rectification and projection are for stereo pairs and not used here."""

    image_width: int
    image_height: int
    camera_matrix: Matrix
    distortion_model: str
    distortion_coefficients: Matrix
    camera_name: str = ""
    rectification_matrix: Matrix | None = None
    projection_matrix: Matrix | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        count = len(self.distortion_coefficients.data)
        if self.distortion_model not in _COEFFICIENTS:
            yield "distortion_model", f"'{self.distortion_model}', expected one of {', '.join(_COEFFICIENTS)}"
        elif count not in _COEFFICIENTS[self.distortion_model]:
            yield "distortion_coefficients", f"{count} values for {self.distortion_model}"
        if len(self.camera_matrix.data) != 9:
            yield "camera_matrix", f"{len(self.camera_matrix.data)} values, expected 9"


def load_calibration(path: str | Path, width: int, height: int) -> Intrinsics:
    """Reads the intrinsics of pictures of `width` x `height` px.

    Raises:
        ConfigError: no such file, a wrong key or value (with its line), or a calibration of another size.
    """
    file = yaml.load(Path(path).expanduser(), CalibrationFile)
    if (file.image_width, file.image_height) != (width, height):
        size = f"{file.image_width}x{file.image_height}"
        raise ConfigError(f"{path}: calibrated at {size}, but the camera gives {width}x{height}: calibrate again, or set that size")
    fx, _, cx, _, fy, cy = file.camera_matrix.data[:6]
    distortion = file.distortion_coefficients.data
    if file.distortion_model == "plumb_bob":
        distortion = (*distortion, 0.0)[:5]
    return Intrinsics(width, height, fx, fy, cx, cy, distortion, file.distortion_model)
