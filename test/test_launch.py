"""The launch files: their arguments, and with launch_ros installed the nodes that they start."""

import ast
import importlib.util
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

from vla_ros.cameras import CAMERAS
from vla_ros.core.embodiment import config_dir
from vla_ros.core.errors import ConfigError
from vla_ros.core.rig import load_rig, node_specs
from vla_ros.core.urdf import load_urdf
from vla_ros.robots import ROBOTS

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
REAL = {"franka", "kinova", "piper", "aloha", "aloha_piper"}
ARGUMENTS = {"bringup.launch.py": ["rig"], "rollout.launch.py": ["rig", "policy", "executor", "rviz"]}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_declares_its_arguments_with_a_description(name: str):
    calls = [node for node in ast.walk(ast.parse((LAUNCH / name).read_text())) if isinstance(node, ast.Call)]
    declared = [call for call in calls if ast.unparse(call.func) == "DeclareLaunchArgument"]
    assert [call.args[0].value for call in declared] == ARGUMENTS[name]
    assert all({keyword.arg for keyword in call.keywords} >= {"default_value", "description"} for call in declared)


def nodes(name: str, **arguments: str) -> tuple[list[str], dict[str, str]]:
    """Returns (executables of the nodes that would be started, environment that they would see)."""
    # A folder named launch/ imports as an empty namespace package: ask for a module inside.
    pytest.importorskip("launch_ros.actions", reason="launch_ros is not among the ROS wheels; this needs a ROS distribution")
    from launch import LaunchContext
    from launch.actions import IncludeLaunchDescription, OpaqueFunction, SetEnvironmentVariable
    from launch.utilities import normalize_to_list_of_substitutions, perform_substitutions
    from launch_ros.actions import Node

    spec = importlib.util.spec_from_file_location("launch_file", LAUNCH / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    context = LaunchContext()
    defaults = {"rig": "franka_sim", "policy": "", "executor": "", "rviz": "false"}
    context.launch_configurations.update({**defaults, **arguments})
    executables, variables = [], {}
    queue = list(module.generate_launch_description().entities)
    while queue:
        entity = queue.pop(0)
        if entity.condition is not None and not entity.condition.evaluate(context):
            continue
        if isinstance(entity, Node):
            executables.append(perform_substitutions(context, normalize_to_list_of_substitutions(entity.node_executable)))
        elif isinstance(entity, SetEnvironmentVariable):
            variables[perform_substitutions(context, entity.name)] = perform_substitutions(context, entity.value)
        elif isinstance(entity, IncludeLaunchDescription):
            queue += entity.launch_description_source.get_launch_description(context).entities
        elif isinstance(entity, OpaqueFunction):
            queue += entity.execute(context) or []
    return executables, variables


def test_bringup_starts_the_devices_and_no_policy():
    started, variables = nodes("bringup.launch.py")
    devices = ["camera_node", "camera_node", "proprioception_node", "robot_node", "simulation_node"]
    assert sorted(name for name in started if name != "robot_state_publisher") == devices
    assert Path(variables["FASTDDS_DEFAULT_PROFILES_FILE"]).is_file()


def test_rollout_starts_everything():
    started, _ = nodes("rollout.launch.py", executor="ensemble")
    assert started.count("policy_node") == 1 and started.count("robot_node") == 1
    from ament_index_python.packages import get_packages_with_prefixes

    assert started.count("robot_state_publisher") == int("robot_state_publisher" in get_packages_with_prefixes())
    assert "rviz2" not in started


def test_rviz_on_request():
    assert "rviz2" in nodes("rollout.launch.py", rviz="true")[0]


def test_a_profile_of_the_users_own_stays():
    from vla_ros.cli.environment import dds_profile

    assert dds_profile({"FASTDDS_DEFAULT_PROFILES_FILE": "/own.xml"}) == {"FASTDDS_DEFAULT_PROFILES_FILE": "/own.xml"}
    assert set(dds_profile({"ROS_DISTRO": "humble"})) == {"FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"}
    assert Path(dds_profile(dict(os.environ))["FASTDDS_DEFAULT_PROFILES_FILE"]).is_file()


RIGS = sorted(path.stem for path in (config_dir() / "rigs").glob("*.yaml"))


@pytest.mark.parametrize("name", RIGS)
def test_every_rig_starts_its_nodes_or_says_what_the_site_file_lacks(name: str, tmp_path: Path):
    """On a copy of config/ without a site file; the nulls are then filled as on a machine."""
    shutil.copytree(config_dir(), tmp_path / "config", ignore=shutil.ignore_patterns("site.yaml"))
    shutil.copytree(config_dir().parent / "urdf", tmp_path / "urdf")
    path = tmp_path / "config" / "rigs" / f"{name}.yaml"
    file = yaml.safe_load(path.read_text())
    lacking = [
        (section, device, option)
        for section in ("robots", "cameras")
        for device, entry in file[section].items()
        for option, value in entry.get("options", {}).items()
        if value is None
    ]
    assert bool(lacking) == (name in REAL), "real rigs have something to fill in, others run as they are"
    if lacking:
        wanted = re.escape(f"set {name}.{'.'.join(lacking[0][:2])}.options.{lacking[0][2]} in {tmp_path}/config/site.yaml")
        with pytest.raises(ConfigError, match=rf"{name}.yaml:\d+: .*null.* {wanted}"):
            load_rig(path)
        site: dict = {}
        for section, device, option in lacking:
            site.setdefault(section, {}).setdefault(device, {}).setdefault("options", {})[option] = "filled"
        (tmp_path / "config" / "site.yaml").write_text(yaml.safe_dump({name: site}))
    rig = load_rig(path)
    specs = node_specs(rig, policy="script")
    started = Counter(spec.executable for spec in specs)
    ours = [camera for camera in rig.cameras.values() if camera.driver != "external"]
    assert (
        started
        == Counter(
            robot_node=len(rig.embodiment.robots),
            camera_node=len(ours),
            proprioception_node=1,
            policy_node=1,
            simulation_node=int(rig.simulation is not None),
        )
        - Counter()
    )
    assert len({(spec.namespace, spec.name) for spec in specs}) == len(specs), "two nodes of one name"
    assert '<robot name="' in load_urdf(rig.embodiment.urdf)
    for entry in rig.robots.values():
        assert entry.driver in ROBOTS
    for camera in ours:
        assert camera.driver in CAMERAS
