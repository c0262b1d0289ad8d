"""Camera, proprioception and simulation nodes on real topics, with fake devices behind them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from fake_devices import FakeCamera, FakeTable, Judged
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from realsense_file import COLOR_FX, DEPTH_M, LEFT, record
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState

from vla_msgs.msg import FrameMetadata, Proprioception, TaskOutcome
from vla_msgs.srv import MoveObject, ResetScene
from vla_ros.cli.running_rig import OwnDomain
from vla_ros.core import types
from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import DataError, DeviceError, StaleData
from vla_ros.core.observation import ObservationBuffer
from vla_ros.core.types import Frame, RobotState
from vla_ros.nodes import images, msgs, qos
from vla_ros.nodes.camera_node import CameraNode
from vla_ros.nodes.camera_stream import CameraStream
from vla_ros.nodes.lifecycle import ERROR, OK, VlaNode
from vla_ros.nodes.merged_state import MergedState
from vla_ros.nodes.observation_input import ObservationInput
from vla_ros.nodes.proprioception_node import ProprioceptionNode
from vla_ros.nodes.simulation_node import SimulationNode
from vla_ros.robots.kinematics import Kinematics

MS, S = 1_000_000, 1_000_000_000
FRANKA = load_embodiment("franka")
ARM = FRANKA.robots["arm"]
RIG = """
embodiment: franka
simulation: {scene: "fake_devices:FakeTable", address: 127.0.0.1, seed: 5}
robots:
  arm: {driver: nobody, options: {}}
cameras:
  front: {driver: "fake_devices:FakeCamera", options: {fps: 50}}
  wrist: {driver: "fake_devices:FakeCamera", options: {fps: 50}}
"""


class Graph:
    """A ROS context of one's own with a node under test and a listener."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.domain = folder, OwnDomain()
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=self.domain.id, signal_handler_options=SignalHandlerOptions.NO)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.ear = rclpy.create_node("ear", context=self.context)
        self.executor.add_node(self.ear)
        self.health: tuple[bytes, str] | None = None
        self.ear.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.DIAGNOSTICS)
        self.nodes: list[VlaNode] = []
        (folder / "rig.yaml").write_text(RIG)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.health = (message.status[0].level, message.status[0].message)

    def start(self, kind: type[VlaNode], name: str, *, namespace: str = "", **parameters: object) -> VlaNode:
        given = {"rig": str(self.folder / "rig.yaml"), "device": name, **parameters}
        overrides = [Parameter(key, value=value) for key, value in given.items()]
        node = kind(
            context=self.context,
            parameter_overrides=overrides,
            cli_args=["--ros-args", "-r", f"__node:={name}", "-r", f"__ns:=/{namespace}"],
        )
        self.nodes.append(node)
        self.executor.add_node(node)
        return node

    def hear(self, kind: type, topic: str, profile) -> list:
        heard: list = []
        self.ear.create_subscription(kind, topic, heard.append, profile)
        return heard

    def until(self, condition, what: str, timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, kind: type, name: str, request):
        client = self.ear.create_client(kind, name)
        self.until(client.service_is_ready, name)
        future = client.call_async(request)
        self.until(future.done, f"an answer of {name}")
        return future.result()

    def close(self) -> None:
        for node in self.nodes:
            node.trigger_shutdown()
            node.destroy_node()
        self.executor.shutdown()
        self.ear.destroy_node()
        rclpy.shutdown(context=self.context)
        self.domain.close()


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[Graph]:
    made = Graph(tmp_path)
    yield made
    FakeCamera.lost = FakeCamera.silent = FakeCamera.frozen = FakeTable.dead = False
    FakeTable.judged = Judged()
    made.close()


# Camera


