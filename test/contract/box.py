"""A device box: the device's end of a protocol in a process of its own, over an arm without physics.

As a program: `python box.py FIRMWARE EMBODIMENT ARM OPTIONS_JSON` prints "ready", then answers each line on its input with one line:
`inject NAME` and `clear` with "ok", `motion` with the arm's speed in the last seconds as JSON; `quit` ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from vla_ros.cli.processes import die_with_parent
from vla_ros.core.devices import load_device
from vla_ros.core.embodiment import load_embodiment
from vla_ros.sim.plant import KinematicPlant

STEP_S = 0.002
LOG_STEP_S = 0.01
_LOG_S = 20.0
_LATE_S = 0.05  # farther behind than this the box gives way: the machine was busy


class BoxError(Exception):
    """A box did not start, has died or refuses what it was asked."""


class Box:
    """Context manager around one box's process; `kill` and `start` are the unplugged and the restarted device.

    Args:
        command: the program and its arguments.
        environment: of the process, over this one's.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._command, self._environment = list(command), {**os.environ, **(environment or {})}
        self._process: subprocess.Popen | None = None
        self._received = b""

    def __enter__(self) -> Box:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def start(self, timeout_s: float = 60.0) -> None:
        """Starts the process, unless it runs, and waits until its ports are open."""
        if self._process is not None:
            return
        self._received = b""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=self._environment,
            preexec_fn=partial(die_with_parent, 9),
        )
        try:
            self._expect("ready", timeout_s)
        except BoxError:
            self.kill()
            raise

    def kill(self) -> None:
        """Ends the process at once. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def inject(self, fault: str) -> None:
        """Makes something go wrong with the device, until `clear`; returns once it has begun."""
        self._ask(f"inject {fault}")
        self._expect("ok")

    def clear(self) -> None:
        """Ends all injected faults; what the device latches, it keeps."""
        self._ask("clear")
        self._expect("ok")

    def motion(self) -> np.ndarray:
        """[N, 2]: stamp (ns since the epoch) and measured joint speed (norm, rad/s) of the last 20 s, every 10 ms of the arm's time."""
        self._ask("motion")
        return np.array(json.loads(self._answer(10.0)), dtype=np.float64).reshape(-1, 2)

    def _ask(self, line: str) -> None:
        if self._process is None:
            raise BoxError(f"{line}: the box does not run")
        self._process.stdin.write(f"{line}\n".encode())

    def _expect(self, answer: str, timeout_s: float = 10.0) -> None:
        given = self._answer(timeout_s)
        if given != answer:
            raise BoxError(f"{' '.join(self._command[1:4])}: {given or 'it has ended'}")

    def _answer(self, timeout_s: float) -> str:
        """Returns one line, "" when the process has ended. Raises BoxError after the deadline."""
        deadline, output = time.monotonic() + timeout_s, self._process.stdout
        while b"\n" not in self._received:
            if not select.select([output], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise BoxError(f"{' '.join(self._command[1:4])}: no answer within {timeout_s:g} s")
            received = os.read(output.fileno(), 1 << 16)
            if not received:
                return ""
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()


class Device(Protocol):
    """What a box's process runs."""

    def start(self) -> None: ...

    def step(self) -> float:
        """Lets `STEP_S` pass; returns the arm's measured speed (norm over the joints, rad/s)."""

    def inject(self, fault: str) -> None: ...

    def clear(self) -> None: ...

    def close(self) -> None: ...


class FirmwareDevice:
    """A firmware of `vla_ros/sim` over a plant that only follows its targets."""

    def __init__(self, firmware: str, embodiment: str, arm: str, options: Mapping[str, object]) -> None:
        self._plant = KinematicPlant(load_embodiment(embodiment).robots[arm])
        self._firmware = load_device({}, firmware)(self._plant, options)
        self.start, self.inject, self.clear, self.close = (getattr(self._firmware, name) for name in ("start", "inject", "clear", "close"))

    def step(self) -> float:
        self._firmware.step(STEP_S)
        self._plant.step(STEP_S)
        return float(np.linalg.norm(self._plant.measure().velocity))


def serve(device: Device) -> None:
    """Steps on absolute deadlines and answers the lines on the input, until `quit` or the input's end."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not look like an answer
    asked: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    with contextlib.suppress(PermissionError):
        os.nice(-10)  # other tests may keep the machine busy, and this one must keep time
    log: deque[tuple[int, float]] = deque(maxlen=round(_LOG_S / LOG_STEP_S))
    device.start()
    print("ready", file=answers)
    deadline, step, line = time.monotonic(), 0, ""
    while line != "quit":
        speed = device.step()
        step += 1
        if step % round(LOG_STEP_S / STEP_S) == 0:
            log.append((time.time_ns(), round(speed, 5)))
        with contextlib.suppress(queue.Empty):
            line = asked.get_nowait().strip()
            print(_answer_to(line, device, log), file=answers)
        deadline = max(deadline + STEP_S, time.monotonic() - _LATE_S)
        time.sleep(max(0.0, deadline - time.monotonic()))
    device.close()


def _listen(asked: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        asked.put(line)
    asked.put("quit")


def _answer_to(line: str, device: Device, log: deque[tuple[int, float]]) -> str:
    word, _, rest = line.partition(" ")
    actions: dict[str, Callable[[], object]] = {"inject": lambda: device.inject(rest), "clear": device.clear, "quit": lambda: None}
    if word == "motion":
        return json.dumps(list(log))
    if word not in actions:
        return f"no such request: {line}"
    try:
        actions[word]()
    except Exception as error:  # belongs to who asked
        return f"{line}: {error!r}"
    return "ok"


if __name__ == "__main__":
    serve(FirmwareDevice(*sys.argv[1:4], json.loads(sys.argv[4])))
