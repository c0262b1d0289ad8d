"""Asks a running rig which one it is, and gives its policy node another policy, with ROS' own parameters and lifecycle."""

from __future__ import annotations

import time
from types import TracebackType

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from vla_ros.core.errors import DeviceError, PolicyError

_DISCOVERY_S = 8.0
_LOAD_S = 60.0  # torch and a checkpoint
_STEPS = {  # from a state to the next one on the way to "active" with new parameters
    "active": Transition.TRANSITION_DEACTIVATE,
    "inactive": Transition.TRANSITION_CLEANUP,
}


class RigControl:
    """One client of the rig that is up in this ROS domain. Use as a context manager."""

    def __init__(self, domain_id: int | None = None) -> None:
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain_id, signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node("vla_rig_control", context=self._context, enable_rosout=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)

    def __enter__(self) -> RigControl:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def rig(self) -> str:
        """Returns the rig that is up: a name, or the path of its file. Raises DeviceError: none is."""
        return self._parameter("proprioception", "rig")

    def use_policy(self, checkpoint: str) -> None:
        """Makes the policy node load `checkpoint` unless it has; a rollout that runs is aborted.

        Raises:
            PolicyError: it cannot be loaded. DeviceError: no policy node is up.
        """
        if self._parameter("policy", "checkpoint") == checkpoint and self._state() == "active":
            return
        while (state := self._state()) in _STEPS:
            self._change(_STEPS[state])
        value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=checkpoint)
        answer = self._call(
            SetParameters, "/policy/set_parameters", SetParameters.Request(parameters=[Parameter(name="checkpoint", value=value)])
        )
        if not answer.results[0].successful:
            raise PolicyError(f"the policy node does not take policy '{checkpoint}': {answer.results[0].reason}")
        if not (self._change(Transition.TRANSITION_CONFIGURE, _LOAD_S) and self._change(Transition.TRANSITION_ACTIVATE)):
            raise PolicyError(
                f"policy '{checkpoint}' cannot be used on this rig; the log of /policy (vla up) says why. Try another with --policy"
            )

    def _parameter(self, node: str, name: str) -> str:
        answer = self._call(GetParameters, f"/{node}/get_parameters", GetParameters.Request(names=[name]))
        return answer.values[0].string_value

    def _state(self) -> str:
        return self._call(GetState, "/policy/get_state", GetState.Request()).current_state.label

    def _change(self, transition: int, timeout_s: float = _DISCOVERY_S) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return self._call(ChangeState, "/policy/change_state", request, timeout_s).success

    def _call(self, kind: type, name: str, request: object, timeout_s: float = _DISCOVERY_S) -> object:
        client = self._node.create_client(kind, name)
        try:
            if not client.wait_for_service(timeout_sec=_DISCOVERY_S):
                raise DeviceError(f"nobody offers {name}: is a rig up in this ROS domain (vla up RIG)?")
            future, deadline = client.call_async(request), time.monotonic() + timeout_s
            while not future.done():
                if time.monotonic() > deadline:
                    raise DeviceError(f"{name} did not answer within {timeout_s:.0f} s; the node's log says why")
                self._executor.spin_once(timeout_sec=0.05)
            return future.result()
        finally:
            self._node.destroy_client(client)
