"""The policy node's ends of the robots' topics: status in, commands out, and who drives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vla_msgs.msg import RobotCommand, RobotStatus
from vla_msgs.srv import SetSource
from vla_ros.core.embodiment import Embodiment
from vla_ros.core.errors import DataError
from vla_ros.core.types import Action
from vla_ros.nodes import msgs, qos
from vla_ros.nodes.chunk_check import by_robot
from vla_ros.nodes.lifecycle import VlaNode

_TIMEOUT_NS = 2_000_000_000


class RobotLinks:
    """All robots of an embodiment. Nothing here blocks: the answer to `select` is polled.

    Args:
        node: on which topics and clients are made.
        embodiment: names the robots.
        source: who we are, "policy".
        heard: (robot, report) is called for each status.
    """

    def __init__(self, node: VlaNode, embodiment: Embodiment, source: str, heard: Callable[[str, msgs.RobotReport], None]) -> None:
        self._node, self._embodiment, self._source, self._heard = node, embodiment, source, heard
        self._sequence = 0
        self._asked, self._asked_ns = "", 0
        self._calls = {}
        robots = embodiment.robots
        self._commands = {name: node.create_publisher(RobotCommand, f"/{name}/command", qos.COMMAND) for name in robots}
        self._clients = {name: node.create_client(SetSource, f"/{name}/set_source") for name in robots}
        listen = partial(node.create_subscription, RobotStatus)
        self._statuses = [listen(f"/{name}/status", partial(self._on_status, name), qos.STATUS) for name in robots]

    def send(self, action: Action) -> None:
        """Sends each robot its part of `action`."""
        for name, part in by_robot(action, self._embodiment):
            message = msgs.command_msg(part)
            message.sequence = self._sequence
            self._commands[name].publish(message)
        self._sequence += 1

    def hold(self, now_ns: int, reason: str) -> None:
        """Tells all robots to hold, and why."""
        for publisher in self._commands.values():
            publisher.publish(msgs.hold_msg(now_ns, self._source, self._sequence, reason))
        self._sequence += 1

    def select(self, source: str) -> None:
        """Asks all robots to follow `source`; `answer` tells how it went."""
        self._asked, self._asked_ns = source, self._node.steady_ns()
        for name, call in self._calls.items():
            self._clients[name].remove_pending_request(call)
        ready = {name: client for name, client in self._clients.items() if client.service_is_ready()}
        self._calls = {name: client.call_async(SetSource.Request(source=source)) for name, client in ready.items()}

    def answer(self) -> str | None:
        """Returns None while waiting, "" when every robot has taken the source, else the first reason why not."""
        for name in self._clients:
            if name not in self._calls:
                return f"{name}: its node offers no set_source"
            if self._calls[name].done() and not self._calls[name].result().success:
                return f"{name}: {self._calls[name].result().message}"
        silent = [name for name, call in self._calls.items() if not call.done()]
        if silent and self._node.steady_ns() - self._asked_ns > _TIMEOUT_NS:
            return f"{silent[0]}: no answer to set_source '{self._asked}' for {_TIMEOUT_NS * 1e-9:g} s"
        return None if silent else ""

    def close(self) -> None:
        """Gives everything back to the node."""
        for subscription in self._statuses:
            self._node.destroy_subscription(subscription)
        for name, client in self._clients.items():
            self._node.destroy_client(client)
            self._node.destroy_publisher(self._commands[name])

    def _on_status(self, name: str, message: RobotStatus) -> None:
        try:
            self._heard(name, msgs.report_of(message))
        except DataError as error:
            self._node.get_logger().error(f"{name}: {error}", throttle_duration_sec=1.0)
