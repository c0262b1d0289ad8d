"""Starts the devices of a rig (robots, cameras, proprioception, simulator), everything but the policy.

ros2 launch vla_ros bringup.launch.py rig:=franka
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable

from vla_ros.cli.environment import launch_variables
from vla_ros.core.rig import load_rig, node_specs
from vla_ros.nodes.launching import launch_node


def devices(context: LaunchContext) -> list:
    rig = load_rig(context.launch_configurations["rig"])
    return [launch_node(spec) for spec in node_specs(rig, with_policy=False)]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument("rig", default_value="franka_sim", description="name in config/rigs, or a path to a YAML file"),
            *(SetEnvironmentVariable(name, value) for name, value in launch_variables().items()),
            OpaqueFunction(function=devices),
        ]
    )
