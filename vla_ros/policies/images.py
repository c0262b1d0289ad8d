"""The one way from a camera frame to network pixels, shared by demonstrations, training and inference."""

from __future__ import annotations

import cv2
import numpy as np

from vla_ros.core.errors import DataError


def shrink(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Returns the whole frame as uint8 [height, width, 3], area-averaged so that fine texture does not alias.

    Args:
        image: uint8 [H, W, 3] RGB with the aspect ratio width / height (within 2 %).

    Raises:
        DataError: another dtype, shape or aspect ratio; a policy must not silently see stretched frames.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"frame is {image.dtype} {image.shape}, expected uint8 [H, W, 3] RGB")
    if abs(image.shape[1] * height / (image.shape[0] * width) - 1) > 0.02:
        raise DataError(
            f"frame is {image.shape[1]}x{image.shape[0]}, expected the aspect ratio of {width}x{height}: set the camera's size in the rig"
        )
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
