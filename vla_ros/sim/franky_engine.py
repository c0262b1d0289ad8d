"""The Franka's control box: franky-sim speaks libfranka's protocol over its own MuJoCo physics."""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np

from vla_ros.core.errors import DeviceError
from vla_ros.core.rig import Rig
from vla_ros.sim.layout import arm_names
from vla_ros.sim.scene import ROBOT, build_simulator


class FrankyEngine:
    """Implements `engine.Engine` for the rig's one Franka. Listens at the robot's `address`, ports 1337 and 1338."""

    step_s = 0.001

    def __init__(self, rig: Rig) -> None:
        self.arms = arm_names(rig.embodiment)
        self._address = str(rig.robots["arm"].options.get("address", rig.simulation.address))
        self._home = np.array(rig.embodiment.robots["arm"].home_rad)
        self._server = None

    def start(self) -> None:
        from franky_sim import SimulationServer

        self._simulator = build_simulator(tuple(self._home))
        self._simulator.init()
        self._server = SimulationServer(self._simulator, hostname_candidates=[self._address])
        try:
            self._server.init()
        except OSError as error:
            self._server.cleanup()
            raise DeviceError(
                f"the simulated control box cannot listen on {self._address}, ports 1337 and 1338 ({error}):"
                " is another simulation running there? change simulation.address in the rig"
            ) from error
        self._robot = self._simulator.robots[0]
        self.model, self.data = self._simulator.model, self._simulator.data
        # Compiled now: the control box must not pause later.
        other = build_simulator(tuple(self._home), drawer=True)
        other.init()
        other.start()
        self._scenes = {False: (self.model, self.data), True: (other.model, other.data)}

    def step(self) -> None:
        self._server.run_once(realtime=False)

    def furnish(self, drawer: bool) -> None:
        model, data = self._scenes[drawer]
        if model is self.model:
            return
        data.time, data.qfrc_applied[:] = self.data.time, 0.0
        self.model, self.data = model, data
        # franky-sim has no word for this: the simulator and its robot are pointed to another model of the same arm.
        self._simulator._mj_model, self._simulator._mj_data = model, data
        self._robot._attach_to_scene(model, data, ROBOT)

    def rest(self, widths_m: Mapping[str, float]) -> None:
        """An idle control box holds where it last stopped, and would drive the arm back there."""
        self._robot.set_hand_goal(widths_m["arm"], 0.05, 30.0)
        mujoco.mj_forward(self.model, self.data)
        box = self._server.robot_servers[0]
        if box.current_motion_id == 0:
            self._robot.joint_position_control(self._home)
            self._simulator.step()
            box.stop_motion()

    def commanded_rad_s(self) -> float:
        return float(np.linalg.norm(self._robot.state.dq_d))

    def close(self) -> None:
        if self._server is None:
            return
        for robot in self._server.robot_servers:
            robot.gripper_server.reset_state()
            robot.reset_state()
        self._server.cleanup()
        self._server = None
