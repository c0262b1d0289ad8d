"""The robot node's own threads: the steady loop and the listener end with what went wrong, and let go when told."""

from __future__ import annotations

import threading
import time

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from vla_ros.cli.running_rig import OwnDomain
from vla_ros.nodes import qos
from vla_ros.nodes.listener import Listener
from vla_ros.nodes.spinning import Spinning
from vla_ros.nodes.steady_loop import SteadyLoop, locked


def wait_for(condition, what: str, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.005)


def test_the_loop_steps_until_it_is_stopped_and_starts_again():
    steps = []
    loop = SteadyLoop("test", 0.002, lambda: steps.append(time.monotonic()))
    for _ in range(2):
        steps.clear()
        loop.start()
        wait_for(lambda: len(steps) >= 10, "ten steps")
        loop.stop()
        count = len(steps)
        loop.stop()
        time.sleep(0.02)
        assert len(steps) == count
        loop.check()


def test_steps_that_a_slow_one_misses_are_skipped():
    steps = []

    def step() -> None:
        steps.append(time.monotonic())
        if len(steps) == 1:
            time.sleep(0.1)

    loop = SteadyLoop("test", 0.01, step)
    loop.start()
    wait_for(lambda: len(steps) >= 6, "six steps")
    loop.stop()
    assert steps[5] - steps[1] > 0.03, "what was missed is not made up for in a burst"


def test_a_crash_ends_the_loop_and_is_raised_where_it_is_asked_for():
    def step() -> None:
        raise RuntimeError("the arm's thread fell over")

    loop = SteadyLoop("test", 0.001, step)
    loop.start()
    wait_for(lambda: loop._crash is not None, "the crash")
    with pytest.raises(RuntimeError, match="fell over"):
        loop.check()
    loop.stop()


def test_locked_keeps_other_threads_out():
    class Counter:
        def __init__(self) -> None:
            self._lock, self.value = threading.RLock(), 0

        @locked
        def add(self) -> None:
            value = self.value
            time.sleep(0.001)
            self.value = value + 1

    counter = Counter()
    threads = [threading.Thread(target=counter.add) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value == 10


@pytest.fixture
def node():
    domain, context = OwnDomain(), rclpy.Context()
    rclpy.init(context=context, domain_id=domain.id, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("listening", context=context)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)
    domain.close()


def test_a_listener_hears_in_its_own_thread_and_tells_its_crash(node):
    heard = []

    def on_message(message: String) -> None:
        heard.append((message.data, threading.current_thread().name))
        if message.data == "bad":
            raise ValueError("cannot bear this one")

    listener = Listener(node, String, "/words", on_message, qos.COMMAND)
    publisher = node.create_publisher(String, "/words", qos.COMMAND)
    try:
        wait_for(lambda: publisher.get_subscription_count() == 1, "discovery")
        publisher.publish(String(data="good"))
        wait_for(lambda: heard == [("good", "/words")], "the message, without anybody spinning the node")
        listener.check()
        publisher.publish(String(data="bad"))
        wait_for(lambda: listener._crash is not None, "the crash")
        with pytest.raises(ValueError, match="cannot bear"):
            listener.check()
    finally:
        listener.close()


def test_a_thread_about_to_wait_hears_that_it_is_closed(node):
    """rclpy's own `shutdown` loses this race: the thread then waits for a message that may never come."""
    executor, about_to_wait, closed = SingleThreadedExecutor(context=node.context), threading.Event(), threading.Event()
    nodes = executor.get_nodes

    def between_the_look_and_the_wait():
        about_to_wait.set()
        closed.wait(20.0)
        return nodes()

    executor.get_nodes = between_the_look_and_the_wait
    spinning = Spinning(executor, "spinning")
    assert about_to_wait.wait(20.0)
    closing = threading.Thread(target=spinning.close, daemon=True)
    closing.start()
    wait_for(spinning._closed.done, "told to close")
    closed.set()
    closing.join(20.0)
    assert not closing.is_alive()
