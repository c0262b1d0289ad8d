"""A rig without devices: a robot, two cameras and proprioception on real topics, for tests of the policy node."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from array import array
from pathlib import Path

import numpy as np
import rclpy
import yaml
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from vla_msgs.action import ExecuteTask
from vla_msgs.msg import ActionChunk, FrameMetadata, Proprioception, RobotCommand, RobotStatus, SkillPlan, TaskOutcome
from vla_msgs.srv import SetSource
from vla_ros.core.channels import TCP_POSE
from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.types import Frame, Observation
from vla_ros.core.types import Proprioception as State
from vla_ros.nodes import msgs, qos
from vla_ros.nodes.spinning import Spinning

CAMERAS = ("front", "wrist")
RIG = """
embodiment: franka
robots:
  arm: {driver: nobody, options: {}}
cameras:
  front: {driver: nobody, options: {}}
  wrist: {driver: nobody, options: {}}
policy: {checkpoint: dummy_policies:Still, inference_hz: 10, executor: {name: first}}
"""


def wait_for(condition, what: str, timeout_s: float = 20.0) -> None:
    """Polls until `condition()`; fails with `what` after the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.005)


class FakeRig:
    """Publishes what a rig publishes until told otherwise; `commands` is what the robot was told. Runs in a thread of its own."""

    def __init__(self, domain: int, width: int = 64, height: int = 48, fps: float = 30.0) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("fake_rig", context=self.context)
        self.silent: set[str] = set()
        self.state, self.source, self.reason, self.detail = RobotStatus.STATE_HOLD, "none", "", ""
        self.rejected: dict[str, int] = {}
        self.commands: list[RobotCommand] = []
        self.chunks: list[ActionChunk] = []
        self.sources: list[str] = []
        self._size = (width, height)
        self._pictures = {name: array("B", np.zeros(width * height * 3, np.uint8).tobytes()) for name in CAMERAS}
        self._number = 0
        self._stamps = dict.fromkeys(CAMERAS, 0)
        self.stamps_ns: list[int] = []  # of all pictures
        robot = load_embodiment("franka").robots["arm"]
        names = [f"{joint}.{what}" for what in ("position", "velocity") for joint in robot.joints]
        self._channels = [*names, *TCP_POSE, "gripper.width"]
        self._values = [*robot.home_rad, *[0.0] * 7, 0.5, 0.0, 0.3, np.pi, 0.0, 0.0, 0.08]
        make = self.node.create_publisher
        self._state = make(Proprioception, "/proprioception", qos.STATE)
        self._images = {name: make(Image, f"/camera/{name}/color/image_raw", qos.IMAGE) for name in CAMERAS}
        self._metadata = {name: make(FrameMetadata, f"/camera/{name}/color/metadata", qos.METADATA) for name in CAMERAS}
        self._status = make(RobotStatus, "/arm/status", qos.STATUS)
        self._outcome = make(TaskOutcome, "/task_outcome", qos.STATE)
        self.node.create_subscription(RobotCommand, "/arm/command", self._on_command, qos.COMMAND)
        self.node.create_subscription(ActionChunk, "/policy/chunk", self.chunks.append, qos.CHUNK)
        self.plans: list[SkillPlan] = []
        self.node.create_subscription(SkillPlan, "/policy/plan", self.plans.append, qos.CHUNK)
        self.node.create_service(SetSource, "/arm/set_source", self._on_source)
        for period_s, callback in ((0.01, self._publish_state), (1 / fps, self._publish_images), (0.1, self.publish_status)):
            self.node.create_timer(period_s, callback)
        self.client = ActionClient(self.node, ExecuteTask, "/policy/execute_task")
        self.feedback: list[ExecuteTask.Feedback] = []
        executor = SingleThreadedExecutor(context=self.context)
        executor.add_node(self.node)
        self._spinning = Spinning(executor, "ear")

    def close(self) -> None:
        self._spinning.close()
        self._spinning.check()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def send(self, instruction: str = "do it", time_limit_s: float = 10.0, executor: str = "", **goal: object):
        """Sends a goal and returns its handle."""
        wait_for(self.client.server_is_ready, "the action server")
        time.sleep(0.3)  # the server must have found our side too, or its answer is lost; DDS tells of the own side only
        wanted = ExecuteTask.Goal(instruction=instruction, time_limit_s=time_limit_s, executor=executor, **goal)
        sent = self.client.send_goal_async(wanted, feedback_callback=lambda message: self.feedback.append(message.feedback))
        wait_for(sent.done, "an answer to the goal")
        return sent.result()

    def result(self, handle, timeout_s: float = 30.0) -> tuple[int, ExecuteTask.Result]:
        """Waits for the result: (status, result)."""
        asked = handle.get_result_async()
        wait_for(asked.done, "a result", timeout_s)
        return asked.result().status, asked.result().result

    def age_s(self, camera: str) -> float:
        """Returns how old the newest frame of `camera` is, s."""
        return (time.time_ns() - self._stamps[camera]) * 1e-9

    def observation(self, stamp_ns: int, instruction: str = "do it") -> Observation:
        """What was to be seen at one of `stamps_ns`."""
        picture = np.zeros((self._size[1], self._size[0], 3), np.uint8)
        picture.flat[0] = (self.stamps_ns.index(stamp_ns) + 1) % 256
        frames = {name: Frame(stamp_ns, picture, 0, name) for name in CAMERAS}
        return Observation(stamp_ns, frames, State(stamp_ns, tuple(self._channels), np.array(self._values)), instruction)

    def judge(self, outcome: int, detail: str = "") -> None:
        self._outcome.publish(TaskOutcome(stamp=msgs.stamp_msg(time.time_ns()), task="it", outcome=outcome, detail=detail))

    def publish_status(self) -> None:
        if "status" in self.silent:
            return
        status = RobotStatus(
            stamp=msgs.stamp_msg(time.time_ns()), state=self.state, source=self.source, reason=self.reason, detail=self.detail
        )
        status.rejected_names, status.rejected_counts = list(self.rejected), list(self.rejected.values())
        self._status.publish(status)

    def _publish_state(self) -> None:
        if "proprioception" not in self.silent:
            header = msgs.header_msg(time.time_ns(), "base_link")
            self._state.publish(
                Proprioception(header=header, embodiment="franka", channels=self._channels, data=self._values, robots=["arm"], age_s=[0.0])
            )

    def _publish_images(self) -> None:
        stamp_ns, self._number = time.time_ns(), self._number + 1
        self.stamps_ns.append(stamp_ns)
        width, height = self._size
        for name, pixels in self._pictures.items():
            if name in self.silent:
                continue
            pixels[0] = self._number % 256
            self._stamps[name] = stamp_ns
            header = msgs.header_msg(stamp_ns, f"{name}_color_optical_frame")
            self._images[name].publish(Image(header=header, width=width, height=height, encoding="rgb8", step=3 * width, data=pixels))
            self._metadata[name].publish(FrameMetadata(header=header, frame_number=self._number))

    def _on_command(self, message: RobotCommand) -> None:
        self.commands.append(message)
        if self.source == message.source and self.state in (RobotStatus.STATE_HOLD, RobotStatus.STATE_FOLLOWING):
            holds = message.mode == RobotCommand.MODE_HOLD
            self.state = RobotStatus.STATE_HOLD if holds else RobotStatus.STATE_FOLLOWING
            self.reason = message.reason

    def _on_source(self, request: SetSource.Request, response: SetSource.Response) -> SetSource.Response:
        response.previous, self.source, response.success = self.source, request.source, True
        self.sources.append(request.source)
        return response


class PolicyProcess:
    """The policy node as a process of its own, with `folder` on Python's path."""

    def __init__(self, folder: Path, domain: int, checkpoint: str, options: dict[str, object] | None = None, **parameters: object) -> None:
        rig = folder / "fake.yaml"
        content = yaml.safe_load(RIG)
        content["policy"] |= {"checkpoint": checkpoint, "options": options or {}}
        rig.write_text(yaml.safe_dump(content))
        command = [
            sys.executable,
            "-m",
            "vla_ros.nodes.policy_node",
            "--ros-args",
            "-r",
            "__node:=policy",
            "-p",
            f"rig:={rig}",
            "-p",
            f"checkpoint:={checkpoint}",
        ]
        for name, value in parameters.items():
            command += ["-p", f"{name}:={value}"]
        here = Path(__file__).resolve().parent
        paths = os.pathsep.join([str(here), str(here.parent), str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.log = folder / "policy.log"
        with self.log.open("w") as log:
            environment = os.environ | {"PYTHONPATH": paths, "ROS_DOMAIN_ID": str(domain)}
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
