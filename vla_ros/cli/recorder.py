"""Listens to a running rig and keeps what a report needs. Must cost little: the rig runs on the same two cores."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import cv2
import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import Image

from vla_msgs import msg as vla
from vla_ros.cli.record import RolloutRecord, StatusSample
from vla_ros.cli.video import HEIGHT, WIDTH
from vla_ros.core.errors import VlaError
from vla_ros.core.rig import Rig
from vla_ros.nodes import images, msgs, qos

_PICTURE_NS = int(1e9 / 16)  # pictures of a faster camera are thinned out to 15 Hz
_JPEG_QUALITY = 92


class Recorder:
    """Subscribes on `node`; between `begin` and `end` what arrives goes into `record`.

    `tcp_m` is the newest measured TCP position [3] in base_link, `wrong_object` whether an object that the task does not name was moved,
    `steps` how many steps of the task are done, of how many.
    """

    def __init__(self, node: Node, rig: Rig, everything: bool) -> None:
        self.record = RolloutRecord()
        self.wrong_object = False
        self.task_detail = ""
        self.steps = 0, 0
        self.tcp_m: np.ndarray | None = None
        self._recording = False
        self._clock = node.get_clock()
        self._robot_states: dict[str, int] = {}
        self._robots, self._cameras = set(rig.robots), tuple(rig.cameras)
        self._several, self._embodiment = len(rig.robots) > 1, rig.embodiment.name
        cv2.setNumThreads(1)
        for name in rig.robots:
            node.create_subscription(vla.RobotStatus, f"/{name}/status", partial(self._on_robot_status, name), qos.STATE)
        if rig.simulation:
            node.create_subscription(vla.TaskOutcome, "/task_outcome", self._on_task_outcome, qos.STATE)
        node.create_subscription(vla.Proprioception, "/proprioception", self._on_proprioception, qos.STATE)
        if everything:
            self._subscribe_to_everything(node, rig)

    def begin(self, now_ns: int) -> None:
        """Starts a new record."""
        self.record = RolloutRecord({name: [] for name in self._cameras}, start_ns=now_ns, end_ns=now_ns, embodiment=self._embodiment)
        self._recording = True

    def started(self, start_ns: int) -> None:
        """The policy drives since `start_ns`: from here on time counts."""
        self.record.start_ns = start_ns

    def end(self, end_ns: int) -> None:
        """Ends the record."""
        self.record.end_ns = max(end_ns, self.record.start_ns)
        self._recording = False

    def forget_outcome(self) -> None:
        """After a reset of the scene: what was judged before does not count."""
        self.wrong_object, self.task_detail, self.steps = False, "", (0, 0)

    def heard_all_robots(self) -> bool:
        """Whether every robot has told its state."""
        return set(self._robot_states) == self._robots

    def robots_to_recover(self) -> list[str]:
        """Returns the robots that hold, or have lost their link, until they are recovered."""
        lost = (vla.RobotStatus.STATE_STOPPED, vla.RobotStatus.STATE_DISCONNECTED)
        return [name for name, state in self._robot_states.items() if state in lost]

    def _subscribe_to_everything(self, node: Node, rig: Rig) -> None:
        node.create_subscription(vla.ActionChunk, "/policy/chunk", self._on_chunk, qos.CHUNK)
        node.create_subscription(vla.RolloutStatus, "/policy/status", self._on_status, qos.STATE)
        for name in rig.robots:
            node.create_subscription(vla.RobotCommand, f"/{name}/executed", partial(self._on_executed, name), qos.EXECUTED)
        for name in rig.cameras:
            node.create_subscription(Image, f"/camera/{name}/color/image_raw", partial(self._on_image, name), qos.IMAGE)

    def _on_robot_status(self, robot: str, message: vla.RobotStatus) -> None:
        self._robot_states[robot] = message.state

    def _on_task_outcome(self, message: vla.TaskOutcome) -> None:
        self.task_detail, self.steps = message.detail, (message.steps_done, message.steps)
        self.wrong_object |= self._recording and message.wrong_object

    def _on_proprioception(self, message: vla.Proprioception) -> None:
        state = msgs.proprioception_of(message)
        if "tcp.x" in state.channels:
            self.tcp_m = state.select(("tcp.x", "tcp.y", "tcp.z"))
        if self._recording:
            self.record.proprioception.append(state)

    def _on_chunk(self, message: vla.ActionChunk) -> None:
        if self._recording:
            self.record.chunks.append(msgs.chunk_of(message))
            self.record.chunk_arrival_ns.append(self._clock.now().nanoseconds)

    def _on_status(self, message: vla.RolloutStatus) -> None:
        if self._recording and message.chunks and message.state != vla.RolloutStatus.STATE_IDLE:
            figures = (message.chunks, message.inference_ms, message.observation_age_ms, message.boundary_jump_rad, message.boundary_jump_m)
            self.record.status.append(StatusSample(msgs.stamp_ns(message.stamp), *figures, message.hold_reason))

    def _on_executed(self, robot: str, message: vla.RobotCommand) -> None:
        if self._recording and message.mode != vla.RobotCommand.MODE_HOLD:
            action = msgs.action_of(message)
            names = tuple(f"{robot}.{name}" if self._several else name for name in action.channels)
            self.record.executed.append(replace(action, channels=names))

    def _on_image(self, camera: str, message: Image) -> None:
        stamp_ns = msgs.stamp_ns(message.header.stamp)
        pictures = self.record.frames.setdefault(camera, [])
        if not self._recording or (pictures and stamp_ns - pictures[-1][0] < _PICTURE_NS):
            return
        try:
            image = images.frame_of(message).image
        except VlaError:  # the policy node's log says what is wrong with it; the report goes without
            return
        small = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        ok, jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
        if ok:
            pictures.append((stamp_ns, jpeg.tobytes()))
