"""The URDF of an embodiment as text; a .xacro file is expanded first."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from vla_ros.core.errors import ConfigError, NotInstalled


@lru_cache(maxsize=8)
def load_urdf(path: str) -> str:
    """Returns the URDF (XML) of a .urdf or .xacro file.

    Raises:
        ConfigError: there is no such file, or it cannot be expanded. NotInstalled: a .xacro file, and xacro is missing.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{path}: there is no such URDF; set `urdf` in the embodiment")
    if not path.endswith(".xacro"):
        return Path(path).read_text(encoding="utf-8")
    try:
        import xacro
    except ModuleNotFoundError:
        raise NotInstalled(f"{path} needs xacro: run `make setup`, pip install xacro, or sudo apt install ros-$ROS_DISTRO-xacro") from None
    try:
        return xacro.process_file(path).toprettyxml(indent=" ")
    except xacro.XacroException as error:
        raise ConfigError(f"{path}: xacro cannot expand it: {error}") from error
