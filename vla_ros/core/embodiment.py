"""What a robot is: `config/embodiments/<name>.yaml`, read into `Embodiment`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vla_ros.core import yaml
from vla_ros.core.errors import ConfigError, did_you_mean

Problems = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Gripper:
    """A parallel gripper: opening between the fingers (m) and grasp force (N)."""

    width_min_m: float
    width_max_m: float
    force_n: float

    def problems(self) -> Problems:
        if self.width_min_m >= self.width_max_m:
            yield "width_min_m", f"{self.width_min_m} is not below width_max_m = {self.width_max_m}"
        if self.force_n <= 0:
            yield "force_n", f"{self.force_n}, expected > 0"


@dataclass(frozen=True)
class RobotDescription:
    """One arm: N joints in the order of `joints`, limits [N] in that order, TCP limits in `base_frame`.

    `velocity_max_rad_s`, `tcp_velocity_max_m_s`, `tcp_rotation_max_rad_s`: a faster command is slowed down.
    `joint_step_max_rad`, `tcp_step_max_m`, `tcp_step_max_rad`: a command farther than this from the measured pose is rejected.
    `workspace_min_m`, `workspace_max_m`: box for the TCP; up to `workspace_margin_m` outside is clamped, farther is rejected.
    `clearance_m`: how close links may come to each other and to the table (`table_z_m` in `base_frame`; None: there is no table).
    `urdf` (a .urdf or .xacro file), `base_frame`, `tcp_frame` are the embodiment's unless the arm has its own; `joint_prefix` stands before
    the names of its joints and links in the URDF ("left_" where two arms share one), and before the embodiment's `tcp_frame`.
    """

    joints: tuple[str, ...]
    position_min_rad: tuple[float, ...]
    position_max_rad: tuple[float, ...]
    velocity_max_rad_s: tuple[float, ...]
    home_rad: tuple[float, ...]
    tcp_velocity_max_m_s: float
    tcp_rotation_max_rad_s: float
    tcp_step_max_m: float
    tcp_step_max_rad: float
    joint_step_max_rad: float
    workspace_min_m: tuple[float, float, float]
    workspace_max_m: tuple[float, float, float]
    workspace_margin_m: float = 0.0
    clearance_m: float = 0.01
    table_z_m: float | None = None
    gripper: Gripper | None = None
    urdf: str = ""
    base_frame: str = ""
    tcp_frame: str = ""
    joint_prefix: str = ""
    name: str = field(default="", metadata={"key": True})

    def problems(self) -> Problems:
        count = len(self.joints)
        if not count or len(set(self.joints)) != count:
            yield "joints", f"{', '.join(self.joints) or 'no joints'}: expected at least one joint, each named once"
        for key in ("position_min_rad", "position_max_rad", "velocity_max_rad_s", "home_rad"):
            if len(getattr(self, key)) != count:
                yield key, f"{len(getattr(self, key))} values, expected {count} (one a joint)"
        for joint, low, high, home in zip(self.joints, self.position_min_rad, self.position_max_rad, self.home_rad, strict=True):
            if low >= high:
                yield "position_min_rad", f"{joint}: {low} is not below position_max_rad = {high}"
            if not low <= home <= high:
                yield "home_rad", f"{joint}: {home} lies outside {low} .. {high}"
        for axis, low, high in zip("xyz", self.workspace_min_m, self.workspace_max_m, strict=True):
            if low >= high:
                yield "workspace_min_m", f"{axis}: {low} is not below workspace_max_m = {high}"
        positive = ("tcp_velocity_max_m_s", "tcp_rotation_max_rad_s", "tcp_step_max_m", "tcp_step_max_rad", "joint_step_max_rad")
        for key in positive:
            if getattr(self, key) <= 0:
                yield key, f"{getattr(self, key)}, expected > 0"
        if min(self.velocity_max_rad_s) <= 0:
            yield "velocity_max_rad_s", f"{min(self.velocity_max_rad_s)}, expected > 0"
        for key in ("workspace_margin_m", "clearance_m"):
            if getattr(self, key) < 0:
                yield key, f"{getattr(self, key)}, expected >= 0"


@dataclass(frozen=True)
class Control:
    """How the policy node drives the robot: what the targets are and how many commands a second it sends."""

    mode: Literal["joint_position", "joint_velocity", "tcp_pose"]
    rate_hz: float

    def problems(self) -> Problems:
        if not 1 <= self.rate_hz <= 1000:
            yield "rate_hz", f"{self.rate_hz}, expected 1 .. 1000"


@dataclass(frozen=True)
class Embodiment:
    """A robot with one arm ("arm") or two ("left", "right"), its cameras by name, its frames and its control mode."""

    name: str
    prompt: str
    base_frame: str
    tcp_frame: str
    urdf: str
    control: Control
    robots: dict[str, RobotDescription]
    cameras: tuple[str, ...]

    def problems(self) -> Problems:
        if len(self.robots) != 1 and set(self.robots) != {"left", "right"}:
            yield "robots", f"{', '.join(self.robots) or 'none'}: expected one arm, or the two arms left and right"
        if len(set(self.cameras)) != len(self.cameras):
            yield "cameras", f"{', '.join(self.cameras)}: a camera is named twice"

    def prefix(self, robot: str) -> str:
        """What stands before the channels of `robot`: "" for a single arm, "left" or "right" on two."""
        return robot if len(self.robots) > 1 else ""


def config_dir() -> Path:
    """Returns the folder config/ of the source tree, else of the installed package's share folder. Raises ConfigError."""
    here = Path(__file__).resolve()
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix, *map(str, here.parents)]
    places = [here.parents[2] / "config", *(Path(prefix) / "share" / "vla_ros" / "config" for prefix in prefixes if prefix)]
    for place in places:
        if (place / "embodiments").is_dir():
            return place
    raise ConfigError(
        f"config/ of vla_ros was not found beside {here.parents[1]} nor in share/vla_ros of AMENT_PREFIX_PATH: "
        "install the package or run in its source tree"
    )


