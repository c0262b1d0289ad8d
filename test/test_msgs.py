"""Messages <-> core types: nothing is lost on the way, and what is wrong is refused by name."""

from array import array
from dataclasses import replace

import numpy as np
import pytest
from sensor_msgs.msg import Image, JointState

from vla_msgs import msg as vla
from vla_ros.core.errors import DataError
from vla_ros.core.types import Action, ActionChunk, Frame, Intrinsics, Proprioception, RobotState, SkillPlan
from vla_ros.nodes import images, msgs

STAMP_NS = 1_795_237_186_311_713_627
LENS = Intrinsics(640, 480, 610.5, 611.5, 320.25, 241.75, (0.1, -0.2, 0.001, 0.002, 0.05))
RNG = np.random.default_rng(4)


def frame(height: int = 5, width: int = 7, lens: Intrinsics | None = None) -> Frame:
    return Frame(STAMP_NS, RNG.integers(0, 256, (height, width, 3), dtype=np.uint8), 9, "front_color_optical_frame", lens)


def test_stamps_survive_to_the_nanosecond():
    assert msgs.stamp_ns(msgs.stamp_msg(STAMP_NS)) == STAMP_NS


def test_rgb8_is_a_view_of_the_payload():
    sent = frame()
    message = images.image_msg(sent)
    received = images.frame_of(message, sent.number)
    assert np.array_equal(received.image, sent.image)
    assert (received.stamp_ns, received.number, received.frame_id) == (sent.stamp_ns, 9, sent.frame_id)
    message.data[0] = (int(sent.image[0, 0, 0]) + 1) % 256
    assert received.image[0, 0, 0] == message.data[0], "the image was copied"
    assert not received.image.flags.writeable


def test_padded_rows_are_cut():
    image = frame(3, 4).image
    rows = np.zeros((3, 16), np.uint8)
    rows[:, :12] = image.reshape(3, 12)
    message = Image(height=3, width=4, encoding="rgb8", step=16, data=array("B", rows.tobytes()))
    assert np.array_equal(images.frame_of(message).image, image)


@pytest.mark.parametrize(("encoding", "to_rgb"), [("bgr8", lambda i: i[..., ::-1]), ("mono8", lambda i: np.repeat(i[..., :1], 3, axis=2))])
def test_other_encodings_become_rgb(encoding: str, to_rgb):
    pixels = frame(4, 6).image
    raw = pixels if encoding == "bgr8" else np.ascontiguousarray(pixels[..., 0])
    message = Image(height=4, width=6, encoding=encoding, step=raw.nbytes // 4, data=array("B", raw.tobytes()))
    assert np.array_equal(images.frame_of(message).image, to_rgb(pixels))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": array("B", bytes(10))}, "10 bytes"),
        ({"step": 12, "data": array("B", bytes(5 * 12))}, "rows of 12 bytes"),
        ({"height": 0, "data": array("B")}, "0 bytes"),
        ({"encoding": "kodachrome"}, "kodachrome"),
    ],
)
def test_images_that_are_refused(change: dict, words: str):
    message = images.image_msg(frame())
    for key, value in change.items():
        setattr(message, key, value)
    with pytest.raises(DataError, match=words):
        images.frame_of(message)


def test_only_uint8_rgb_is_sent():
    with pytest.raises(DataError, match="uint8"):
        images.image_msg(Frame(0, np.zeros((4, 4), np.uint8), 0, "f"))


def test_camera_info_keeps_the_lens():
    message = msgs.camera_info_msg(frame(lens=LENS))
    assert msgs.intrinsics_of(message) == LENS
    assert (message.header.frame_id, msgs.stamp_ns(message.header.stamp)) == ("front_color_optical_frame", STAMP_NS)
    assert message.p[:3] == pytest.approx([LENS.fx, 0.0, LENS.cx])
    with pytest.raises(DataError, match="no intrinsics"):
        msgs.camera_info_msg(frame())
    message.distortion_model = "fisheye62"
    with pytest.raises(DataError, match="'fisheye62', expected one of plumb_bob, rational_polynomial, equidistant"):
        msgs.intrinsics_of(message)
    wide = replace(LENS, distortion=tuple(range(8)), distortion_model="rational_polynomial")
    assert msgs.intrinsics_of(msgs.camera_info_msg(frame(lens=wide))) == wide


@pytest.mark.parametrize("width_m", [None, 0.04])
def test_joint_states_round_trip(width_m: float | None):
    state = RobotState(STAMP_NS, ("a", "b"), np.array([0.1, -0.2]), np.array([1.0, 2.0]), np.array([3.0, 4.0]), width_m)
    message = msgs.joint_state_msg(state)
    assert list(message.name) == (["a", "b"] if width_m is None else ["a", "b", "gripper"])
    back = msgs.robot_state_of(message)
    assert (back.stamp_ns, back.joint_names, back.gripper_width_m) == (STAMP_NS, ("a", "b"), width_m)
    for key in ("position", "velocity", "effort"):
        assert np.array_equal(getattr(back, key), getattr(state, key))


def test_joint_states_of_simple_drivers_have_no_velocity():
    back = msgs.robot_state_of(JointState(name=["a", "gripper"], position=[0.5, 0.03]))
    assert back.velocity == pytest.approx([0.0]) and back.gripper_width_m == 0.03


