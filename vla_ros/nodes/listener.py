"""One subscription with an executor and a thread of its own: a message then costs a wait set of one topic, not of the whole node."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile


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


class Listener:
    """Calls `heard` with each message, in its own thread, until `close`. What `heard` raises ends it; `check` raises it to its caller."""

    def __init__(self, node: Node, message_type: type, topic: str, heard: Callable, profile: QoSProfile) -> None:
        self._crash: BaseException | None = None
        self._group = _OneThread()
        subscription = node.create_subscription(message_type, topic, heard, profile, callback_group=self._group)
        self._executor = _Executor(node, subscriptions=[subscription], waitables=list(subscription.event_handlers))
        self._thread = threading.Thread(target=self._run, name=topic, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Returns when the last call is over; the subscription goes with its node. Call it without a lock that `heard` takes."""
        self._executor.shutdown()
        self._thread.join()

    def check(self) -> None:
        if self._crash is not None:
            raise self._crash

    def _run(self) -> None:
        self._group.thread = threading.get_ident()
        try:
            self._executor.spin()
        except Exception as error:
            self._crash = error