def test_camera_node_publishes_all_three_with_one_stamp(graph: Graph):
    pictures = graph.hear(Image, "/front/color/image_raw", qos.IMAGE)
    infos = graph.hear(CameraInfo, "/front/color/camera_info", qos.IMAGE)
    metadata = graph.hear(FrameMetadata, "/front/color/metadata", qos.METADATA)
    graph.start(CameraNode, "front")
    graph.until(lambda: len(pictures) > 5 and len(metadata) > 5 and len(infos) > 2, "pictures")
    frame = images.frame_of(pictures[-1])
    assert frame.frame_id == "front_color_optical_frame" and frame.image.shape == (24, 32, 3)
    assert pictures[-1].encoding == "rgb8"
    numbers = [message.frame_number for message in metadata]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "reliable, and counted by the node"
    stamps = {msgs.stamp_ns(message.header.stamp) for message in metadata}
    assert {msgs.stamp_ns(message.header.stamp) for message in pictures[:-1]} <= stamps
    assert msgs.intrinsics_of(infos[0]).cx == 16.0
    graph.until(lambda: graph.health == (OK, "running"), "good health")


def test_camera_node_names_a_loss_and_comes_back(graph: Graph):
    pictures = graph.hear(Image, "/front/color/image_raw", qos.IMAGE)
    FakeCamera.lost = True
    graph.start(CameraNode, "front")
    graph.until(lambda: graph.health and "not on the bus" in graph.health[1], "the first failure")
    FakeCamera.lost = False
    graph.until(lambda: len(pictures) > 3, "pictures once it is plugged in")
    FakeCamera.lost = True
    graph.until(lambda: graph.health == (ERROR, "lost: camera front: unplugged"), "the loss")
    FakeCamera.lost = False
    seen = len(pictures)
    graph.until(lambda: len(pictures) > seen + 3 and graph.health[0] == OK, "pictures again")


@pytest.mark.parametrize(("fault", "words"), [("silent", "stalled: no frames come"), ("frozen", "frozen: identical pictures")])
def test_a_dead_camera_is_in_diagnostics_within_half_a_second(graph: Graph, fault: str, words: str):
    metadata = graph.hear(FrameMetadata, "/front/color/metadata", qos.METADATA)
    graph.start(CameraNode, "front")
    graph.until(lambda: len(metadata) > 5 and graph.health == (OK, "running"), "a healthy camera")
    died_s = time.monotonic()
    setattr(FakeCamera, fault, True)
    graph.until(lambda: graph.health == (ERROR, words), "the fault")
    assert time.monotonic() - died_s < 0.5
    setattr(FakeCamera, fault, False)
    graph.until(lambda: graph.health == (OK, "running"), "good health")


def test_a_dead_camera_ends_the_observation_within_half_a_second(graph: Graph):
    """What the policy node asks at every inference: the buffer, fed by its own subscriptions."""
    graph.start(CameraNode, "front", namespace="camera")
    listener = graph.start(ProprioceptionNode, "listener")  # any node of ours has what it takes
    buffer = ObservationBuffer(("front",), 0.3, 0.35)
    ears = ObservationInput(listener, buffer)

    def complaint() -> str:
        buffer.add_proprioception(types.Proprioception(time.time_ns(), ("a.position",), [0.0]))
        try:
            buffer.get(time.time_ns(), "")
        except StaleData as error:
            return error.reason
        return ""

    for fault, reason in (("silent", "stale"), ("frozen", "frozen")):
        graph.until(lambda: not complaint(), "observations")
        died_s = time.monotonic()
        setattr(FakeCamera, fault, True)
        graph.until(lambda reason=reason: complaint() == reason, reason)
        assert time.monotonic() - died_s < 0.5
        setattr(FakeCamera, fault, False)
    ears.close()


