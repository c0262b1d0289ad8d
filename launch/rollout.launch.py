"""Starts a whole rig: what bringup.launch.py starts, its policy, rviz on request.

ros2 launch vla_ros rollout.launch.py rig:=franka policy:=robovlms_franka executor:=ensemble rviz:=true
Then: vla rollout "pick up the red block and put it on the plate" --rig franka
"""

from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from vla_ros.core.embodiment import config_dir
from vla_ros.core.rig import load_rig, node_specs
from vla_ros.nodes.launching import launch_node


def policy(context: LaunchContext) -> list:
    chosen = context.launch_configurations
    specs = node_specs(load_rig(chosen["rig"]), policy=chosen["policy"] or None, executor=chosen["executor"] or None)
    return [launch_node(spec) for spec in specs if spec.executable == "policy_node"]


def generate_launch_description() -> LaunchDescription:
    bringup = PythonLaunchDescriptionSource(str(Path(__file__).with_name("bringup.launch.py")))
    return LaunchDescription(
        [
            DeclareLaunchArgument("rig", default_value="franka_sim", description="name in config/rigs, or a path to a YAML file"),
            DeclareLaunchArgument("policy", default_value="", description="checkpoint, 'script' or module:Class; empty: the rig's own"),
            DeclareLaunchArgument("executor", default_value="", description="chunk, first, ensemble or rtc; empty: the rig's own"),
            DeclareLaunchArgument("rviz", default_value="false", choices=["true", "false"], description="start rviz2"),
            IncludeLaunchDescription(bringup, launch_arguments={"rig": LaunchConfiguration("rig")}.items()),
            OpaqueFunction(function=policy),
            Node(
                package="rviz2",
                executable="rviz2",
                arguments=["-d", str(config_dir() / "rviz" / "rollout.rviz")],
                condition=IfCondition(LaunchConfiguration("rviz")),
            ),
        ]
    )
