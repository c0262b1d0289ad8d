"""The Franka driver on a wire with faults: each is named, the arm stands, and it goes on after recovery."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from franka_wire import FaultyFrankaBox

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import DeviceError, StaleData, VlaError
from vla_ros.core.types import Action
from vla_ros.robots.franka import Franka

ROBOT = load_embodiment("franka").robots["arm"]
VELOCITIES = tuple(f"{joint}.velocity" for joint in ROBOT.joints)
TURNING = [0.0] * 6 + [0.2]
PERIOD_S = 0.02
STANDING_RAD_S = 0.02
# fault -> reason of the driver, part of its sentence
EXPECTED = {
    "link_cut": ("link_lost", "is the link up"),
    "silent": ("link_lost", "no new state for"),
    "slow": ("link_lost", "no new state for"),
    "packet_loss": ("communication", "communication_constraints_violation"),
    "garbage": ("link_lost", "incorrect object size"),
    "nan_state": ("link_lost", "no finite state for"),
    "hand_cut": ("gripper", "franka hand at"),
    "reflex": ("reflex", "reflex: cartesian_reflex"),
    "communication_violation": ("communication", "communication_constraints_violation"),
    "joint_limit": ("joint_limit", "joint_position_limits_violation"),
    "user_stop": ("user_stop", "user stop is pressed"),
    "estop": ("estop", "brakes closed or emergency stop"),
    "move_refused": ("fault", "aborted"),
    "box_killed": ("link_lost", "is the link up"),
}
LATCHED = ("reflex", "communication_violation", "joint_limit", "user_stop", "estop")


@pytest.fixture(scope="module")
def box():
    with FaultyFrankaBox(f"127.0.{os.getpid() % 200 + 20}.3") as box:
        yield box


@pytest.fixture
def arm(box):
    # a busy machine starves the simulator; a real box is told after 0.15 s
    arm = Franka(ROBOT, box.address, stale_after_s=0.4, connect_timeout_s=2.0, grasp={"force_n": 20.0})
    deadline_s = time.monotonic() + 20.0
    while True:
        try:
            arm.recover()
            break
        except DeviceError:
            if time.monotonic() > deadline_s:
                raise
    yield arm
    arm.close()


def turn(arm: Franka, duration_s: float) -> None:
    ends_s = time.monotonic() + duration_s
    while time.monotonic() < ends_s:
        arm.command(Action(VELOCITIES, TURNING, time.time_ns()))
        time.sleep(PERIOD_S)


def told(arm: Franka, within_s: float) -> VlaError:
    """Commands on until the driver raises."""
    ends_s = time.monotonic() + within_s
    while time.monotonic() < ends_s:
        begun_s = time.monotonic()
        try:
            arm.read()
            arm.command(Action(VELOCITIES, TURNING, time.time_ns()))
        except (StaleData, DeviceError) as error:
            return error
        assert time.monotonic() - begun_s < 0.2, "a command blocked"
        time.sleep(PERIOD_S)
    pytest.fail(f"nothing was told within {within_s:g} s")


def stands(box: FaultyFrankaBox, within_s: float) -> bool:
    ends_s = time.monotonic() + within_s
    while box.speed() > STANDING_RAD_S:
        if time.monotonic() > ends_s:
            return False
        time.sleep(0.005)
    return True


def test_every_fault_of_the_wire_is_expected():
    assert set(EXPECTED) == set(FaultyFrankaBox.FAULTS)


@pytest.mark.parametrize("fault", EXPECTED)
def test_a_fault_is_named_held_and_recovered_from(arm, box, fault):
    turn(arm, 0.3)
    assert box.speed() > 0.1
    box.inject(fault)
    reason, words = EXPECTED[fault]
    try:
        error = told(arm, 2.5)
        assert (error.reason, words in str(error)) == (reason, True), str(error)
        arm.stop()
        assert stands(box, 0.2), f"{box.speed():.3f} rad/s 200 ms after the driver knew"
        if fault in LATCHED:
            with pytest.raises(DeviceError, match="recover again"):
                arm.recover()
            assert told(arm, 0.5).reason == reason, "a recovery that failed left no fault"
    finally:
        box.clear()
    arm.recover()
    assert box.speed() < STANDING_RAD_S, "nothing moves until it is commanded"
    turn(arm, 0.3)
    assert box.speed() > 0.1
    assert np.isfinite(arm.read().position).all()
