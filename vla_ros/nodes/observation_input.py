"""The policy node's ears: images, their metadata and proprioception go into the observation buffer."""

from __future__ import annotations

from collections import Counter
from functools import partial

from sensor_msgs.msg import Image

from vla_msgs.msg import FrameMetadata, Proprioception
from vla_ros.core.errors import DataError, VlaError
from vla_ros.core.observation import ObservationBuffer
from vla_ros.nodes import images, msgs, qos
from vla_ros.nodes.lifecycle import VlaNode
from vla_ros.nodes.rollout_statistics import FrameCount


class ObservationInput:
    """Subscribes for a policy.

    Attributes:
        buffer: where frames and states go.
        counts: camera -> counter of the rollout in progress; empty between rollouts.
        invalid: what could not be used, by topic.
    """

    def __init__(self, node: VlaNode, buffer: ObservationBuffer) -> None:
        self._node, self.buffer = node, buffer
        self.counts: dict[str, FrameCount] = {}
        self.invalid: Counter[str] = Counter()
        self._subscriptions = [node.create_subscription(Proprioception, "/proprioception", self._on_proprioception, qos.STATE)]
        for name in buffer.cameras:
            topic = f"/camera/{name}/color"
            self._subscriptions += [
                node.create_subscription(Image, f"{topic}/image_raw", partial(self._on_image, name), qos.IMAGE),
                node.create_subscription(FrameMetadata, f"{topic}/metadata", partial(self._on_metadata, name), qos.METADATA),
            ]

    def close(self) -> None:
        """Gives the subscriptions back to the node."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _on_image(self, camera: str, message: Image) -> None:
        if camera in self.counts:
            self.counts[camera].received(msgs.stamp_ns(message.header.stamp))
        try:
            self.buffer.add_frame(camera, images.frame_of(message), self._node.now_ns())
        except VlaError as error:
            self._refuse(f"camera {camera}", error)

    def _on_metadata(self, camera: str, message: FrameMetadata) -> None:
        if camera in self.counts:
            self.counts[camera].published(msgs.stamp_ns(message.header.stamp))

    def _on_proprioception(self, message: Proprioception) -> None:
        try:
            self.buffer.add_proprioception(msgs.proprioception_of(message))
        except DataError as error:
            self._refuse("proprioception", error)

    def _refuse(self, topic: str, error: VlaError) -> None:
        """What cannot be used does not come: the buffer will call it stale; here is why."""
        self.invalid[topic] += 1
        self._node.get_logger().error(f"{topic}: {error}", throttle_duration_sec=1.0)
