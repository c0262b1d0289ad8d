"""Starts the devices of a rig (robots, cameras, proprioception, simulator) and, where it is installed, robot_state_publisher.

ros2 launch vla_ros bringup.launch.py rig:=franka
"""

from ament_index_python.packages import get_packages_with_prefixes
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from vla_ros.cli.environment import launch_variables
from vla_ros.core.rig import load_rig, node_specs
from vla_ros.core.urdf import load_urdf
from vla_ros.nodes.launching import launch_node


def devices(context: LaunchContext) -> list:
    rig = load_rig(context.launch_configurations["rig"])
    return [launch_node(spec) for spec in node_specs(rig, with_policy=False)]


def transforms(context: LaunchContext) -> list:
    rig = load_rig(context.launch_configurations["rig"])
    foreign = any(robot.driver == "ros2_control" for robot in rig.robots.values())  # whose own launch file publishes the transforms
    if foreign or "robot_state_publisher" not in get_packages_with_prefixes():
        return []  # it is not among the ROS wheels; only rviz and tf need it
    description = ParameterValue(load_urdf(rig.embodiment.urdf), value_type=str)  # launch_ros would read it as YAML
    return [Node(package="robot_state_publisher", executable="robot_state_publisher", parameters=[{"robot_description": description}])]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument("rig", default_value="franka_sim", description="name in config/rigs, or a path to a YAML file"),
            *(SetEnvironmentVariable(name, value) for name, value in launch_variables().items()),
            OpaqueFunction(function=devices),
            OpaqueFunction(function=transforms),
        ]
    )
