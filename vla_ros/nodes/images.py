"""sensor_msgs/Image <-> Frame: views where no conversion is needed, cv_bridge or rosbags-image for other encodings."""

from __future__ import annotations

from array import array

import numpy as np
from sensor_msgs.msg import Image

from vla_ros.core.errors import DataError, NotInstalled
from vla_ros.core.types import Frame
from vla_ros.nodes import msgs


def image_msg(frame: Frame) -> Image:
    """rgb8, 3 bytes a pixel. Raises DataError unless the image is uint8 [H, W, 3]."""
    image = frame.image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"frame {frame.number} of {frame.frame_id}: {image.dtype} {image.shape}, expected uint8 [H, W, 3]")
    height, width, _ = image.shape
    payload = array("B")  # rclpy takes an array.array over as it is; bytes would be checked one by one
    payload.frombytes(memoryview(np.ascontiguousarray(image)).cast("B"))
    header = msgs.header_msg(frame.stamp_ns, frame.frame_id)
    return Image(header=header, height=height, width=width, encoding="rgb8", step=3 * width, data=payload)


def frame_of(message: Image, number: int = 0) -> Frame:
    """The image of a message; for rgb8 a read-only view of its payload, no copy.

    Raises:
        DataError: the payload has another size than height x step, or the encoding cannot become RGB.
        NotInstalled: another encoding than rgb8, and neither cv_bridge nor rosbags-image is there.
    """
    height, width, step = message.height, message.width, message.step
    if not height or not width or len(message.data) != height * step:
        raise DataError(f"image of {message.header.frame_id}: {len(message.data)} bytes for {height} rows of {step}")
    if message.encoding == "rgb8":
        if step < 3 * width:
            raise DataError(f"image of {message.header.frame_id}: rows of {step} bytes, expected at least {3 * width} ({width} px of rgb8)")
        image = np.frombuffer(message.data, np.uint8).reshape(height, step)[:, : 3 * width].reshape(height, width, 3)
    else:
        image = _convert(message)
    image.setflags(write=False)
    return Frame(msgs.stamp_ns(message.header.stamp), image, number, message.header.frame_id)


def _convert(message: Image) -> np.ndarray:
    """Another encoding -> RGB, by the converter that the installation has."""
    try:
        from cv_bridge import CvBridge
    except ImportError:
        return _convert_without_ros(message)
    try:
        return np.ascontiguousarray(CvBridge().imgmsg_to_cv2(message, "rgb8"))
    except Exception as error:
        raise _refused(message, error) from error


def _convert_without_ros(message: Image) -> np.ndarray:
    try:
        from rosbags.image import ImageError, message_to_cvimage
    except ImportError:
        raise NotInstalled(f"encoding {message.encoding} needs cv_bridge (ROS) or rosbags-image: pip install rosbags-image") from None
    try:
        return np.ascontiguousarray(message_to_cvimage(message, "rgb8"))
    except (ImageError, TypeError, ValueError) as error:
        raise _refused(message, error) from error


def _refused(message: Image, error: Exception) -> DataError:
    return DataError(f"image of {message.header.frame_id}: encoding '{message.encoding}' cannot become rgb8 ({error}); use rgb8 or bgr8")
