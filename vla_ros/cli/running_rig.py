"""A rig of one's own: `vla up` as a child process, on a ROS domain and a loopback address that nobody else uses."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

import yaml

from vla_ros.cli.environment import environment
from vla_ros.cli.processes import full_name, stop_process
from vla_ros.core.embodiment import find_config
from vla_ros.core.errors import ConfigError, DeviceError
from vla_ros.core.rig import load_rig, node_specs

if TYPE_CHECKING:
    from vla_ros.cli.rollout_client import RolloutClient

_DOMAINS = range(1, 101)  # the domains whose ports lie below Linux's ephemeral ones
_LAST_LINES = 20


class OwnDomain:
    """A ROS domain that no other `vla demo` or `vla eval` of this machine uses, for as long as this object lives."""

    def __init__(self) -> None:
        for domain in _DOMAINS:
            lock = _open_lock(Path(tempfile.gettempdir()) / f"vla_ros-domain-{domain}.lock")
            if lock is None:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            self.id, self._lock = domain, lock  # held open: the lock lives with it
            return
        raise DeviceError(f"all ROS domains from {_DOMAINS[0]} to {_DOMAINS[-1]} are in use by other vla processes; end some of them")

    @property
    def address(self) -> str:
        """A loopback address that goes with the domain, so that two simulated control boxes never meet."""
        return f"127.0.0.{self.id + 1}"

    def close(self) -> None:
        self._lock.close()


def _open_lock(path: Path) -> TextIO | None:
    """Opens a lock file for reading, which is enough for a lock: it may be another user's. None: not even that is allowed."""
    try:
        if not path.exists():
            path.touch(mode=0o644)
        return path.open()
    except PermissionError:
        return None


def write_own_rig(rig: str, address: str, folder: Path) -> Path:
    """Writes a copy of a simulated rig's file that listens at `address` into `folder`; returns its path.

    Raises:
        ConfigError: the rig is not simulated.
    """
    source = find_config("rigs", rig)
    content = yaml.safe_load(source.read_text(encoding="utf-8"))
    if not content.get("simulation"):
        raise ConfigError(f"rig '{source.stem}' has no simulation, and demo and eval need one; on a robot: vla up, then vla rollout")
    if "/" in content["embodiment"]:  # relative to the rig's own folder
        content["embodiment"] = str((source.parent / content["embodiment"]).resolve())
    content["simulation"]["address"] = address
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / source.name
    header = f"# Copy of the rig '{source.stem}' as this run used it; only the simulator's address differs.\n"
    copy.write_text(header + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return copy


class RunningRig:
    """`vla up` in the background, its log in a file. Use as a context manager; leaving it stops the rig.

    Args:
        rig: path of the rig's file.
        log: file for the nodes' log lines.
        domain_id: ROS domain of the rig.
        policy: checkpoint that replaces the rig's; None: the rig's.
        executor: likewise.
    """

    def __init__(self, rig: Path, log: Path, domain_id: int, policy: str | None = None, executor: str | None = None) -> None:
        command = [sys.executable, "-m", "vla_ros.cli", "up", str(rig), "--background"]
        command += ["--policy", policy] if policy else []
        command += ["--executor", executor] if executor else []
        self.log = log
        self._output: TextIO = log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True,
            env={**environment(os.environ), "ROS_DOMAIN_ID": str(domain_id)},
        )  # fmt: skip

    def __enter__(self) -> RunningRig:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def check(self) -> None:
        """Raises DeviceError with the end of the log when the rig has ended by itself."""
        status = self._process.poll()
        if status is not None:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            # `vla up` ends its log with its own message, which names the node; without one, the log's end has to do.
            own = next((k for k, line in enumerate(lines) if line.startswith("vla: ")), len(lines) - _LAST_LINES)
            raise DeviceError("\n  ".join([f"the rig ended by itself (status {status}), see {self.log}:", *lines[max(own, 0) :]]))

    def stop(self) -> None:
        """Stops all nodes. Idempotent."""
        stop_process(self._process)
        self._output.close()


@contextmanager
def own_rig(rig: str, folder: Path, policy: str | None, executor: str | None, record: bool) -> Iterator[tuple[RolloutClient, str]]:
    """Starts a simulated rig of one's own, waits until it is up and yields (client, name of the rig); stops it at the end.

    The rig's file and its log (`rig.log`) go into `folder`.
    """
    domain = OwnDomain()
    try:
        path = write_own_rig(rig, domain.address, folder)
        with RunningRig(path, folder / "rig.log", domain.id, policy, executor) as running:
            # The rest of this process gives way to the rig that it has just started.
            os.nice(5)
            from vla_ros.cli.rollout_client import RolloutClient

            resolved = load_rig(str(path))
            with RolloutClient(resolved, running.check, record, domain.id) as client:
                client.wait_until_active([full_name(spec) for spec in node_specs(resolved, policy=policy)])
                yield client, resolved.name
    finally:
        domain.close()
