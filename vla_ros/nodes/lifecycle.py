"""What all nodes share: lifecycle with autostart, parameters with ranges, /diagnostics, a clean exit on Ctrl-C."""

from __future__ import annotations

import signal
import time
import traceback
from dataclasses import dataclass, field

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from vla_ros.core.errors import ConfigError, NotInstalled, VlaError
from vla_ros.nodes import qos

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 5.0
_LAST_WORDS_S = 0.3
# Another attempt cannot mend these; everything else may be a device that is not there yet.
_FATAL = (ConfigError, NotInstalled)


@dataclass(frozen=True)
class Health:
    """One line of /diagnostics: `level` is OK, WARN or ERROR, `values` are shown as text."""

    level: bytes
    message: str
    values: dict[str, object] = field(default_factory=dict)


class VlaNode(LifecycleNode):
    """Base of every node. A subclass fills in `setup`, `engage`, `disengage`, `teardown` and `diagnose`.

    Parameters `rig`, `device` and `autostart` are declared here; `self.rig_name`, `self.device_name` hold them.
    With `autostart` the node configures and activates itself and repeats a failed `setup` with back-off,
    so that the order in which things start does not matter.
    """

    def __init__(self, name: str, **kwargs) -> None:
        super().__init__(name, **kwargs)
        self.rig_name: str = self.parameter("rig", "", "Rig: a name in config/rigs or the path of a YAML file")
        device: str = self.parameter("device", "", "Key of this device in the rig; the node's name if empty")
        self.device_name = device or self.get_name()
        autostart = self.parameter("autostart", True, "Configure and activate without being told")
        self.steady_clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._failure: VlaError | None = None
        self._retry_s = _FIRST_RETRY_S
        self._shown: tuple[bytes, str] | None = None
        self._shown_ns = 0
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)
        self.create_timer(0.1, self._publish_diagnostics, clock=self.steady_clock)
        self._autostart = self.create_timer(0.01, self._start, clock=self.steady_clock) if autostart else None

    # What a subclass fills in. Each may raise VlaError.

    def setup(self) -> None:
        """Loads the rig and opens the device (configure). ConfigError and NotInstalled end the process, other VlaErrors are retried."""

    def engage(self) -> None:
        """Begins to work (activate)."""

    def disengage(self) -> None:
        """Stops working, safely (deactivate). Also called on the way out of an active node."""

    def teardown(self) -> None:
        """Closes what `setup` opened (cleanup). Also called after a failed `setup`: must bear a half-open device."""

    def diagnose(self) -> Health:
        """Returns how a configured node is doing; called at 10 Hz, so it must be quick."""
        return Health(OK, "running" if self.is_active else "inactive")

    # What a subclass uses.

    @property
    def state_label(self) -> str:
        """ "unconfigured", "inactive", "active" or "finalized"."""
        return self._state_machine.current_state[1]

    @property
    def is_active(self) -> bool:
        return self.state_label == "active"

    def steady_ns(self) -> int:
        """Steady time in ns, for watchdogs and ages of arrival; stamps come from `now_ns`."""
        return self.steady_clock.now().nanoseconds

    def now_ns(self) -> int:
        """ROS time in ns since the epoch (simulated time with `use_sim_time`)."""
        return self.get_clock().now().nanoseconds

    def parameter(
        self, name: str, default, description: str, *, low: float | None = None, high: float | None = None, read_only: bool = True
    ):
        """Declares a parameter and returns its value; an integer given for a float is taken. Unless `read_only`, `setup` reads it anew."""
        descriptor = ParameterDescriptor(description=description, read_only=read_only, dynamic_typing=isinstance(default, float))
        if low is not None and high is not None:
            if isinstance(default, float):
                descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
            else:
                descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
        value = self.declare_parameter(name, default, descriptor).value
        return float(value) if isinstance(default, float) else value

    # Lifecycle.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._attempt(self.setup)
        if result != TransitionCallbackReturn.SUCCESS:
            self._attempt(self.teardown, keep_failure=True)
        return result

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        super().on_activate(state)
        return self._attempt(self.engage)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._attempt(self.disengage)
        super().on_deactivate(state)
        return result

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._attempt(self.teardown)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        if state.label == "active":
            self._attempt(self.disengage)
        return self._attempt(self.teardown)

    def _attempt(self, step, *, keep_failure: bool = False) -> TransitionCallbackReturn:
        """Runs one hook. rclpy would swallow what it raises, so it is logged and remembered here."""
        try:
            step()
        except VlaError as error:
            self.get_logger().error(f"{step.__name__}: {error}")
            if not keep_failure:
                self._failure = error
            return TransitionCallbackReturn.FAILURE
        except Exception:
            self.get_logger().fatal(f"{step.__name__} failed:\n{traceback.format_exc()}")
            self._failure = ConfigError(f"{self.get_name()}: a fault in {step.__name__}, see the log above")
            return TransitionCallbackReturn.FAILURE
        if not keep_failure:
            self._failure = None
        return TransitionCallbackReturn.SUCCESS

    def _start(self) -> None:
        """Configures and activates; after a failure the same timer comes back later."""
        timer, self._autostart = self._autostart, None
        self.destroy_timer(timer)
        if self.state_label == "unconfigured":
            self.trigger_configure()
        if self.state_label == "inactive":
            self.trigger_activate()
        if self.is_active or self.state_label == "finalized":
            return
        if isinstance(self._failure, _FATAL):
            raise self._failure
        self.get_logger().info(f"next attempt in {self._retry_s:g} s")
        self._autostart = self.create_timer(self._retry_s, self._start, clock=self.steady_clock)
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)

    # Diagnostics.

    def _health(self) -> Health:
        if self.state_label in ("inactive", "active"):
            return self.diagnose()
        return Health(ERROR if self._failure else WARN, str(self._failure or self.state_label))

    def _publish_diagnostics(self) -> None:
        """At 1 Hz, and at once when the level or the message changes."""
        health, now_ns = self._health(), self.steady_ns()
        if (health.level, health.message) == self._shown and now_ns - self._shown_ns < 1_000_000_000:
            return
        self._shown, self._shown_ns = (health.level, health.message), now_ns
        name = self.get_fully_qualified_name()
        status = DiagnosticStatus(level=health.level, name=name, message=health.message, hardware_id=self.device_name)
        values = {"lifecycle": self.state_label, **health.values}
        status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def run(node_class: type[VlaNode], args: list[str] | None = None) -> int:
    """Runs one node until Ctrl-C or SIGTERM, then deactivates and closes it; returns the exit status (1 after a fatal error).

    Our own signal handlers, because rclpy's invalidate the context at once and the node could not say goodbye.
    """
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stopped = Future()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set_result(None) if not stopped.done() else None)
    node = node_class()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        executor.spin_until_future_complete(stopped)
        if node.is_active:
            node.trigger_deactivate()
            end_s = time.monotonic() + _LAST_WORDS_S
            while time.monotonic() < end_s:  # a goal that ended just now still has its result to send, among all the rest
                executor.spin_once(timeout_sec=0.01)
    except VlaError as error:
        node.get_logger().fatal(str(error))
        return 1
    finally:
        if node.state_label != "finalized":
            node.trigger_shutdown()
        executor.remove_node(node)
        node.destroy_node()
        rclpy.try_shutdown()
    return 0
