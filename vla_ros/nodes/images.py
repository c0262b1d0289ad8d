"""sensor_msgs/Image and CompressedImage <-> Frame: views where no conversion is needed, cv_bridge or rosbags-image for other encodings."""

from __future__ import annotations

from array import array

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from vla_ros.core.errors import DataError
from vla_ros.core.types import Frame
from vla_ros.nodes import msgs
from vla_ros.nodes.image_conversion import to_rgb


def image_msg(frame: Frame) -> Image:
    """rgb8, 3 bytes a pixel. Raises DataError unless the image is uint8 [H, W, 3]."""
    _check(frame)
    return _image_msg(frame, frame.image, "rgb8")


def depth_msg(frame: Frame) -> Image:
    """16UC1 in mm, 0 is unknown (REP-118). Raises DataError unless the depth is uint16 [H, W]."""
    depth = frame.depth
    if depth is None or depth.dtype != np.uint16 or depth.ndim != 2:
        found = "none" if depth is None else f"{depth.dtype} {depth.shape}"
        raise DataError(f"frame {frame.number} of {frame.frame_id}: depth {found}, expected uint16 [H, W]")
    if abs(frame.depth_scale_m - 0.001) > 1e-6:  # a D405 counts in 0.1 mm
        depth = np.minimum(np.rint(depth * (frame.depth_scale_m * 1e3)), np.iinfo(np.uint16).max).astype(np.uint16)
    return _image_msg(frame, depth, "16UC1")


def compressed_msg(frame: Frame, quality: int) -> CompressedImage:
    """JPEG of `quality` 1 to 100, with the words of image_transport in `format`. Raises DataError unless the image is uint8 [H, W, 3]."""
    _check(frame)
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    header = msgs.header_msg(frame.stamp_ns, frame.frame_id)
    return CompressedImage(header=header, format="rgb8; jpeg compressed bgr8", data=array("B", jpeg.tobytes()))


def frame_of(message: Image | CompressedImage, number: int = 0) -> Frame:
    """The image of a message; for rgb8 a read-only view of its payload, no copy.

    Raises:
        DataError: the payload has another size than height x step, or the encoding cannot become RGB.
        NotInstalled: another encoding than rgb8, and neither cv_bridge nor rosbags-image is there.
    """
    if isinstance(message, CompressedImage):
        image = to_rgb(message)
    elif message.encoding == "rgb8":
        image = _pixels(message, 3).reshape(message.height, message.width, 3)
    else:
        image = to_rgb(_tight(message))
    image.setflags(write=False)
    return Frame(msgs.stamp_ns(message.header.stamp), image, number, message.header.frame_id)


def depth_of(message: Image) -> np.ndarray:
    """The depth of a 16UC1 message, uint16 [H, W] in mm: a read-only view, no copy. Raises DataError for another encoding or size."""
    if message.encoding not in ("16UC1", "mono16"):
        raise DataError(f"depth of {message.header.frame_id}: encoding '{message.encoding}', expected 16UC1 (mm)")
    depth = _pixels(message, 2).view(np.dtype(np.uint16).newbyteorder(">" if message.is_bigendian else "<"))
    depth.setflags(write=False)
    return depth


def _check(frame: Frame) -> None:
    image = frame.image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"frame {frame.number} of {frame.frame_id}: {image.dtype} {image.shape}, expected uint8 [H, W, 3]")


def _image_msg(frame: Frame, pixels: np.ndarray, encoding: str) -> Image:
    height, width = pixels.shape[:2]
    payload = array("B")  # rclpy takes an array.array over as it is; bytes would be checked one by one
    payload.frombytes(memoryview(np.ascontiguousarray(pixels)).cast("B"))
    header = msgs.header_msg(frame.stamp_ns, frame.frame_id)
    return Image(header=header, height=height, width=width, encoding=encoding, step=len(payload) // height, data=payload)


def _pixels(message: Image, bytes_per_pixel: int) -> np.ndarray:
    """The payload without the padding at the rows' ends, uint8 [H, W * bytes_per_pixel]; a view."""
    height, width, step, wanted = message.height, message.width, message.step, message.width * bytes_per_pixel
    if not height or not width or len(message.data) != height * step:
        raise DataError(f"image of {message.header.frame_id}: {len(message.data)} bytes for {height} rows of {step}")
    if step < wanted:
        kind = f"{width} px of {message.encoding}"
        raise DataError(f"image of {message.header.frame_id}: rows of {step} bytes, expected at least {wanted} ({kind})")
    return np.frombuffer(message.data, np.uint8).reshape(height, step)[:, :wanted]


_BYTES_PER_PIXEL = {
    **dict.fromkeys(("mono8", "8UC1", "bayer_rggb8", "bayer_bggr8", "bayer_gbrg8", "bayer_grbg8"), 1),
    **dict.fromkeys(("mono16", "16UC1", "yuv422", "uyvy", "yuv422_yuy2", "yuyv"), 2),
    **dict.fromkeys(("bgr8", "8UC3"), 3),
    **dict.fromkeys(("bgra8", "rgba8"), 4),
}


def _tight(message: Image) -> Image:
    """The message with rows that end where their pixels end: rosbags-image takes no other."""
    size = _BYTES_PER_PIXEL.get(message.encoding)
    rows = _pixels(message, size or 1)
    if size is None or rows.shape[1] == message.step:
        return message
    payload = array("B", rows.tobytes())
    fields = {"header": message.header, "encoding": message.encoding, "is_bigendian": message.is_bigendian}
    return Image(height=message.height, width=message.width, step=rows.shape[1], data=payload, **fields)
