"""The contract of `core.interfaces.Robot`, one set of tests over every driver of ROBOTS and the device's end of its protocol.

`--hardware=RIG` runs them on the real robot of config/rigs/RIG.yaml (and site.yaml) instead; what breaks the device is then left out.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import pytest
import rclpy
from arm_client import wait_for
from box import Box
from counterparts import COUNTERPARTS
from rclpy.signals import SignalHandlerOptions

from vla_ros.cli.running_rig import OwnDomain
from vla_ros.core.channels import TCP_POSE
from vla_ros.core.devices import load_device
from vla_ros.core.embodiment import RobotDescription, load_embodiment
from vla_ros.core.errors import DataError, DeviceError, StaleData
from vla_ros.core.interfaces import Robot
from vla_ros.core.rig import load_rig
from vla_ros.core.types import Action
from vla_ros.robots import ROBOTS
from vla_ros.robots.kinematics import Kinematics

PERIOD_S, READS = 0.02, 4
SPEED_RAD_S = 0.3
TURN_RAD = 0.15
LIFT_M = 0.03
REST_RAD_S = 0.02


@dataclass
class UnderTest:
    """A driver and how to make one; `box` is its simulated device, None on hardware."""

    driver: str
    robot: RobotDescription
    options: dict[str, object]
    box: Box | None = None

    @property
    def joints(self) -> tuple[str, ...]:
        return self.robot.joints

    def make(self, **options) -> Robot:
        """A new driver, not connected."""
        return load_device(ROBOTS, self.driver)(self.robot, **{**self.options, **options})

    def channels(self, suffix: str) -> tuple[str, ...]:
        return tuple(f"{joint}.{suffix}" for joint in self.joints)


@pytest.fixture(scope="module")
def robot_under_test(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnderTest]:
    if request.param.startswith("hardware "):
        rig, arm = load_rig(request.param.removeprefix("hardware ")), request.config.getoption("--arm")
        name = arm or next(iter(rig.robots))
        _ask(request, f"{name} of {rig.path}: the robot will move its last joint, lift its gripper by {LIFT_M} m, open and close it")
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        yield UnderTest(rig.robots[name].driver, rig.embodiment.robots[name], rig.robots[name].options)
        rclpy.try_shutdown()
        return
    counterpart = COUNTERPARTS[request.param]
    with closing(OwnDomain()) as domain, pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("ROS_DOMAIN_ID", str(domain.id))
        options = counterpart.filled(counterpart.options, domain.address, tmp_path_factory.mktemp(request.param))
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # only the driver of ros2_control stacks needs it
        stack.callback(rclpy.try_shutdown)
        with counterpart.box(options, {}) as box:
            yield UnderTest(request.param, load_embodiment(counterpart.embodiment).robots[counterpart.arm], options, box)


def _ask(request: pytest.FixtureRequest, what: str) -> None:
    """Lets nothing move before a person has agreed."""
    if request.config.getoption("--yes"):
        return
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        agreed = sys.stdin.isatty() and input(f"\n{what}. Is the way free, and a hand on the stop? [y/N] ").strip().lower() == "y"
    if not agreed:
        pytest.exit(f"{what}: not agreed to (answer y at a terminal, or pass --yes)", 2)


@pytest.fixture(scope="module")
def connected(robot_under_test: UnderTest) -> Iterator[Robot]:
    arm = robot_under_test.make()
    arm.connect()
    yield arm
    arm.close()


@pytest.fixture
def arm(connected: Robot, robot_under_test: UnderTest) -> Iterator[Robot]:
    """At rest, before and after."""
    at_rest(connected)
    yield connected
    connected.stop()
    at_rest(connected)


def at_rest(arm: Robot) -> np.ndarray:
    """Waits until the arm stands; returns its position [N] rad."""
    wait_for(lambda: np.abs(arm.read().velocity).max() < REST_RAD_S, "standing", 10.0, lambda: arm.read())
    return arm.read().position


def stream(arm: Robot, channels: tuple[str, ...], target: Callable[[float], object], duration_s: float) -> tuple[list[Action], float]:
    """Sends target(elapsed s) every 20 ms; returns what was executed, and the last joint's mean velocity in the second half (rad/s)."""
    begun_s, executed, seen = time.monotonic(), [], []
    while (elapsed_s := time.monotonic() - begun_s) < duration_s:
        executed.append(arm.command(Action(channels, target(elapsed_s), time.time_ns())))
        for _ in range(READS):
            seen.append(arm.read().velocity[-1])
            time.sleep(PERIOD_S / READS)
    return executed, float(np.mean(seen[len(seen) // 2 :]))


def last_joint(robot: RobotDescription, value: float, rest: object = None) -> np.ndarray:
    """[N] with `value` for the last joint, `rest` (zeros) for the others."""
    data = np.zeros(len(robot.joints)) if rest is None else np.array(rest, dtype=np.float64)
    data[-1] = value
    return data


def towards_home(robot: RobotDescription, position: np.ndarray) -> float:
    return 1.0 if position[-1] <= robot.home_rad[-1] else -1.0


def test_what_is_not_connected_says_so(robot_under_test: UnderTest):
    arm = robot_under_test.make()
    arm.stop()
    with pytest.raises(DeviceError):
        arm.read()
    with pytest.raises(DeviceError):
        arm.command(Action(robot_under_test.channels("velocity"), last_joint(robot_under_test.robot, 0.0)))
    arm.close()
    arm.close()


def test_a_measurement_is_whole_and_fresh(arm: Robot, robot_under_test: UnderTest):
    arm.connect()  # again: an open link stays as it is
    robot, state = robot_under_test.robot, arm.read()
    assert state.joint_names == robot.joints
    for values in (state.position, state.velocity, state.effort):
        assert values.shape == (len(robot.joints),)
        assert np.isfinite(values).all()
    assert (state.position >= np.array(robot.position_min_rad) - 0.05).all()
    assert (state.position <= np.array(robot.position_max_rad) + 0.05).all()
    if robot.gripper is not None:
        assert robot.gripper.width_min_m - 0.003 <= state.gripper_width_m <= robot.gripper.width_max_m + 0.003
    stamps = []
    for _ in range(10):
        stamps.append(arm.read().stamp_ns)
        assert abs(time.time_ns() - stamps[-1]) < 200_000_000
        time.sleep(0.02)
    assert stamps == sorted(stamps) and len(set(stamps)) >= 5, "stamps do not advance with the measurements"


def test_joint_positions_are_followed(arm: Robot, robot_under_test: UnderTest):
    robot, start = robot_under_test.robot, at_rest(arm)
    way = TURN_RAD * towards_home(robot, start)
    channels = robot_under_test.channels("position")
    executed, _ = stream(arm, channels, lambda t: last_joint(robot, start[-1] + way * min(1.0, 2 * t), start), 1.2)
    reached = arm.read().position
    assert reached[-1] - start[-1] == pytest.approx(way, abs=0.03)
    np.testing.assert_allclose(reached[:-1], start[:-1], atol=0.02)
    assert executed[-1].channels == channels
    np.testing.assert_allclose(executed[-1].data, last_joint(robot, start[-1] + way, start), atol=1e-6)


def test_joint_velocities_are_followed(arm: Robot, robot_under_test: UnderTest):
    robot, start = robot_under_test.robot, at_rest(arm)
    velocity = SPEED_RAD_S * towards_home(robot, start)
    executed, measured = stream(arm, robot_under_test.channels("velocity"), lambda _: last_joint(robot, velocity), 0.6)
    state = arm.read()
    np.testing.assert_allclose(executed[-1].data, last_joint(robot, velocity))
    assert measured == pytest.approx(velocity, abs=0.4 * SPEED_RAD_S)
    assert (state.position[-1] - start[-1]) / velocity > 0.3, "the way of half the time"
    np.testing.assert_allclose(state.position[:-1], start[:-1], atol=0.02)


def test_tcp_targets_are_followed(arm: Robot, robot_under_test: UnderTest):
    robot, kinematics = robot_under_test.robot, Kinematics(robot_under_test.robot)
    start = kinematics.tcp(at_rest(arm))
    up = LIFT_M if start[2] + 2 * LIFT_M < robot.workspace_max_m[2] else -LIFT_M
    way = np.array([0.0, 0.0, up, 0.0, 0.0, 0.0])
    executed, _ = stream(arm, TCP_POSE, lambda t: start + way * min(1.0, t), 1.5)
    reached = kinematics.tcp(arm.read().position)
    np.testing.assert_allclose(reached[:3], (start + way)[:3], atol=0.006)
    assert executed[-1].channels == TCP_POSE
    np.testing.assert_allclose(executed[-1].data, start + way, atol=1e-6)
    stream(arm, TCP_POSE, lambda t: start + way * max(0.0, 1.0 - t), 1.5)


def test_the_gripper_closes_and_opens(arm: Robot, robot_under_test: UnderTest):
    gripper = robot_under_test.robot.gripper
    if gripper is None:
        pytest.skip("this arm has no gripper")
    channels, here = robot_under_test.channels("position"), at_rest(arm)

    def share(channel: str, value: float) -> float:
        arm.command(Action((*channels, channel), [*here, value], time.time_ns()))
        time.sleep(PERIOD_S)
        return (arm.read().gripper_width_m - gripper.width_min_m) / (gripper.width_max_m - gripper.width_min_m)

    wait_for(lambda: share("gripper.closed", 1.0) < 0.2, "closed", 10.0)
    wait_for(lambda: share("gripper.width", gripper.width_max_m) > 0.8, "open", 10.0)
    wait_for(lambda: share("gripper.width", gripper.width_min_m) < 0.2, "closed again", 10.0)
    wait_for(lambda: share("gripper.closed", 0.0) > 0.8, "open again", 10.0)


def test_what_is_too_fast_is_slowed_and_told(arm: Robot, robot_under_test: UnderTest):
    robot = robot_under_test.robot
    limit, start = robot.velocity_max_rad_s[-1], at_rest(arm)
    way = towards_home(robot, start)
    executed = arm.command(Action(robot_under_test.channels("velocity"), last_joint(robot, 3 * limit * way), time.time_ns()))
    assert 0 < executed.data[-1] * way <= limit + 1e-6
    arm.stop()
    here = at_rest(arm)
    asked = last_joint(robot, here[-1] + 2.0 * way, here)
    executed = arm.command(Action(robot_under_test.channels("position"), asked, time.time_ns()))
    assert 0 < (executed.data[-1] - here[-1]) * way < 1.9, "what was left of the target is not what is returned"


def test_stop_holds_from_any_state(arm: Robot, robot_under_test: UnderTest):
    robot = robot_under_test.robot
    for _ in range(2):
        velocity = SPEED_RAD_S * towards_home(robot, arm.read().position)
        _, measured = stream(arm, robot_under_test.channels("velocity"), lambda _: last_joint(robot, velocity), 0.4)  # noqa: B023
        assert abs(measured) > SPEED_RAD_S / 2
        for _ in range(3):
            arm.stop()
        held = at_rest(arm)
    time.sleep(0.5)
    np.testing.assert_allclose(arm.read().position, held, atol=0.02)


def test_recover_does_no_harm_to_what_is_well(arm: Robot, robot_under_test: UnderTest):
    start, robot = at_rest(arm), robot_under_test.robot
    arm.recover()
    np.testing.assert_allclose(at_rest(arm), start, atol=0.02)
    velocity = SPEED_RAD_S * towards_home(robot, start)
    stream(arm, robot_under_test.channels("velocity"), lambda _: last_joint(robot, velocity), 0.4)
    assert abs(arm.read().position[-1] - start[-1]) > 0.03


@pytest.mark.parametrize("wrong", ["missing", "foreign"])
def test_wrong_channels_are_named(arm: Robot, robot_under_test: UnderTest, wrong: str):
    channels, here = robot_under_test.channels("position"), at_rest(arm)
    channels, data = (channels[1:], here[1:]) if wrong == "missing" else (("nothing.position", *channels[1:]), here)
    with pytest.raises(DataError, match=rf"{robot_under_test.joints[0]}\.position is missing") as raised:
        arm.command(Action(channels, data, time.time_ns()))
    assert raised.value.reason == "channels"
    np.testing.assert_allclose(at_rest(arm), here, atol=0.02)


def test_a_dead_device_is_stale_and_comes_back(robot_under_test: UnderTest, connected: Robot):
    if robot_under_test.box is None:
        pytest.skip("nobody unplugs a real robot for a test")
    arm, robot = connected, robot_under_test.robot
    robot_under_test.box.kill()

    def lost() -> StaleData | None:
        try:
            arm.read()
        except StaleData as error:
            return error
        return None

    wait_for(lost, "StaleData")
    assert lost().reason == "link_lost"
    arm.stop()
    with pytest.raises((StaleData, DeviceError)):
        arm.command(Action(robot_under_test.channels("velocity"), last_joint(robot, 0.1), time.time_ns()))
    with pytest.raises(DeviceError):
        arm.recover()
    robot_under_test.box.start()
    arm.recover()
    start = at_rest(arm)
    stream(arm, robot_under_test.channels("velocity"), lambda _: last_joint(robot, SPEED_RAD_S * towards_home(robot, start)), 0.4)
    assert abs(arm.read().position[-1] - start[-1]) > 0.03
    arm.stop()


def test_nobody_there_is_told_with_the_address(robot_under_test: UnderTest):
    if robot_under_test.box is None:
        pytest.skip("the address of a real robot is not guessed at")
    nobody = COUNTERPARTS[robot_under_test.driver].nobody
    arm = robot_under_test.make(**nobody)
    begun_s = time.monotonic()
    with pytest.raises(DeviceError, match=str(next(iter(nobody.values())))):
        arm.connect()
    assert time.monotonic() - begun_s < 10.0
    with pytest.raises(DeviceError):
        arm.read()
    arm.close()


def test_closing_is_final_and_leaves_no_thread(robot_under_test: UnderTest, connected: Robot):
    """Last of all: the module's connection ends here, and a new one is opened and closed."""
    connected.close()
    before = set(threading.enumerate())
    arm = robot_under_test.make()
    arm.connect()
    position = at_rest(arm)
    arm.close()
    arm.close()
    arm.stop()
    with pytest.raises(DeviceError):
        arm.command(Action(robot_under_test.channels("position"), position, time.time_ns()))
    wait_for(lambda: not set(threading.enumerate()) - before, "no thread left", 5.0, lambda: set(threading.enumerate()) - before)


def test_every_driver_has_a_counterpart():
    assert set(COUNTERPARTS) == set(ROBOTS)
