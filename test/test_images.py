"""Images on topics: depth, JPEG, and every encoding that a camera of another package may publish."""

from __future__ import annotations

import sys
from array import array

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, Image

from vla_ros.core.errors import DataError, NotInstalled
from vla_ros.core.types import Frame
from vla_ros.nodes import image_conversion, images

RNG = np.random.default_rng(7)
HEIGHT, WIDTH = 12, 16
RGB = cv2.resize(RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
GRAY = RGB[..., 1]
LUMA = RNG.integers(16, 235, (HEIGHT, WIDTH), dtype=np.uint8)
CHROMA = RNG.integers(16, 240, (HEIGHT, WIDTH), dtype=np.uint8)  # U at even columns, V at odd ones


def yuv(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.stack((first, second), axis=-1)


def from_yuv() -> np.ndarray:
    """BT.601, limited range, by its own formula."""
    y = 1.164 * (LUMA.astype(float) - 16)
    u, v = (np.repeat(CHROMA[:, k::2].astype(float) - 128, 2, axis=1) for k in (0, 1))
    return np.clip(np.stack((y + 1.596 * v, y - 0.813 * v - 0.391 * u, y + 2.018 * u), axis=-1), 0, 255)


PAYLOADS = {
    "bgr8": (RGB[..., ::-1], RGB),
    "mono8": (GRAY, np.repeat(GRAY[..., None], 3, axis=2)),
    "bgra8": (np.dstack((RGB[..., ::-1], GRAY)), RGB),
    "rgba8": (np.dstack((RGB, GRAY)), RGB),
    "yuv422": (yuv(CHROMA, LUMA), from_yuv()),
    "yuv422_yuy2": (yuv(LUMA, CHROMA), from_yuv()),
}


def message(pixels: np.ndarray, encoding: str, padding: int = 0) -> Image:
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    return Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=rows.shape[1], data=array("B", rows.tobytes()))


def packed(suffix: str, bgr: np.ndarray) -> CompressedImage:
    return CompressedImage(format=f"bgr8; {suffix} compressed bgr8", data=array("B", cv2.imencode(f".{suffix}", bgr)[1].tobytes()))


@pytest.mark.parametrize("padding", [0, 8])
@pytest.mark.parametrize("encoding", PAYLOADS)
def test_every_colour_encoding_becomes_rgb(encoding: str, padding: int) -> None:
    pixels, rgb = PAYLOADS[encoding]
    image = images.frame_of(message(pixels, encoding, padding)).image
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8 and not image.flags.writeable
    assert np.abs(image - rgb).max() <= (2.0 if "yuv" in encoding else 0.0)


def test_the_v4l2_name_of_yuyv_is_known_too() -> None:
    pixels, _ = PAYLOADS["yuv422_yuy2"]
    assert np.array_equal(images.frame_of(message(pixels, "yuyv")).image, images.frame_of(message(pixels, "yuv422_yuy2")).image)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_compressed_pictures_become_rgb(suffix: str) -> None:
    frame = images.frame_of(packed(suffix, RGB[..., ::-1]), 3)
    assert frame.number == 3 and frame.image.shape == RGB.shape
    assert np.abs(frame.image.astype(int) - RGB).mean() < (1e-9 if suffix == "png" else 12)
    gray = images.frame_of(packed("png", GRAY)).image
    assert np.array_equal(gray, np.repeat(GRAY[..., None], 3, axis=2))


def test_what_is_compressed_here_is_read_there() -> None:
    smooth = np.full((48, 64, 3), (200, 40, 10), np.uint8)
    sent = images.compressed_msg(Frame(5_000_000_001, smooth, 0, "front_color_optical_frame"), 95)
    back = images.frame_of(sent)
    assert "jpeg" in sent.format and bytes(sent.data[:2]) == b"\xff\xd8" and len(sent.data) < smooth.size / 4
    assert np.abs(back.image.astype(int) - smooth).max() <= 3, "red stays red"
    assert (back.stamp_ns, back.frame_id) == (5_000_000_001, "front_color_optical_frame")


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff no picture"])
def test_damaged_pictures_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="format 'jpeg' cannot become rgb8"):
        images.frame_of(CompressedImage(format="jpeg", data=array("B", data)))


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_depth_is_not_taken_for_a_picture(encoding: str) -> None:
    with pytest.raises(DataError, match=f"encoding '{encoding}' has no colour"):
        images.frame_of(message(np.zeros((4, 6), np.uint16 if encoding == "16UC1" else np.float32), encoding))


def test_depth_travels_in_millimetres() -> None:
    depth_mm = RNG.integers(0, 65536, (4, 6), dtype=np.uint16)
    frame = Frame(7, np.zeros((4, 6, 3), np.uint8), 0, "front_color_optical_frame", depth=depth_mm)
    sent = images.depth_msg(frame)
    assert (sent.encoding, sent.step, sent.header.frame_id) == ("16UC1", 12, "front_color_optical_frame")
    received = images.depth_of(sent)
    assert np.array_equal(received, depth_mm) and not received.flags.writeable
    sent.data[0] ^= 1
    assert received[0, 0] == depth_mm[0, 0] ^ 1, "the depth was copied"
    fine = Frame(7, frame.image, 0, "f", depth=np.array([[0, 12345, 65535]], np.uint16), depth_scale_m=0.0001)
    assert images.depth_of(images.depth_msg(fine)).tolist() == [[0, 1234, 6554]]
    coarse = Frame(7, frame.image, 0, "f", depth=np.array([[65535]], np.uint16), depth_scale_m=0.01)
    assert images.depth_of(images.depth_msg(coarse)).tolist() == [[65535]], "clipped, never wrapped around"


def test_depth_that_is_refused() -> None:
    for depth in (None, np.zeros((4, 6), np.float32)):
        with pytest.raises(DataError, match=r"depth (none|float32 \(4, 6\)), expected uint16"):
            images.depth_msg(Frame(7, np.zeros((4, 6, 3), np.uint8), 0, "f", depth=depth))
    with pytest.raises(DataError, match="encoding 'rgb8', expected 16UC1"):
        images.depth_of(message(RGB, "rgb8"))
    with pytest.raises(DataError, match="rows of 6 bytes, expected at least 12"):
        images.depth_of(Image(height=2, width=6, encoding="16UC1", step=6, data=array("B", bytes(12))))


def test_big_endian_depth_is_read_right() -> None:
    sent = message(np.array([[1, 258]], np.uint16).byteswap(), "16UC1")
    sent.is_bigendian = 1
    assert images.depth_of(sent).tolist() == [[1, 258]]


def test_both_converters_give_the_same_arrays() -> None:
    pytest.importorskip("cv_bridge", reason="no ROS distribution is sourced")
    for encoding, (pixels, _) in PAYLOADS.items():
        sent = message(pixels, encoding)
        assert np.array_equal(image_conversion.by_cv_bridge(sent), image_conversion.by_rosbags(sent)), encoding
    for suffix in ("png", "jpg"):
        sent = packed(suffix, RGB[..., ::-1])
        assert np.array_equal(image_conversion.by_cv_bridge(sent), image_conversion.by_rosbags(sent)), suffix


def test_without_a_converter_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cv_bridge", "rosbags.image"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(NotInstalled, match="pip install rosbags-image"):
        images.frame_of(message(RGB[..., ::-1], "bgr8"))
    assert images.frame_of(message(RGB, "rgb8")).image.shape == RGB.shape, "no conversion, no converter"
