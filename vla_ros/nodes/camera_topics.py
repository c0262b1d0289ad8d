"""The topics of one camera, named as realsense-ros names them."""

from __future__ import annotations

from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from vla_msgs.msg import FrameMetadata
from vla_ros.core.types import Frame
from vla_ros.nodes import images, msgs, qos

_DEPTH = "~/aligned_depth_to_color"


class CameraTopics:
    """Publishes frames: `~/color/{image_raw,camera_info,metadata}`, and `~/aligned_depth_to_color/*` once a frame carries depth.

    `~/color/image_raw/compressed` is encoded only while somebody listens.

    Args:
        node: that publishes.
        jpeg_quality: 1 to 100.
    """

    def __init__(self, node: Node, jpeg_quality: int) -> None:
        self._node, self._jpeg_quality = node, jpeg_quality
        self._image = self._publisher(Image, "~/color/image_raw")
        self._info = self._publisher(CameraInfo, "~/color/camera_info")
        self._compressed = self._publisher(CompressedImage, "~/color/image_raw/compressed")
        self._metadata = node.create_publisher(FrameMetadata, "~/color/metadata", qos.METADATA)
        self._depth: tuple[Publisher, Publisher] | None = None

    def publish(self, frame: Frame) -> None:
        """All messages of one frame, under its stamp."""
        info = msgs.camera_info_msg(frame) if frame.intrinsics is not None else None
        self._image.publish(images.image_msg(frame))
        if info is not None:
            self._info.publish(info)
        if frame.depth is not None:
            # most cameras have no depth, and a topic on which nothing comes misleads
            self._depth = self._depth or (
                self._publisher(Image, f"{_DEPTH}/image_raw"),
                self._publisher(CameraInfo, f"{_DEPTH}/camera_info"),
            )
            self._depth[0].publish(images.depth_msg(frame))
            if info is not None:
                self._depth[1].publish(info)
        if self._compressed.get_subscription_count():
            self._compressed.publish(images.compressed_msg(frame, self._jpeg_quality))
        self._metadata.publish(msgs.metadata_msg(frame))

    def _publisher(self, kind: type, topic: str) -> Publisher:
        return self._node.create_publisher(kind, topic, qos.IMAGE, qos_overriding_options=qos.overridable())