@pytest.mark.parametrize(
    ("position", "words"), [([0.1], "1 values of position for 2"), ([0.1, float("nan")], "position of b is not finite")]
)
def test_joint_states_that_are_refused(position: list[float], words: str):
    with pytest.raises(DataError, match=words):
        msgs.robot_state_of(JointState(name=["a", "b"], position=position))


def chunk() -> ActionChunk:
    return ActionChunk(STAMP_NS, 0.1, ("tcp.x", "gripper.closed"), RNG.normal(size=(3, 2)), 7, "p", "franka", 0.012)


def test_chunks_round_trip():
    sent = chunk()
    message = msgs.chunk_msg(sent)
    assert message.horizon == 3 and message.header.frame_id == "base_link"
    back = msgs.chunk_of(message)
    assert np.array_equal(back.data, sent.data)
    for key in ("stamp_ns", "dt_s", "channels", "sequence", "policy", "embodiment", "inference_s"):
        assert getattr(back, key) == getattr(sent, key), key


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"horizon": 4}, "6 values, expected 4 x 2"),
        ({"dt_s": 0.0}, "dt_s"),
        ({"channels": ["tcp.x", "tcp.x"]}, "named twice"),
        ({"data": array("d", [1.0, 2.0, 3.0, 4.0, 5.0, float("inf")])}, "NaN or infinite"),
        ({"horizon": 0, "data": array("d")}, "0 rows"),
    ],
)
def test_chunks_that_are_refused(change: dict, words: str):
    message = msgs.chunk_msg(chunk())
    for key, value in change.items():
        setattr(message, key, value)
    with pytest.raises(DataError, match=words):
        msgs.chunk_of(message)


JOINTS = ("fr3_joint1.position", "fr3_joint2.position", "gripper.width")


def test_commands_round_trip():
    action = Action(JOINTS, np.array([0.1, 0.2, 0.05]), STAMP_NS, "policy", 3)
    message = msgs.command_msg(action)
    assert message.mode == vla.RobotCommand.MODE_JOINT_POSITION
    back = msgs.action_of(message)
    assert np.array_equal(back.data, action.data)
    assert (back.channels, back.stamp_ns, back.source, back.sequence) == (JOINTS, STAMP_NS, "policy", 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mode": 9}, "mode 9; valid: 0 .hold."),
        ({"mode": vla.RobotCommand.MODE_HOLD}, "hold has no targets"),
        ({"mode": vla.RobotCommand.MODE_TCP_POSE}, "mode tcp_pose, but channels for joint_position"),
        ({"data": array("d", [1.0])}, "3 channel names for 1"),
        ({"data": array("d", [1.0, 2.0, float("nan")])}, "NaN"),
        ({"channels": ["x", "y", "z"]}, "no meaning"),
    ],
)
def test_commands_that_are_refused(change: dict, words: str):
    message = msgs.command_msg(Action(JOINTS, np.zeros(3)))
    for key, value in change.items():
        setattr(message, key, value)
    with pytest.raises(DataError, match=words):
        msgs.action_of(message)


def test_a_hold_says_why():
    message = msgs.hold_msg(STAMP_NS, "policy", 5, "no_live_action")
    assert (message.mode, message.source, message.sequence, message.reason) == (0, "policy", 5, "no_live_action")


def test_proprioception_round_trip():
    sent = Proprioception(STAMP_NS, ("tcp.x", "gripper.width"), np.array([0.5, 0.08]))
    message = msgs.proprioception_msg(sent, "franka", {"arm": 0.004})
    assert (message.embodiment, list(message.robots), list(message.age_s)) == ("franka", ["arm"], [0.004])
    back = msgs.proprioception_of(message)
    assert (back.stamp_ns, back.channels) == (STAMP_NS, sent.channels) and np.array_equal(back.data, sent.data)
    message.data = array("d", [0.5])
    with pytest.raises(DataError, match="2 channel names for 1"):
        msgs.proprioception_of(message)


def test_plans_round_trip():
    plan = SkillPlan(STAMP_NS, ("reach", "grasp"), 1, "grasp", "now I grasp")
    assert msgs.plan_of(msgs.plan_msg(plan)) == plan
    assert msgs.plan_of(msgs.plan_msg(None)) is None
    message = msgs.plan_msg(plan)
    message.step = 2
    with pytest.raises(DataError, match="step 2 of a chain of 2"):
        msgs.plan_of(message)


def test_robot_reports():
    message = vla.RobotStatus(stamp=msgs.stamp_msg(STAMP_NS), state=3, source="policy", reason="stop", detail="~/stop was called")
    message.rejected_names, message.rejected_counts = ["limits"], array("Q", [4])
    report = msgs.report_of(message)
    assert report == msgs.RobotReport(STAMP_NS, "stopped", "policy", "stop", "~/stop was called", {"limits": 4})
    message.rejected_names = []
    with pytest.raises(DataError, match="0 names"):
        msgs.report_of(message)
    with pytest.raises(DataError, match="state 17"):
        msgs.report_of(vla.RobotStatus(state=17))
