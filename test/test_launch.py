"""The launch files: their arguments, and with launch_ros installed the nodes that they start."""

import ast
import importlib.util
import os
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
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
    assert sorted(started) == ["camera_node", "camera_node", "proprioception_node", "robot_node", "simulation_node"]
    assert Path(variables["FASTDDS_DEFAULT_PROFILES_FILE"]).is_file()


def test_rollout_starts_everything():
    started, _ = nodes("rollout.launch.py", executor="ensemble")
    assert started.count("policy_node") == 1 and started.count("robot_node") == 1
    assert "rviz2" not in started


def test_rviz_on_request():
    assert "rviz2" in nodes("rollout.launch.py", rviz="true")[0]


def test_a_profile_of_the_users_own_stays():
    from vla_ros.cli.environment import dds_profile

    assert dds_profile({"FASTDDS_DEFAULT_PROFILES_FILE": "/own.xml"}) == {"FASTDDS_DEFAULT_PROFILES_FILE": "/own.xml"}
    assert set(dds_profile({"ROS_DISTRO": "humble"})) == {"FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"}
    assert Path(dds_profile(dict(os.environ))["FASTDDS_DEFAULT_PROFILES_FILE"]).is_file()
