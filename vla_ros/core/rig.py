"""What runs: `config/rigs/<name>.yaml`, read into `Rig`, and the nodes that it means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from vla_ros.core import yaml
from vla_ros.core.embodiment import Embodiment, find_config, load_embodiment
from vla_ros.core.errors import ConfigError, did_you_mean
from vla_ros.core.executors import make_executor, parse_executor

# Beside a simulator that must keep real time, pictures give way. The policy node must not, for it times the commands: it lets only its
# inference thread give way.
CAMERA_NICE = 5
EXTERNAL = "external"
BRIDGES = ("openpi", "lerobot")  # policies of other projects: `<name>:<where>`


@dataclass(frozen=True)
class SimulationRig:
    """The simulator: `scene` is a name of `sim.SIMULATORS`, `seed` of the first placement.

    `address` is the loopback address of its control boxes; `{address}` in a device's options stands for it, so that a copy of the rig
    beside the first one differs in this one place. `firmware` holds further keyword arguments of the robots' firmware.
    """

    scene: str
    address: str
    seed: int = 0
    firmware: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class RobotRig:
    """Who drives one arm: `driver` is a name of `robots.ROBOTS` or module:Class, `options` its keyword arguments."""

    driver: str
    options: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class CameraRig:
    """Who reads one camera: `driver` is a name of `cameras.CAMERAS` or module:Class, `options` its keyword arguments.

    `external` means that a node of another package publishes `/camera/<name>/color/*`; this rig then starts none.

    A picture that stays identical for `frozen_after_s` while its stamps advance is a frozen camera; 0 switches the test off.
    With the default it is told within 0.5 s at 15 Hz and more.
    """

    driver: str
    options: dict[str, object] = field(default_factory=dict)
    frozen_after_s: float = 0.35


@dataclass(frozen=True)
class PolicyRig:
    """`checkpoint` is a folder of config/checkpoints, a path, "script", openpi://HOST:PORT, lerobot:FOLDER or module:Class.

    `executor` holds `name` and the options of `make_executor`, `options` the keyword arguments of the policy's class.
    """

    checkpoint: str
    inference_hz: float = 10.0
    executor: dict[str, object] = field(default_factory=lambda: {"name": "ensemble", "weighting": "age"})
    options: dict[str, object] = field(default_factory=dict)

    def problems(self) -> Iterator[tuple[str, str]]:
        if not 0 < self.inference_hz <= 1000:
            yield "inference_hz", f"{self.inference_hz}, expected above 0 and at most 1000"
        if "name" not in self.executor:
            yield "executor", "the key name is missing"
        else:
            try:
                make_executor(**self.executor)
            except ConfigError as error:
                yield "executor", str(error)


@dataclass(frozen=True)
class RigFile:
    """The keys of a rig file."""

    embodiment: str
    robots: dict[str, RobotRig]
    cameras: dict[str, CameraRig]
    policy: PolicyRig | None = None
    simulation: SimulationRig | None = None


@dataclass(frozen=True)
class Rig:
    """A rig file with its embodiment, the site file laid over it. `robots` and `cameras` have the embodiment's names."""

    name: str
    path: Path
    embodiment: Embodiment
    robots: dict[str, RobotRig]
    cameras: dict[str, CameraRig]
    policy: PolicyRig | None
    simulation: SimulationRig | None

    def frozen_after_s(self) -> dict[str, float | None]:
        """What `ObservationBuffer` takes: camera -> s, None where the test is off."""
        return {name: camera.frozen_after_s or None for name, camera in self.cameras.items()}

    def policy_options(self, checkpoint: str) -> dict[str, object]:
        """The rig's options for `checkpoint`: of the rig's own, or of one of the same kind (the same bridge at another address)."""
        own = self.policy.checkpoint if self.policy else ""
        kind = own.partition(":")[0]
        same = checkpoint == own or (kind in BRIDGES and checkpoint.partition(":")[0] == kind)
        return dict(self.policy.options) if self.policy and same else {}


@dataclass(frozen=True)
class NodeSpec:
    """One ROS node, however it is started. `parameters` are ROS parameters, `nice` is the process priority (0 normal)."""

    package: str
    executable: str
    name: str
    namespace: str = "/"
    parameters: dict[str, object] = field(default_factory=dict)
    remappings: list[tuple[str, str]] = field(default_factory=list)
    nice: int = 0