def test_depth_and_jpeg_are_published_as_realsense_ros_names_them(graph: Graph, monkeypatch: pytest.MonkeyPatch):
    file = record(graph.folder / "camera.db3", 30)
    rig = yaml.safe_load(RIG)
    rig["cameras"]["front"] = {"driver": "realsense", "options": {"file": str(file), "repeat": True, "fps": 30}}
    (graph.folder / "rig.yaml").write_text(yaml.safe_dump(rig))
    encoded = []
    compressed_msg = images.compressed_msg
    monkeypatch.setattr(images, "compressed_msg", lambda frame, quality: encoded.append(quality) or compressed_msg(frame, quality))
    colour = graph.hear(Image, "/front/color/image_raw", qos.IMAGE)
    depths = graph.hear(Image, "/front/aligned_depth_to_color/image_raw", qos.IMAGE)
    infos = graph.hear(CameraInfo, "/front/aligned_depth_to_color/camera_info", qos.IMAGE)
    graph.start(CameraNode, "front", jpeg_quality=75)
    graph.until(lambda: len(colour) > 3 and len(depths) > 3 and len(infos) > 3, "colour and depth")
    assert not encoded, "nobody listens to the JPEGs, so none is made"
    assert depths[-1].encoding == "16UC1" and depths[-1].header.frame_id == "front_color_optical_frame"
    assert np.median(images.depth_of(depths[-1])) == 1000 * DEPTH_M
    stamps = {msgs.stamp_ns(message.header.stamp) for message in colour}
    assert stamps & {msgs.stamp_ns(message.header.stamp) for message in depths}, "under the picture's own stamp"
    assert (infos[-1].width, infos[-1].k[0], infos[-1].distortion_model) == (640, COLOR_FX, "plumb_bob")
    jpegs = graph.hear(CompressedImage, "/front/color/image_raw/compressed", qos.IMAGE)
    graph.until(lambda: len(jpegs) > 2, "JPEGs")
    assert set(encoded) == {75} and images.frame_of(jpegs[-1]).image[400, 10].tolist() == pytest.approx(LEFT, abs=6)
    topics = [name for name, _ in graph.ear.get_topic_names_and_types()]
    graph.start(CameraNode, "wrist")
    graph.until(
        lambda: "/wrist/color/image_raw" in topics or topics.extend(n for n, _ in graph.ear.get_topic_names_and_types()), "the wrist"
    )
    assert not any(name.startswith("/wrist/aligned_depth") for name in topics), "a camera without depth has no such topic"


class Tape:
    """A camera that plays what the test puts in."""

    def __init__(self) -> None:
        self.next: Frame | None = None
        self.starts = self.stops = 0

    def start(self) -> None:
        self.starts += 1

    def read(self) -> Frame | None:
        frame, self.next = self.next, None
        return frame

    def stop(self) -> None:
        self.stops += 1


def picture(value: int, stamp_ns: int = 0) -> Frame:
    return Frame(stamp_ns, np.full((16, 16, 3), value, np.uint8), 77, "x")


def test_a_silent_camera_is_restarted_with_growing_pauses():
    tape = Tape()
    stream = CameraStream(tape, "front", silence_s=1.0, frozen_after_s=None, first_frame_s=2.0)
    stream.start(0)
    assert stream.step(int(1.9 * S)) is None and not stream.error, "the first frame may take longer"
    tape.next = picture(1)
    assert stream.step(2 * S).number == 0
    assert not stream.trouble(int(2.34 * S)) and stream.trouble(int(2.36 * S)) == "stalled: no frames come"
    assert stream.step(int(3.1 * S)) is None
    assert stream.error == "no frame for 1.1 s" and tape.stops == 1
    assert stream.step(int(3.5 * S)) is None and tape.starts == 1, "waits 0.5 s"
    assert stream.step(int(3.7 * S)) is None and tape.starts == 2
    assert stream.trouble(int(3.7 * S)) == "lost: no frame for 1.1 s", "still lost: nothing has come yet"
    tape.next = picture(2, 1)
    assert stream.step(int(3.8 * S)).number == 1, "frames are counted through"
    assert not stream.error and not stream.trouble(int(3.8 * S))
    assert stream.restarts == 1


