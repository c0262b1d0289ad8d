"""One subscription with an executor and a thread of its own: a message then costs a wait set of one topic, not of the whole node."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile

from vla_ros.nodes.spinning import Spinning


class _OneThread(MutuallyExclusiveCallbackGroup):
    """Closed to every thread but `thread`: the node's own executor passes its entities by."""

    thread: int | None = None

    def can_execute(self, entity) -> bool:
        return threading.get_ident() == self.thread and super().can_execute(entity)


class _Executor(SingleThreadedExecutor):
    """An executor asks its nodes for their entities; this one has a part of a node."""

    def __init__(self, node: Node, **entities: list) -> None:
        super().__init__(context=node.context)
        kinds = {kind: [] for kind in ("subscriptions", "guards", "timers", "clients", "services", "waitables")}
        self._part = SimpleNamespace(**kinds | entities)

    def get_nodes(self) -> list:
        return [self._part]


class Listener(Spinning):
    """Calls `heard` with each message, in its own thread, until `close`; the subscription goes with its node."""

    def __init__(self, node: Node, message_type: type, topic: str, heard: Callable, profile: QoSProfile) -> None:
        self._group = _OneThread()
        subscription = node.create_subscription(message_type, topic, heard, profile, callback_group=self._group)
        super().__init__(_Executor(node, subscriptions=[subscription], waitables=list(subscription.event_handlers)), topic)

    def _run(self) -> None:
        self._group.thread = threading.get_ident()
        super()._run()