def find_config(folder: str, name_or_path: str | Path) -> Path:
    """Returns the YAML file of a name in config/`folder`, or of a path (it has a "/" or ends in .yaml). Raises ConfigError."""
    text = str(name_or_path)
    if "/" in text or text.endswith((".yaml", ".yml")):
        path = Path(text).expanduser().resolve()
        if not path.is_file():
            raise ConfigError(f"{path}: there is no such file")
        return path
    path = config_dir() / folder / f"{text}.yaml"
    if not path.is_file():
        names = [file.stem for file in (config_dir() / folder).glob("*.yaml")]
        raise ConfigError(f"'{text}' is not in config/{folder}; {did_you_mean(text, names)}, or a path to a YAML file")
    return path


def load_embodiment(name_or_path: str | Path) -> Embodiment:
    """Reads `config/embodiments/<name>.yaml` or a path; `urdf` becomes absolute.

    Raises:
        ConfigError: `file:line: robots.arm.position_max_rad: 6 values, expected 7 (one a joint)` and the like.
    """
    path = find_config("embodiments", name_or_path)
    embodiment = yaml.load(path, Embodiment)
    # urdf: is relative to the folder that holds config/ and urdf/; for a lone file to the file itself
    root = path.parents[2] if path.parent.name == "embodiments" and path.parents[1].name == "config" else path.parent
    robots = {}
    for name, robot in embodiment.robots.items():
        arm = embodiment.prefix(name)
        prefix = robot.joint_prefix or (f"{arm}_" if arm and not robot.urdf else "")
        robots[name] = replace(
            robot,
            urdf=str(root / (robot.urdf or embodiment.urdf)),
            base_frame=robot.base_frame or embodiment.base_frame,
            tcp_frame=robot.tcp_frame or f"{prefix}{embodiment.tcp_frame}",
            joint_prefix=prefix,
        )
    return replace(embodiment, urdf=str(root / embodiment.urdf), robots=robots)
