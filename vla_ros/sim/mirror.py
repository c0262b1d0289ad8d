"""The simulator for other processes: its state in one small file in shared memory, written by one, read by any, and its model beside it.

A reader never blocks the simulator: it copies, and tries again when the sequence number says that it read half of two states.
"""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

from vla_ros.core.errors import DeviceError

_SHARED = Path("/dev/shm")
_PATIENCE_S, _PAUSE_S = 0.1, 0.0005
_HEADER = np.dtype([("sequence", "<u8"), ("count", "<u8"), ("time_s", "<f8"), ("stamp_ns", "<i8")])


@dataclass(frozen=True)
class Snapshot:
    """`qpos` [nq] as MuJoCo orders it, simulated time (s), and when it was taken (ns since the epoch)."""

    qpos: np.ndarray
    time_s: float
    stamp_ns: int


def mirror_path(address: str, domain: int | None = None) -> Path:
    """The file of the simulator at `address` in a ROS domain (that of the environment by default)."""
    domain = int(os.environ.get("ROS_DOMAIN_ID") or 0) if domain is None else domain
    return _SHARED / f"vla_ros-{os.getuid()}-{domain}-{address}"


def find_mirror(address: str | None = None) -> Path:
    """The file of the simulator at `address`; None: of the one that was started last in this ROS domain.

    Raises:
        DeviceError: no address is given and no simulator runs.
    """
    if address is not None:
        return mirror_path(address)
    found = [path for path in _SHARED.glob(mirror_path("*").name) if path.name.count(".") == 3]
    if not found:
        raise DeviceError(f"no simulation runs in ROS domain {os.environ.get('ROS_DOMAIN_ID') or 0}: start it (vla up franka_sim)")
    return max(found, key=lambda path: path.stat().st_ctime_ns)


def _model_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.mjb")


class MirrorWriter:
    """Owns the files of one simulator. A new one takes the place of what a killed one left."""

    def __init__(self, path: Path, model: mujoco.MjModel) -> None:
        self._path, count = path, model.nq
        compiled = path.with_name(f"{path.name}.{os.getpid()}.mjb")
        mujoco.mj_saveModel(model, str(compiled))
        compiled.chmod(0o600)
        compiled.replace(_model_path(path))
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_bytes(bytes(_HEADER.itemsize + 8 * count))
        partial.chmod(0o600)
        self._header, self._qpos = _views(partial, writable=True)
        self._header["count"] = count
        partial.replace(path)
        self._inode = path.stat().st_ino

    def write(self, qpos: np.ndarray, time_s: float, stamp_ns: int) -> None:
        """Publishes one state. An odd sequence number means: being written."""
        header = self._header
        header["sequence"] += 1
        self._qpos[:] = qpos
        header["time_s"], header["stamp_ns"] = time_s, stamp_ns
        header["sequence"] += 1

    def close(self) -> None:
        """Removes the files, unless another simulator has replaced them."""
        if self._path.exists() and self._path.stat().st_ino == self._inode:
            self._path.unlink()
            _model_path(self._path).unlink(missing_ok=True)


class MirrorReader:
    """Reads the newest state, and follows a simulator that was started anew.

    `model` is the scene that the states are of; after a restart of the simulator it is another object.
    """

    model: mujoco.MjModel

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = -1
        self._follow()

    def read(self) -> Snapshot:
        """Returns the newest state; its stamp stands still when the simulator does.

        Raises:
            DeviceError: no simulator has written one.
        """
        self._follow()
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            before = int(self._header["sequence"])
            qpos, time_s, stamp_ns = self._qpos.copy(), float(self._header["time_s"]), int(self._header["stamp_ns"])
            if before % 2 == 0 and before == int(self._header["sequence"]):
                if before == 0:
                    break
                return Snapshot(qpos, time_s, stamp_ns)
            time.sleep(_PAUSE_S)  # on a busy machine the writer may be kept from running half-way
        raise DeviceError(f"{self._path}: no state of the simulation yet, or it died while writing one: start it anew (vla up franka_sim)")

    def _follow(self) -> None:
        try:
            inode = self._path.stat().st_ino
        except FileNotFoundError:
            if self._inode < 0:
                raise DeviceError(
                    f"{self._path}: no simulation runs here: start it (vla up franka_sim) with the same ROS_DOMAIN_ID and address"
                ) from None
            return
        if inode != self._inode:
            self.model = mujoco.MjModel.from_binary_path(str(_model_path(self._path)))
            self._header, self._qpos = _views(self._path, writable=False)
            self._inode = inode


def _views(path: Path, writable: bool) -> tuple[np.ndarray, np.ndarray]:
    with path.open("r+b" if writable else "rb") as stream:
        buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
    return np.frombuffer(buffer, _HEADER, 1)[0:1].reshape(()), np.frombuffer(buffer, "<f8", offset=_HEADER.itemsize)