def test_a_camera_that_cannot_be_restarted_is_tried_ever_less_often():
    class Broken(Tape):
        def start(self) -> None:
            super().start()
            if self.starts > 1:
                raise DeviceError("gone")

        def read(self) -> Frame:
            raise DeviceError("gone")

    tape = Broken()
    stream = CameraStream(tape, "front", 1.0, None)
    stream.start(0)
    times = []
    for now_ns in range(0, 30 * S, 10 * MS):
        before = tape.starts
        stream.step(now_ns)
        times += [now_ns * 1e-9] if tape.starts > before else []
    assert stream.error == "gone"
    assert np.diff([0.0, *times]) == pytest.approx([0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 5.0])


def test_frozen_means_identical_content_with_new_stamps():
    tape = Tape()
    stream = CameraStream(tape, "front", 10.0, frozen_after_s=0.5)
    stream.start(0)
    for i in range(20):
        tape.next = picture(i if i < 10 else 10, i * 100 * MS)
        stream.step(i * 100 * MS)
        assert (stream.frozen_s() > 0) == (i >= 15), i
        assert stream.trouble(i * 100 * MS) == ("frozen: identical pictures" if i >= 15 else "")
    assert stream.rate_hz(1900 * MS) == pytest.approx(10.0)
    assert stream.age_s(2000 * MS) == pytest.approx(0.1)


