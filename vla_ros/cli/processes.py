"""Runs the nodes of a rig as processes under honcho: prefixed logs, one stop for all, the reason when one dies."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TextIO

from honcho.manager import Manager
from honcho.printer import Message, Printer
from honcho.process import Popen, Process

from vla_ros.core.errors import DeviceError
from vla_ros.core.rig import NodeSpec

STOP_WAIT_S = 8.0
LAST_LINES = 12
_PR_SET_PDEATHSIG = 1


def command_line(spec: NodeSpec, python: str = sys.executable) -> list[str]:
    """Returns the command that runs one node: `python -m vla_ros.nodes.<executable> --ros-args ...`."""
    command = [python, "-m", f"{spec.package}.nodes.{spec.executable}", "--ros-args", "-r", f"__node:={spec.name}"]
    if spec.namespace.strip("/"):
        command += ["-r", f"__ns:=/{spec.namespace.strip('/')}"]
    for source, target in spec.remappings:
        command += ["-r", f"{source}:={target}"]
    for name, value in spec.parameters.items():
        command += ["-p", f"{name}:={_yaml_scalar(value)}"]
    return ["nice", "-n", str(spec.nice), *command] if spec.nice else command


def full_name(spec: NodeSpec) -> str:
    """Returns the ROS name of a node, e.g. "/camera/front"."""
    return "/".join(["", *filter(None, [spec.namespace.strip("/"), spec.name])])


def die_with_parent(signum: int = signal.SIGTERM, parent: int | None = None) -> None:
    """Asks Linux to send `signum` to this process when its parent dies, so that a killed `vla` leaves no node behind.

    Args:
        signum: the signal.
        parent: the parent's process id; one that has died before this call is missed otherwise.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signum)


def run_nodes(
    specs: Sequence[NodeSpec], environment: Mapping[str, str], output: TextIO = sys.stdout, on_started: Callable[[], None] | None = None
) -> None:
    """Runs the nodes until SIGINT or SIGTERM; blocks the main thread.

    Args:
        specs: the nodes.
        environment: of every node.
        output: where their log lines go.
        on_started: called in its own thread once all processes exist.

    Raises:
        DeviceError: a node ended by itself; names it and repeats its last lines.
    """
    manager = _NodeManager(output, on_started)
    for spec in specs:
        # "exec": the shell that honcho starts becomes the node, so that signals and the exit status are the node's own.
        manager.add_process(full_name(spec)[1:], "exec " + shlex.join(command_line(spec)), env=dict(environment))
    manager.loop()
    if manager.died:
        name, status = next(iter(manager.died.items()))
        lines = "\n".join(f"  {line}" for line in manager.last_lines(name)) or "  (it printed nothing)"
        raise DeviceError(f"node /{name} {_describe(status)}, so the rig was stopped. Its last lines:\n{lines}")


def _yaml_scalar(value: object) -> str:
    """A parameter as rcl parses it: text is quoted, or a name such as "1e3", "no" or "" would arrive as another type."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value)


def _describe(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


class _Printer(Printer):
    """Honcho's printer that remembers the last lines of each process."""

    def __init__(self, output: TextIO) -> None:
        super().__init__(output)
        self.last: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=LAST_LINES))

    def write(self, message: Message) -> None:
        text = message.data.decode("utf-8", "replace") if isinstance(message.data, bytes) else message.data
        self.last[message.name].extend(text.rstrip().splitlines())
        super().write(message)


class _NodeProcess(Process):
    """A node that ends when `vla` is gone, whichever way it went."""

    def run(self, events: object = None, ignore_signals: bool = False) -> None:
        die_with_parent(signal.SIGKILL, multiprocessing.parent_process().pid)
        self._child_ctor = partial(Popen, preexec_fn=partial(die_with_parent, signal.SIGTERM, os.getpid()))
        super().run(events, ignore_signals)


class _Interrupter:
    """Honcho's view of the operating system, with SIGINT first: what a ROS node shuts down cleanly on."""

    def terminate(self, pid: int) -> None:
        _signal_group(pid, signal.SIGINT)

    def kill(self, pid: int) -> None:
        _signal_group(pid, signal.SIGKILL)


def _signal_group(pid: int, signum: int) -> None:
    with suppress(ProcessLookupError):  # it ended in the meantime: what the signal was to bring about
        os.killpg(pid, signum)


class _NodeManager(Manager):
    """Honcho's manager; remembers which node ended first, and kills what does not stop in time."""

    def __init__(self, output: TextIO, on_started: Callable[[], None] | None) -> None:
        printer = _Printer(output)
        super().__init__(printer)
        self.last_lines = lambda name: list(printer.last[name])
        self.died: dict[str, int] = {}
        self._process_ctor = _NodeProcess
        self._procmgr = _Interrupter()
        self._on_started = on_started

    def terminate(self) -> None:
        if not self._terminating:
            # On a signal no process has ended yet; otherwise the one that did is the reason.
            self.died = {name: process["returncode"] for name, process in self._processes.items() if "returncode" in process}
            killer = threading.Timer(STOP_WAIT_S, self.kill)
            killer.daemon = True
            killer.start()
        super().terminate()

    def _start(self) -> None:
        super()._start()
        if self._on_started is not None:
            threading.Thread(target=self._on_started, daemon=True, name="on_started").start()

    def _killall(self, force: bool = False) -> None:
        for process in self._processes.values():
            if "returncode" not in process and process.get("pid"):
                (self._procmgr.kill if force else self._procmgr.terminate)(process["pid"])


def stop_process(process: subprocess.Popen, wait_s: float = STOP_WAIT_S + 4.0) -> int:
    """Interrupts a child, waits, kills it if it stays; returns its exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()