def load_rig(name_or_path: str | Path) -> Rig:
    """Reads `config/rigs/<name>.yaml` or a path, with `site.yaml` of the same config folder laid over it.

    Raises:
        ConfigError: `file:line: key: what is wrong`; a null value in options names the key to fill in the site file.
    """
    path = find_config("rigs", name_or_path)
    node = yaml.read(path)
    site = site_file(path)
    if site.is_file():
        overlays = yaml.read(site).value
        node = yaml.merge(node, overlays[path.stem]) if path.stem in overlays else node
    file: RigFile = yaml.build(node, RigFile)
    for key, leaf in node.leaves():
        if leaf.value is None:
            raise leaf.error(key, f"null, to be filled for this machine: set {path.stem}.{key} in {site} (see config/site.example.yaml)")
    try:
        embodiment = load_embodiment(_beside(path, file.embodiment))
    except ConfigError as error:
        raise node.value["embodiment"].error("embodiment", str(error)) from None
    _match(node, "robots", file.robots, embodiment.robots, embodiment.name)
    _match(node, "cameras", file.cameras, embodiment.cameras, embodiment.name)
    robots = {name: replace(robot, options=_addressed(robot.options, file.simulation)) for name, robot in file.robots.items()}
    cameras = {name: replace(camera, options=_addressed(camera.options, file.simulation)) for name, camera in file.cameras.items()}
    return Rig(path.stem, path, embodiment, robots, cameras, file.policy, file.simulation)


def site_file(rig_path: Path) -> Path:
    """The untracked file with this machine's addresses and serials: `config/site.yaml`, or `site.yaml` beside a lone rig file."""
    folder = rig_path.parent.parent if rig_path.parent.name == "rigs" else rig_path.parent
    return folder / "site.yaml"


def _addressed(options: dict[str, object], simulation: SimulationRig | None) -> dict[str, object]:
    """The options with `{address}` replaced by the simulation's, in rigs that have one."""
    if simulation is None:
        return options
    return {key: value.replace("{address}", simulation.address) if isinstance(value, str) else value for key, value in options.items()}


def _beside(rig_path: Path, embodiment: str) -> str:
    """An embodiment given as a path is relative to the rig file."""
    return str(rig_path.parent / embodiment) if "/" in embodiment or embodiment.endswith((".yaml", ".yml")) else embodiment


def _match(node: yaml.Node, section: str, given: dict, needed: object, embodiment: str) -> None:
    entries = node.value[section]
    for name in given:
        if name not in needed:
            raise entries.value[name].error(f"{section}.{name}", f"embodiment {embodiment} has no such entry; {did_you_mean(name, needed)}")
    for name in needed:
        if name not in given:
            raise entries.error(f"{section}.{name}", f"the key is missing: embodiment {embodiment} has it")


def node_specs(rig: Rig, *, policy: str | None = None, executor: str | None = None, with_policy: bool = True) -> list[NodeSpec]:
    """Returns the nodes of a rig, in the order in which their logs read best; any order of starting works.

    Args:
        rig: from `load_rig`.
        policy: checkpoint instead of the rig's.
        executor: executor instead of the rig's, as `executors.parse_executor` reads it ("ensemble:weighting=age,m=2").
        with_policy: False leaves the policy node out (teleoperation, tests).

    Raises:
        ConfigError: a policy is wanted and neither the rig nor `policy` names one; `executor` is not one.
    """
    if executor:
        parse_executor(executor)
    simulated = rig.simulation is not None
    common = {"rig": str(rig.path)}
    specs = [NodeSpec("vla_ros", "simulation_node", "simulation", parameters=dict(common))] if simulated else []
    specs += [NodeSpec("vla_ros", "robot_node", name, parameters=common | {"device": name}) for name in rig.robots]
    specs += [
        NodeSpec("vla_ros", "camera_node", name, "/camera", common | {"device": name}, nice=CAMERA_NICE if simulated else 0)
        for name, camera in rig.cameras.items()
        if camera.driver != EXTERNAL
    ]
    specs.append(NodeSpec("vla_ros", "proprioception_node", "proprioception", parameters=dict(common)))
    if with_policy:
        if policy is None and rig.policy is None:
            raise ConfigError(f"{rig.path}: no policy section; add one, name a policy, or run without")
        overrides = {"checkpoint": policy, "executor": executor}
        parameters = common | {key: value for key, value in overrides.items() if value}
        specs.append(NodeSpec("vla_ros", "policy_node", "policy", parameters=parameters))
    return specs
