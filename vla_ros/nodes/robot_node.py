"""One arm as a ROS node: joint states out, commands in through the gate, stop, recover, reconnect."""

from __future__ import annotations

import sys
import threading

from std_srvs.srv import Trigger

from vla_msgs.msg import RobotCommand
from vla_msgs.srv import SetSource
from vla_ros.core.devices import load_device
from vla_ros.core.embodiment import Embodiment, RobotDescription
from vla_ros.core.errors import ConfigError, DeviceError, VlaError, did_you_mean
from vla_ros.core.interfaces import Robot
from vla_ros.core.rig import load_rig
from vla_ros.core.safety import Limiter
from vla_ros.nodes import msgs, qos
from vla_ros.nodes.command_gate import NOBODY, CommandGate, State
from vla_ros.nodes.joint_motion import JointMotion
from vla_ros.nodes.lifecycle import ERROR, OK, WARN, Health, VlaNode, run
from vla_ros.nodes.listener import Listener
from vla_ros.nodes.other_arm import OtherArm
from vla_ros.nodes.recovery import Recovery
from vla_ros.nodes.robot_topics import RobotTopics
from vla_ros.nodes.steady_loop import SteadyLoop, locked
from vla_ros.robots import ROBOTS
from vla_ros.robots.clearance import Clearance
from vla_ros.robots.kinematics import Kinematics


class RobotNode(VlaNode):
    """Owns the connection to one arm of the rig; see CommandGate for who drives it and when it holds.

    A loop of its own reads the arm and watches over the commands' age, another thread takes the commands in: the executor has the rest.
    """

    def __init__(self) -> None:
        super().__init__("arm")
        rate_hz = self.parameter("state_rate_hz", 100.0, "Rate of ~/joint_states and of the watchdog", low=10, high=500)
        self._timeout_s = self.parameter("command_timeout_s", 0.15, "Holds when no command came for so long", low=0.02, high=2)
        self._age_limit_s = self.parameter("command_age_limit_s", 0.2, "Rejects commands whose stamp is older", low=0.02, high=2)
        self._lock = threading.RLock()
        self._loop = SteadyLoop("loop", 1.0 / rate_hz, self._tick)
        self._robot: Robot | None = None
        self._description: RobotDescription | None = None
        self._gate: CommandGate | None = None
        self._other: OtherArm | None = None
        self._recovery = Recovery(self._recovered, self._lock)
        self._topics = RobotTopics(self)
        self.create_service(SetSource, "~/set_source", self._on_set_source)
        self.create_service(Trigger, "~/stop", self._on_stop)
        self.create_service(Trigger, "~/recover", self._on_recover)
        self._motion = JointMotion(self, lambda: (self._description, self._gate) if self.is_active else None, self._lock)
        self._commands = Listener(self, RobotCommand, "~/command", self._on_command, qos.COMMAND)
        self._idle = self.create_timer(0.1, self._publish_status, clock=self.steady_clock)

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
        warn = self.get_logger().warning
        self._gate = CommandGate(self._robot, self._limiter(rig.embodiment), self._timeout_s, lambda _, sentence: warn(sentence))

    def _limiter(self, embodiment: Embodiment) -> Limiter:
        self._other = other = OtherArm(self, embodiment, self.device_name)
        kinematics, clearance = Kinematics(self._description), Clearance(self._description, other.description)
        return Limiter(
            self._description,
            kinematics.tcp,
            period_s=1.0 / embodiment.control.rate_hz,
            age_limit_s=self._age_limit_s,
            clearance=lambda position: clearance.distance(position, other.position_rad()),
            predict=kinematics.ahead,
        )

    def engage(self) -> None:
        self._gate.select(NOBODY)
        self._idle.cancel()
        self._loop.start()

    def disengage(self) -> None:
        self._loop.stop()
        self._idle.reset()
        self._motion.abort(self._gate, "the node was deactivated")
        self._gate.select(NOBODY)

    def teardown(self) -> None:
        opened, self._robot, self._other, self._gate = (self._other, self._robot), None, None, None
        for device in filter(None, opened):
            device.close()

    def destroy_node(self) -> None:
        self._commands.close()
        self._loop.stop()
        super().destroy_node()

    def diagnose(self) -> Health:
        gate = self._gate
        alone = self._other.unknown
        level = ERROR if gate.state in (State.DISCONNECTED, State.STOPPED) else WARN if gate.reason or alone else OK
        message = f"{gate.state.name.lower()}{': ' + gate.reason if gate.reason else ''}{'; other arm unknown' if alone else ''}"
        return Health(level, message, gate.figures() | ({"other_arm": alone} if alone else {}))

    @locked
    def _publish_diagnostics(self) -> None:
        self._loop.check()
        self._commands.check()
        super()._publish_diagnostics()

    # The loop.

    @locked
    def _tick(self) -> None:
        if self.is_active:
            self._topics.measured(self._gate.update(self.steady_ns()))
            self._topics.executed(self._motion.step(self._description, self._gate, self.now_ns(), self.steady_ns()))
            self._recovery.keep_trying(self._gate.state == State.DISCONNECTED, self._robot, self.executor, self.steady_ns())
        self._publish_status()

    @locked
    def _on_command(self, message: RobotCommand) -> None:
        if not self.is_active:
            return
        gate = self._gate
        if message.mode != RobotCommand.MODE_HOLD:
            self._topics.executed(gate.command(lambda: msgs.action_of(message), message.source, self.now_ns(), self.steady_ns()))
        elif message.source == gate.source:
            gate.hold(message.reason or "asked", f"'{message.source}' asks to hold: {message.reason or 'no reason given'}")
        else:
            gate.rejected["source"] += 1
        self._publish_status()

    @locked
    def _publish_status(self) -> None:
        gate = self._gate
        shown = gate.shown if gate else (State.DISCONNECTED, NOBODY, self.state_label, "the node is not configured")
        if self._topics.status(shown, *((gate.accepted, gate.rejected) if gate else (0, {}))):
            self._publish_diagnostics()  # a link that is back within their period must not go untold there

    # Services.

    @locked
    def _on_set_source(self, request: SetSource.Request, response: SetSource.Response) -> SetSource.Response:
        try:
            response.previous = self._active_gate().select(request.source)
            response.success = True
        except VlaError as error:
            response.message = str(error)
        self._publish_status()
        return response

    @locked
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
            with self._lock:
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