def test_a_frozen_camera_is_restarted_and_stays_frozen_until_its_picture_changes():
    tape = Tape()
    stream = CameraStream(tape, "front", 1.0, frozen_after_s=0.4)
    stream.start(0)
    told, restarts = [], []
    for now_ns in range(0, 20 * S, 50 * MS):
        before = tape.starts
        if stream.error == "" or tape.starts > 1:
            tape.next = picture(5, now_ns)
        stream.step(now_ns)
        told += [now_ns] if stream.trouble(now_ns) else []
        restarts += [now_ns * 1e-9] if tape.starts > before else []
    assert told[0] == 400 * MS and told[-1] == 20 * S - 50 * MS and len(told) == len(range(told[0], told[-1] + 1, 50 * MS)), "without a gap"
    assert np.diff(restarts) == pytest.approx([2.1, 3.1, 5.1, 6.1], abs=0.15), "with growing pauses"
    for now_ns in range(20 * S, 30 * S, 50 * MS):
        tape.next = picture(now_ns // (50 * MS) % 256, now_ns)
        stream.step(now_ns)
    assert not stream.trouble(30 * S - 50 * MS)


@pytest.mark.parametrize(
    ("stamp_of", "words"),
    [
        (lambda i: 0, "stamps stand still"),
        (lambda i: -i * 33 * MS, "stamps run backwards"),
        (lambda i: S + i * 33 * MS, "stamps lie in the future"),
    ],
)
def test_pictures_with_impossible_stamps_are_not_passed_on(stamp_of, words: str):
    tape = Tape()
    stream = CameraStream(tape, "front", 1.0, None)
    stream.start(0)
    start_ns = 1_795_000_000 * S
    for i in range(45):
        now_ns = i * 33 * MS
        tape.next = picture(i, start_ns + (now_ns if i < 3 else stamp_of(i - 2) + 2 * 33 * MS))
        frame = stream.step(now_ns, lambda now_ns=now_ns: start_ns + now_ns)
        assert (frame is not None) == (i < 3)
        if (now_ns - 66 * MS) > 0.35 * S and not stream.error:
            assert stream.trouble(now_ns) == f"stalled: {words}"
    assert stream.error.startswith("no frame for 1.0 s: stamps ") and stream.refused > 25
    stream.step(10 * S, lambda: start_ns + 10 * S)
    tape.next = picture(99, start_ns + 10 * S)
    assert stream.step(10 * S, lambda: start_ns + 10 * S) and not stream.trouble(10 * S), "one right stamp, and it lives"


def test_a_picture_captured_while_read_waited_for_it_is_not_from_the_future():
    """A renderer's `read` waits up to a frame period: 66 ms at 15 Hz, more than the clocks of two machines may differ."""
    clock_ns = 1_795_000_000 * S

    class Waiting(Tape):
        def read(self):
            nonlocal clock_ns
            clock_ns += 66 * MS
            return picture(clock_ns // MS % 256, clock_ns - MS)

    stream = CameraStream(Waiting(), "front", 1.0, None)
    stream.start(0)
    for i in range(30):
        assert stream.step(i * 66 * MS, lambda: clock_ns) is not None
    assert not stream.refused


def test_pictures_that_arrive_long_after_their_capture_are_told():
    tape = Tape()
    stream = CameraStream(tape, "front", 1.0, None)
    stream.start(0)
    for delay_s, told in [(0.05, ""), (0.7, "late: pictures arrive more than 0.35 s after their capture")]:
        now_ns = S + round(delay_s * 2 * S)
        tape.next = picture(1, now_ns - round(delay_s * S))
        assert stream.step(now_ns, lambda now_ns=now_ns: now_ns) and stream.trouble(now_ns) == told
        assert stream.delay_s == pytest.approx(delay_s)


def test_a_slow_camera_may_miss_two_frames():
    tape = Tape()
    stream = CameraStream(tape, "front", 10.0, None, period_s=0.5)
    stream.start(0)
    tape.next = picture(1)
    assert stream.step(0)
    assert not stream.trouble(int(1.5 * S)) and stream.trouble(int(1.51 * S))


def test_a_recording_that_has_ended_is_not_played_again():
    class Ended(Tape):
        def read(self) -> Frame | None:
            if frame := super().read():
                return frame
            raise DeviceError("camera front: a.db3 has ended; repeat: true plays it again", "ended")

    tape = Ended()
    stream = CameraStream(tape, "front", 1.0, None)
    stream.start(0)
    tape.next = picture(1)
    assert stream.step(0)
    for now_ns in range(0, 30 * S, S):
        assert stream.step(now_ns) is None
        assert stream.trouble(now_ns) == "lost: camera front: a.db3 has ended; repeat: true plays it again"
    assert tape.starts == 1


# Proprioception


def measured(stamp_ns: int, offset_rad: float = 0.0) -> RobotState:
    position = np.array(ARM.home_rad) + offset_rad
    return RobotState(stamp_ns, ARM.joints, position, np.full(7, 0.1), np.zeros(7), 0.05)


def test_two_arms_are_merged_at_the_slower_ones_pace():
    both = replace(FRANKA, robots={"left": ARM, "right": ARM})
    merged = MergedState(both, max_age_s=0.1)
    merged.add("left", measured(10))
    assert not merged.complete and merged.stale(20) == "right: no joint states have come yet"
    merged.add("left", measured(30))
    merged.add("right", measured(20, 0.2))
    assert merged.complete and not merged.stale(40)
    state = merged.take()
    assert state.stamp_ns == 20 and not merged.complete
    assert state.select(("left.gripper.width", "right.fr3_joint1.velocity")).tolist() == [0.05, 0.1]
    pose = state.select(tuple(f"right.tcp.{axis}" for axis in ("x", "y", "z", "rx", "ry", "rz")))
    assert pose == pytest.approx(Kinematics(ARM).tcp(measured(0, 0.2).position))
    names = merged.joints().joint_names
    assert len(names) == len(set(names)) + 7 == 16 and "left_gripper" in names
    merged.add("right", measured(15))
    assert not merged.complete, "an older measurement is no news"
    assert merged.stale(30 + 100 * MS + 1) == "left: stale joint states, older than 0.1 s" or "right" in merged.stale(30 + 100 * MS + 1)
    assert merged.ages_s(40) == pytest.approx({"left": 10e-9, "right": 20e-9})


def test_wrong_joints_are_refused():
    merged = MergedState(FRANKA, 0.1)
    with pytest.raises(DataError, match="joints a, expected fr3_joint1"):
        merged.add("arm", RobotState(0, ("a",), np.zeros(1), np.zeros(1), np.zeros(1)))
    with pytest.raises(DataError, match="no gripper width"):
        merged.add("arm", replace(measured(0), gripper_width_m=None))


def test_proprioception_node_adds_kinematics_and_stops_when_stale(graph: Graph):
    states = graph.hear(Proprioception, "/proprioception", qos.STATE)
    joints = graph.hear(JointState, "/joint_states", qos.STATE)
    publisher = graph.ear.create_publisher(JointState, "/arm/joint_states", qos.STATE)
    graph.start(ProprioceptionNode, "proprioception")
    graph.until(lambda: graph.health == (ERROR, "arm: no joint states have come yet"), "the diagnostic")
    talk = graph.ear.create_timer(0.01, lambda: publisher.publish(msgs.joint_state_msg(measured(time.time_ns()))))
    graph.until(lambda: len(states) > 5 and len(joints) > 5 and graph.health == (OK, "running"), "states")
    state = msgs.proprioception_of(states[-1])
    assert len(state.channels) == 21 and states[-1].embodiment == "franka"
    assert state.select(("tcp.x", "tcp.y", "tcp.z")) == pytest.approx(Kinematics(ARM).tcp(np.array(ARM.home_rad))[:3])
    assert list(states[-1].robots) == ["arm"] and 0 <= states[-1].age_s[0] < 0.1
    assert list(joints[-1].name) == [*ARM.joints, "gripper"]
    talk.cancel()
    graph.until(lambda: graph.health == (ERROR, "arm: stale joint states, older than 0.1 s"), "the diagnostic")
    before = len(states)
    publisher.publish(msgs.joint_state_msg(measured(time.time_ns() - S)))
    publisher.publish(JointState(name=["a"], position=[float("nan")]))
    talk.reset()
    graph.until(lambda: len(states) > before + 3, "states again")
    assert all((time.time_ns() - msgs.stamp_ns(message.header.stamp)) < S for message in states[before:])


# Simulation


def test_simulation_node_serves_and_judges(graph: Graph):
    outcomes = graph.hear(TaskOutcome, "/task_outcome", qos.STATE)
    graph.start(SimulationNode, "simulation")
    graph.until(lambda: outcomes, "an outcome")
    assert (outcomes[-1].outcome, outcomes[-1].task) == (TaskOutcome.RUNNING, "task 5")
    reply = graph.call(ResetScene, "/simulation/reset", ResetScene.Request(seed=9, task=""))
    assert (reply.success, reply.task) == (True, "task 9")
    reply = graph.call(ResetScene, "/simulation/reset", ResetScene.Request(seed=9, task="fly"))
    assert (reply.success, reply.message, reply.task) == (False, "'fly' is not a task", "task 9")
    assert graph.call(MoveObject, "/simulation/move_object", MoveObject.Request(object="red block", dx_m=0.06)).success
    assert (outcomes[-1].steps_done, outcomes[-1].steps) == (0, 3)
    FakeTable.judged = Judged(success=True, wrong_object=True, detail="done", steps_done=3)
    graph.until(lambda: outcomes[-1].outcome == TaskOutcome.SUCCESS, "success")
    assert (outcomes[-1].wrong_object, outcomes[-1].detail, outcomes[-1].steps_done) == (True, "done", 3)


def test_a_dead_simulation_ends_the_node(graph: Graph):
    outcomes = graph.hear(TaskOutcome, "/task_outcome", qos.STATE)
    graph.start(SimulationNode, "simulation")
    graph.until(lambda: outcomes, "an outcome")
    FakeTable.dead = True
    with pytest.raises(DeviceError, match="the simulation died"):
        graph.until(lambda: False, "the end")
