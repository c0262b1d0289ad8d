"""Other encodings -> RGB, by the converter that the installation has: cv_bridge (ROS) or rosbags-image give the same arrays."""

from __future__ import annotations

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from vla_ros.core.errors import DataError, NotInstalled

_COLORLESS = ("8U", "8S", "16U", "16S", "32S", "32F", "64F")  # how the names of encodings begin whose values have no colour


def to_rgb(message: Image | CompressedImage) -> np.ndarray:
    """Returns uint8 [H, W, 3] RGB, writable. The rows of an Image must be tight.

    Raises:
        DataError: the encoding cannot become RGB, or the payload is damaged.
        NotInstalled: there is neither cv_bridge nor rosbags-image.
    """
    packed = isinstance(message, CompressedImage)
    what = f"format '{message.format}'" if packed else f"encoding '{message.encoding}'"
    if not packed and message.encoding.startswith(_COLORLESS):
        raise DataError(f"image of {message.header.frame_id}: {what} has no colour; use rgb8 or bgr8")
    try:
        image = by_cv_bridge(message)
    except ImportError:
        image = None
    except Exception as error:  # CvBridgeError has no base of its own
        raise _refused(message, what, str(error)) from error
    if image is None:
        image = _without_ros(message, what)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise _refused(message, what, f"gives {image.dtype} {image.shape}")
    return np.ascontiguousarray(image)


def by_cv_bridge(message: Image | CompressedImage) -> np.ndarray:
    """Raises ImportError without cv_bridge, CvBridgeError for what it cannot convert."""
    from cv_bridge import CvBridge

    bridge = CvBridge()
    convert = bridge.compressed_imgmsg_to_cv2 if isinstance(message, CompressedImage) else bridge.imgmsg_to_cv2
    return convert(message, "rgb8")


def by_rosbags(message: Image | CompressedImage) -> np.ndarray:
    """Raises ImportError without rosbags-image, ImageError, cv2.error, TypeError or ValueError for what it cannot convert."""
    from rosbags.image import ImageFormatError, message_to_cvimage

    if not isinstance(message, CompressedImage):
        return message_to_cvimage(message, "rgb8")
    if not len(message.data) or cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8) is None:
        raise ImageFormatError("neither JPEG nor PNG")
    image = message_to_cvimage(message)
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB)


def _without_ros(message: Image | CompressedImage, what: str) -> np.ndarray:
    try:
        from rosbags.image import ImageError
    except ImportError:
        raise NotInstalled(f"{what} needs cv_bridge (ROS) or rosbags-image: pip install rosbags-image") from None
    try:
        return by_rosbags(message)
    except (ImageError, cv2.error, TypeError, ValueError) as error:
        raise _refused(message, what, str(error)) from error


def _refused(message: Image | CompressedImage, what: str, why: str) -> DataError:
    return DataError(f"image of {message.header.frame_id}: {what} cannot become rgb8 ({why}); use rgb8 or bgr8")
