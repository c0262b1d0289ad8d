"""What `make setup` needs from the machine. Each missing thing is one line that says what to install. Standard library only."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

WHEEL_PYTHONS = ((3, 11), (3, 12))
DISK_GB = 4.0
DISTRIBUTIONS = ("humble", "jazzy", "kilted")


@dataclass(frozen=True)
class Ros:
    """Where ROS comes from.

    Attributes:
        kind: "wheels" (from PyPI) or "distribution" (sourced on this machine).
        distro: e.g. "kilted".
        python: (major, minor) that it was built for; None with the wheels, which exist for several.
    """

    kind: str
    distro: str
    python: tuple[int, int] | None = None

    def __str__(self) -> str:
        where = "wheels" if self.kind == "wheels" else "of this machine"
        return f"ROS 2 {self.distro.capitalize()} {where}"


def find_ros(venv: Path) -> Ros:
    """Returns the sourced distribution, or the wheels where none is sourced."""
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p and Path(p) != venv]
    distro = os.environ.get("ROS_DISTRO", "")
    for prefix in prefixes:
        for folder in sorted(prefix.glob("lib/python3.*/site-packages/rclpy")) + sorted(
            prefix.glob("local/lib/python3.*/dist-packages/rclpy")
        ):
            major, minor = folder.parents[1].name[len("python") :].split(".")
            return Ros("distribution", distro or prefix.name, (int(major), int(minor)))
    return Ros("wheels", "kilted")


def find_python(ros: Ros) -> str | None:
    """Returns a Python that fits the ROS, can make a virtual environment and has its headers (rosidl compiles against them)."""
    versions = (ros.python,) if ros.python else WHEEL_PYTHONS
    names = [f"python{major}.{minor}" for major, minor in versions]
    if ros.kind == "distribution":  # a pyenv or conda Python does not see the packages of the system's ROS
        candidates = [f"/usr/bin/{name}" for name in names]
    else:
        candidates = [os.environ.get("PYTHON", ""), "python3", *names, "python", *(f"/usr/bin/{name}" for name in names)]
    for candidate in candidates:
        path = shutil.which(candidate) if candidate else None
        if path and _usable(path, versions):
            return path
    return None


def problems(ros: Ros, python: str | None, root: Path, installed: bool) -> list[str]:
    """Returns one line per thing that is missing, each with what to install.

    Args:
        ros: the ROS to use.
        python: what `find_python` found.
        root: the repository.
        installed: whether the packages are there already, so that they need no more disk.
    """
    found = []
    if ros.kind == "distribution" and ros.distro not in DISTRIBUTIONS:
        found.append(f"ROS 2 '{ros.distro}' is not supported; source one of {', '.join(DISTRIBUTIONS)}, or none to use the wheels")
    if ros.kind == "wheels" and (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        found.append(f"there are no ROS wheels for {platform.system()} {platform.machine()}: install ROS 2 Jazzy and source its setup.bash")
    if python is None:
        major, minor = ros.python or (3, 11)
        wanted = f"{major}.{minor}" if ros.python else "3.11 or 3.12"
        package = f"python{major}.{minor}"
        found.append(f"Python {wanted} with venv and headers is missing: sudo apt install {package} {package}-venv {package}-dev")
    for tools, package in ((("c++", "g++", "clang++"), "g++"), (("cmake",), "cmake"), (("make", "ninja"), "make")):
        if not any(shutil.which(tool) for tool in tools):
            found.append(f"{tools[0]} is missing: sudo apt install {package}")
    free_gb = shutil.disk_usage(root).free / 1e9
    if not installed and free_gb < DISK_GB:
        found.append(f"{free_gb:.1f} GB free at {root}, {DISK_GB:.0f} GB needed: free some disk or clone to another one")
    return found


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers, so that torch should come with CUDA."""
    tool = shutil.which("nvidia-smi")
    return bool(tool) and subprocess.run([tool, "-L"], capture_output=True, check=False).returncode == 0


def _usable(python: str, versions: tuple) -> bool:
    probe = (
        "import sys, os, venv, ensurepip, sysconfig;"
        "print(*sys.version_info[:2], os.path.exists(os.path.join(sysconfig.get_paths()['include'], 'Python.h')))"
    )
    # Outside the repository and isolated: neither a local file nor a sourced PYTHONPATH may take part.
    result = subprocess.run([python, "-I", "-c", probe], capture_output=True, text=True, check=False, cwd="/")
    fields = result.stdout.split()
    return result.returncode == 0 and (int(fields[0]), int(fields[1])) in versions and fields[2] == "True"
