"""What the process environment must hold, so that nothing has to be sourced.

With the ROS wheels the virtual environment *is* the ROS prefix and its own bootstrap sets the library path.
With a ROS distribution `make setup` wrote the sourced paths to `<venv>/ros.json`; they are set here, and because the
dynamic linker reads LD_LIBRARY_PATH only when a process starts, Python starts itself once more if that one changed.
In a colcon workspace of the user's own there is no such file, and the sourced environment holds the paths already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from vla_ros.core.embodiment import config_dir

PATH_VARIABLES = ("AMENT_PREFIX_PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PATH")
_READ_AT_START = ("LD_LIBRARY_PATH", "PYTHONPATH")
_DEFAULTS = {
    "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",  # robots in one building must not hear each other by accident
    "MUJOCO_GL": "egl",  # renders without a display
    "LP_NUM_THREADS": "1",  # Mesa's software renderer would take every core from the control loop
    "OMP_NUM_THREADS": "1",
}


def profile_path() -> Path:
    """Returns the Fast DDS profile, from the source tree or from the installed share folder."""
    return config_dir() / "dds" / "fastdds.xml"


def dds_profile(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variables that make Fast DDS read the profile; a profile of the user's own stays.

    Args:
        base: the environment to look at.
    """
    # Humble's Fast DDS 2.6 knows only the older name.
    names = ["FASTDDS_DEFAULT_PROFILES_FILE", *(["FASTRTPS_DEFAULT_PROFILES_FILE"] if base.get("ROS_DISTRO") == "humble" else [])]
    return {name: base.get(name, str(profile_path())) for name in names}


def launch_variables(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns what a launch file sets: the profile, and discovery on this machine only unless the user said otherwise."""
    name = "ROS_AUTOMATIC_DISCOVERY_RANGE"
    return dds_profile(base) | {name: base.get(name, _DEFAULTS[name])}


def ros_record() -> dict:
    """Returns what `make setup` wrote about ROS: `{"kind", "distro", "environment"}`; empty in a workspace it did not make."""
    path = Path(sys.prefix) / "ros.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """Returns `base` with all that vla_ros needs; what the user has set stays.

    Args:
        base: the environment to start from, usually `os.environ`.
    """
    result = dict(base)
    for name, value in ros_record().get("environment", {}).items():
        result[name] = _joined(value, result.get(name, "")) if name in PATH_VARIABLES else result.get(name, value)
    for name, value in {**dds_profile(result), **_DEFAULTS}.items():
        result.setdefault(name, value)
    return result


def prepare() -> None:
    """Completes `os.environ`; starts this Python once more where a change comes too late for the running one."""
    wanted = environment(os.environ)
    restart = any(wanted.get(name) != os.environ.get(name) for name in _READ_AT_START)
    os.environ.update(wanted)
    if restart:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


def _joined(first: str, rest: str) -> str:
    """Joins two path lists, each entry once: setting a prepared environment again changes nothing."""
    return os.pathsep.join(dict.fromkeys(part for part in [*first.split(os.pathsep), *rest.split(os.pathsep)] if part))


if __name__ == "__main__":  # python -m vla_ros.cli.environment COMMAND...: runs it with ROS, for make and for other tools
    sys.exit(subprocess.run(sys.argv[1:], env=environment(os.environ), check=False).returncode)
