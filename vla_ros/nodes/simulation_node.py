"""The simulated world: runs its physics in real time, places and shifts objects on request, judges the task."""

from __future__ import annotations

import json
import sys

from std_srvs.srv import Trigger

from vla_msgs.msg import TaskOutcome
from vla_msgs.srv import MoveObject, ResetScene
from vla_ros.core.devices import load_device
from vla_ros.core.errors import ConfigError, VlaError
from vla_ros.core.rig import load_rig
from vla_ros.nodes import msgs, qos
from vla_ros.nodes.lifecycle import OK, WARN, Health, VlaNode, run
from vla_ros.sim import SIMULATORS

_JUDGE_S = 0.1
_LOG_ROWS = 2000  # 20 s
# The physics thread needs the interpreter every millisecond; Python's default would let this node keep it for 5 ms.
_SWITCH_INTERVAL_S = 1e-4


class SimulationNode(VlaNode):
    """The physics has a thread of its own in the server; here are only its services and its judge."""

    def __init__(self, **kwargs) -> None:
        super().__init__("simulation", **kwargs)
        self._slow_below = self.parameter("real_time_factor_min", 0.98, "Below this the simulation is reported as slow", low=0.1, high=1)
        self._server = None
        self._outcomes = self.create_publisher(TaskOutcome, "/task_outcome", qos.STATE)
        self.create_service(ResetScene, "~/reset", self._on_reset)
        self.create_service(MoveObject, "~/move_object", self._on_move)
        self.create_service(Trigger, "~/motion_log", self._on_motion_log)

    def setup(self) -> None:
        rig = load_rig(self.rig_name)
        if rig.simulation is None:
            raise ConfigError(f"rig {rig.name} has no simulation section, so there is nothing for the simulation node to run")
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        server = load_device(SIMULATORS, rig.simulation.scene)(rig)
        server.start()
        self._server = server
        self.get_logger().info(f"{rig.simulation.scene} at {rig.simulation.address}: {server.task}")

    def engage(self) -> None:
        self._judging = self.create_timer(_JUDGE_S, self._judge, clock=self.steady_clock)

    def disengage(self) -> None:
        self.destroy_timer(self._judging)

    def teardown(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def diagnose(self) -> Health:
        factor = self._server.real_time_factor
        values = {"real_time_factor": f"{factor:.4f}", "task": self._server.task}
        if factor < self._slow_below:
            return Health(WARN, "slower than real time: the machine is overloaded", values)
        return Health(OK, "running" if self.is_active else "inactive", values)

    def _judge(self) -> None:
        """A simulation that has died raises here, and the process ends with a status."""
        judged = self._server.judge()
        outcome = TaskOutcome.SUCCESS if judged.success else TaskOutcome.FAILURE if judged.failed else TaskOutcome.RUNNING
        stamp = msgs.stamp_msg(self.now_ns())
        message = TaskOutcome(
            stamp=stamp, task=self._server.task, outcome=outcome, wrong_object=judged.wrong_object, detail=judged.detail,
            steps_done=judged.steps_done, steps=judged.steps,
        )  # fmt: skip
        self._outcomes.publish(message)

    def _on_reset(self, request: ResetScene.Request, response: ResetScene.Response) -> ResetScene.Response:
        response.success, response.message = self._tried(lambda: self._server.reset(request.seed, request.task))
        response.task = self._server.task if self._server is not None else ""
        return response

    def _on_move(self, request: MoveObject.Request, response: MoveObject.Response) -> MoveObject.Response:
        response.success, response.message = self._tried(lambda: self._server.move_object(request.object, request.dx_m, request.dy_m))
        return response

    def _on_motion_log(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """The arm's speed as the physics knows it, JSON with a list a column: whether a robot holds is not for its own node to say."""

        def fill() -> None:
            columns = self._server.motion_log()[-_LOG_ROWS:].T.tolist()
            response.message = json.dumps(dict(zip(("stamp_ns", "commanded_rad_s", "measured_rad_s"), columns, strict=True)))

        response.success, error = self._tried(fill)
        response.message = error or response.message
        return response

    def _tried(self, work) -> tuple[bool, str]:
        if self._server is None:
            return False, f"the simulation is {self.state_label}"
        try:
            work()
        except VlaError as error:
            return False, str(error)
        return True, ""


def main() -> int:
    """Console script `simulation_node`."""
    return run(SimulationNode)


if __name__ == "__main__":
    sys.exit(main())
