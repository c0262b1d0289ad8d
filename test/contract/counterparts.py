"""What each driver of ROBOTS is tested against: its device as a box, and what can go wrong with it. One entry a driver."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from box import Box

from vla_msgs.msg import RobotStatus
from vla_ros.robots import ROBOTS

HERE = Path(__file__).parent
STOPPED, DISCONNECTED, HOLD = RobotStatus.STATE_STOPPED, RobotStatus.STATE_DISCONNECTED, RobotStatus.STATE_HOLD
KILL = "kill"


@dataclass(frozen=True)
class Fault:
    """`inject` is what the device is told ("kill" ends its process), `reason` and `state` are what the robot node then says.

    `by_itself`: the node comes back without being asked, as it does after a lost link; else `~/recover` brings it back.
    """

    inject: str
    reason: str
    state: int = STOPPED
    by_itself: bool = False


@dataclass(frozen=True)
class Counterpart:
    """A driver's device. In `options` and `nobody`, {address} is a loopback address and {folder} a folder of the test's own.

    Args:
        embodiment, arm: whose arm it is.
        options: the driver's, as in a rig.
        nobody: those that differ where no device answers; the first one's value stands in the error.
        device: arguments of the box's program; a name with a ":" in it is a firmware.
        faults: what goes wrong, in words -> how.
    """

    embodiment: str
    arm: str
    options: Mapping[str, object]
    nobody: Mapping[str, object]
    device: str
    faults: Mapping[str, Fault] = field(default_factory=dict)

    def filled(self, options: Mapping[str, object], address: str, folder: Path) -> dict[str, object]:
        """The options for this test."""
        places = {"{address}": address, "{folder}": str(folder)}
        filled = dict(options)
        for place, value in places.items():
            filled = {key: text.replace(place, value) if isinstance(text, str) else text for key, text in filled.items()}
        return filled

    def box(self, options: Mapping[str, object], environment: Mapping[str, str]) -> Box:
        """The device, not yet started."""
        program = [str(HERE / "box.py"), self.device] if ":" in self.device else [str(HERE / self.device)]
        return Box([sys.executable, *program, self.embodiment, self.arm, json.dumps(options)], environment)


LOST = {"reason": "link_lost", "state": DISCONNECTED}
COUNTERPARTS: dict[str, Counterpart] = {
    "franka": Counterpart(
        embodiment="franka",
        arm="arm",
        options={"address": "{address}", "connect_timeout_s": 10.0, "stale_after_s": 0.4},
        nobody={"address": "127.0.0.250", "connect_timeout_s": 1.0},
        device="franka_device.py",
        faults={
            "link cut": Fault("link_cut", **LOST),
            "device silent": Fault("silent", **LOST),
            "state packets are garbage": Fault("garbage", **LOST),
            "NaN in the state": Fault("nan_state", **LOST),
            "link slow (0.5 s)": Fault("slow", **LOST),
            "packets lost (60 %)": Fault("packet_loss", "communication"),
            "collision reflex": Fault("reflex", "reflex"),
            "communication violation": Fault("communication_violation", "communication"),
            "joint limit violation": Fault("joint_limit", "joint_limit"),
            "user stop pressed": Fault("user_stop", "user_stop"),
            "emergency stop pressed": Fault("estop", "estop"),
            "hand cut off": Fault("hand_cut", "gripper"),
            "control box restarted": Fault(KILL, **LOST, by_itself=True),
        },
    ),
    "kinova": Counterpart(
        embodiment="kinova",
        arm="arm",
        options={"address": "{address}", "stale_after_s": 0.4, "motion_timeout_s": 0.15},
        nobody={"address": "127.0.0.250"},
        device="vla_ros.sim.kortex_box:KortexBox",
        faults={
            "link cut": Fault("link_cut", **LOST),
            "device silent": Fault("silent", **LOST),
            "garbage frames": Fault("garbage", **LOST),
            "wrong frame length": Fault("bad_length", **LOST),
            "truncated frames": Fault("truncated", **LOST),
            "frozen feedback": Fault("frozen", **LOST),
            "link slow": Fault("slow", **LOST),
            "session lost": Fault("session_lost", **LOST, by_itself=True),
            "commands answered with an error": Fault("error_frame", "fault"),
            "actuator fault": Fault("arm_fault", "fault"),
            "emergency stop pressed": Fault("estop", "estop"),
            "base restarted": Fault(KILL, **LOST, by_itself=True),
        },
    ),
    "piper": Counterpart(
        embodiment="piper",
        arm="arm",
        options={"can": "socket://{address}:29536", "stale_after_s": 0.4},
        nobody={"can": "socket://127.0.0.250:29536", "timeout_s": 1.0},
        device="vla_ros.sim.piper_bus:PiperBus",
        faults={
            "link cut": Fault("link_cut", **LOST),
            "device silent": Fault("silent", **LOST),
            "garbage on the adapter's line": Fault("garbage", **LOST),
            "wrong length and foreign CAN frames": Fault("bad_frames", **LOST),
            "feedback twice a second": Fault("slow", **LOST),
            "frozen feedback": Fault("frozen", "frozen"),
            "collision": Fault("collision", "collision"),
            "joint limit of the device": Fault("limit", "limit"),
            "a joint does not answer": Fault("joint_comm", "joint_comm"),
            "brake not released": Fault("brake", "brake"),
            "drive disabled": Fault("motor_disabled", "motor_disabled"),
            "emergency stop pressed": Fault("estop", "estop"),
            "adapter restarted": Fault(KILL, **LOST, by_itself=True),
        },
    ),
    "viperx": Counterpart(
        embodiment="aloha",
        arm="left",
        options={"port": "{folder}/servos", "stale_after_s": 0.4},
        nobody={"port": "/dev/no-such-port"},
        device="vla_ros.sim.dynamixel_servos:DynamixelServos",
        faults={
            "adapter unplugged": Fault("unplugged", **LOST),
            "bus silent": Fault("silent", **LOST),
            "one servo dead": Fault("one_servo_dead", **LOST),
            "bad checksum": Fault("bad_crc", **LOST),
            "garbage frames": Fault("garbage", **LOST),
            "answers late": Fault("slow", **LOST),
            "overload": Fault("overload", "overload"),
            "overheating": Fault("overheating", "overheating"),
            "supply voltage": Fault("voltage", "voltage"),
            "torque lost (servo rebooted)": Fault("torque_lost", "torque_lost"),
            "frozen servos": Fault("frozen", **LOST),
            "wrist blocked": Fault("limit", "blocked"),
            "servo bus restarted": Fault(KILL, **LOST, by_itself=True),
        },
    ),
    "ros2_control": Counterpart(
        embodiment="franka",
        arm="arm",
        options={
            "joints": [f"panda_joint{i}" for i in range(1, 8)],
            "gripper": {"type": "positions", "topic": "/gripper/commands", "joint": "panda_finger", "open_at": 0.04, "closed_at": 0.0},
            "stale_after_s": 0.4,
            "connect_timeout_s": 4.0,
        },
        nobody={"joint_states": "/nobody/joint_states", "connect_timeout_s": 1.0},
        device="trajectory_controller.py",
        faults={
            "joint states end": Fault("silent", **LOST),
            "joint states with an old stamp": Fault("frozen_stamp", **LOST),
            "NaN in the joint states": Fault("nan_state", **LOST),
            "a joint is missing in the joint states": Fault("joint_missing", **LOST),
            "controller deactivated": Fault("inactive", "not_following"),
            "controller unloaded": Fault("unloaded", "controller"),
            "driver stack restarted": Fault(KILL, **LOST, by_itself=True),
        },
    ),
}


def present(driver: str) -> bool:
    """Whether the driver and its device are in this tree."""
    counterpart = COUNTERPARTS[driver]
    module = counterpart.device.partition(":")[0]
    device = find_spec(module) is not None if ":" in counterpart.device else (HERE / counterpart.device).is_file()
    return driver in ROBOTS and device


DRIVERS = [driver for driver in COUNTERPARTS if present(driver)]
