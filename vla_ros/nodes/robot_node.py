"""One arm as a ROS node: joint states out, commands in through the gate, stop, recover, reconnect."""

from __future__ import annotations

import sys

from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from vla_msgs.msg import RobotCommand, RobotStatus
from vla_msgs.srv import SetSource
from vla_ros.core.devices import load_device
from vla_ros.core.embodiment import RobotDescription
from vla_ros.core.errors import ConfigError, DeviceError, VlaError, did_you_mean
from vla_ros.core.interfaces import Robot
from vla_ros.core.rig import load_rig
from vla_ros.core.safety import Limiter
from vla_ros.core.types import Action
from vla_ros.nodes import msgs, qos
from vla_ros.nodes.command_gate import NOBODY, CommandGate, State
from vla_ros.nodes.joint_motion import JointMotion
from vla_ros.nodes.lifecycle import ERROR, OK, WARN, Health, VlaNode, run
from vla_ros.nodes.recovery import Recovery
from vla_ros.robots import ROBOTS
from vla_ros.robots.kinematics import Kinematics

_STATUS_PERIOD_NS = 100_000_000


class RobotNode(VlaNode):
    """Owns the connection to one arm of the rig; see CommandGate for who drives it and when it holds."""

    def __init__(self) -> None:
        super().__init__("arm")
        rate_hz = self.parameter("state_rate_hz", 100.0, "Rate of ~/joint_states and of the watchdog", low=10, high=500)
        self._timeout_s = self.parameter("command_timeout_s", 0.15, "Holds when no command came for so long", low=0.02, high=2)
        self._age_limit_s = self.parameter("command_age_limit_s", 0.2, "Rejects commands whose stamp is older", low=0.02, high=2)
        self._robot: Robot | None = None
        self._description: RobotDescription | None = None
        self._gate: CommandGate | None = None
        self._recovery = Recovery(self._recovered)
        self._shown, self._shown_ns = None, 0
        self._joint_states = self.create_publisher(JointState, "~/joint_states", qos.STATE, qos_overriding_options=qos.overridable())
        self._executed = self.create_publisher(RobotCommand, "~/executed", qos.EXECUTED)
        self._status = self.create_publisher(RobotStatus, "~/status", qos.STATUS)
        self.create_subscription(RobotCommand, "~/command", self._on_command, qos.COMMAND)
        self.create_service(SetSource, "~/set_source", self._on_set_source)
        self.create_service(Trigger, "~/stop", self._on_stop)
        self.create_service(Trigger, "~/recover", self._on_recover)
        self._motion = JointMotion(self, lambda: (self._description, self._gate) if self.is_active else None)
        self.create_timer(1.0 / rate_hz, self._tick, clock=self.steady_clock)

    def setup(self) -> None:
        rig = load_rig(self.rig_name)
        if self.device_name not in rig.robots:
            raise ConfigError(f"{rig.path}: no robot '{self.device_name}'; {did_you_mean(self.device_name, rig.robots)}")
        entry, self._description = rig.robots[self.device_name], rig.embodiment.robots[self.device_name]
        try:
            self._robot = load_device(ROBOTS, entry.driver)(self._description, **entry.options)
        except TypeError as error:
            raise ConfigError(f"{rig.path}: robots.{self.device_name}.options of driver '{entry.driver}': {error}") from error
        self._robot.connect()
        kinematics, period_s = Kinematics(self._description), 1.0 / rig.embodiment.control.rate_hz
        limiter = Limiter(self._description, kinematics.tcp, period_s=period_s, age_limit_s=self._age_limit_s)
        self._gate = CommandGate(self._robot, limiter, self._timeout_s, lambda _, sentence: self.get_logger().warning(sentence))

    def engage(self) -> None:
        self._gate.select(NOBODY)

    def disengage(self) -> None:
        self._motion.abort(self._gate, "the node was deactivated")
        self._gate.select(NOBODY)

    def teardown(self) -> None:
        robot, self._robot, self._gate = self._robot, None, None
        if robot is not None:
            robot.close()

    def diagnose(self) -> Health:
        gate = self._gate
        level = ERROR if gate.state in (State.DISCONNECTED, State.STOPPED) else WARN if gate.reason else OK
        return Health(level, f"{gate.state.name.lower()}{': ' + gate.reason if gate.reason else ''}", gate.figures())

    # The loop.

    def _tick(self) -> None:
        if self.is_active:
            measured = self._gate.update(self.steady_ns())
            if measured is not None:
                self._joint_states.publish(msgs.joint_state_msg(measured))
            self._publish_executed(self._motion.step(self._description, self._gate, self.now_ns(), self.steady_ns()))
            self._recovery.keep_trying(self._gate.state == State.DISCONNECTED, self._robot, self.executor, self.steady_ns())
        self._publish_status()

    def _on_command(self, message: RobotCommand) -> None:
        if not self.is_active:
            return
        gate = self._gate
        if message.mode == RobotCommand.MODE_HOLD:
            if message.source == gate.source:
                gate.hold(message.reason or "asked", f"'{message.source}' asks to hold: {message.reason or 'no reason given'}")
            else:
                gate.rejected["source"] += 1
        else:
            self._publish_executed(gate.command(lambda: msgs.action_of(message), message.source, self.now_ns(), self.steady_ns()))
        self._publish_status()

    def _publish_executed(self, executed: Action | None) -> None:
        if executed is not None:
            self._executed.publish(msgs.command_msg(executed))

    def _publish_status(self) -> None:
        """On every change, and at 10 Hz."""
        gate, now_ns = self._gate, self.steady_ns()
        shown = gate.shown if gate else (State.DISCONNECTED, NOBODY, self.state_label, "the node is not configured")
        if shown == self._shown and now_ns - self._shown_ns < _STATUS_PERIOD_NS:
            return
        self._shown, self._shown_ns = shown, now_ns
        status = RobotStatus(stamp=msgs.stamp_msg(self.now_ns()), state=int(shown[0]), source=shown[1], reason=shown[2], detail=shown[3])
        if gate is not None:
            status.accepted = gate.accepted
            status.rejected_names, status.rejected_counts = list(gate.rejected), list(gate.rejected.values())
        self._status.publish(status)

    # Services.

    def _on_set_source(self, request: SetSource.Request, response: SetSource.Response) -> SetSource.Response:
        try:
            response.previous = self._active_gate().select(request.source)
            response.success = True
        except VlaError as error:
            response.message = str(error)
        self._publish_status()
        return response

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            self._active_gate().stop("stop", "~/stop was called; call ~/recover to go on")
            response.success = True
        except VlaError as error:
            response.message = str(error)
        self._publish_status()
        return response

    async def _on_recover(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            gate = self._active_gate()
            gate.stop("recovering", "~/recover was called")  # whoever drives, stops first
            gate.release()
            recovery = self._recovery.begin(self._robot, self.executor)
            error = await recovery
            self._recovery.end(recovery)
            response.success, response.message = error is None, str(error or gate.state.name.lower())
        except VlaError as error:
            response.message = str(error)
        self._publish_status()
        return response

    def _active_gate(self) -> CommandGate:
        if not self.is_active:
            raise DeviceError(f"node {self.get_name()} is {self.state_label}, not active", "inactive")
        return self._gate

    def _recovered(self, error: VlaError | None) -> None:
        if self._gate is not None:
            self._gate.recovered(error)


def main() -> int:
    """Console script `robot_node`."""
    return run(RobotNode)


if __name__ == "__main__":
    sys.exit(main())
