"""NodeSpec -> launch_ros, for the files of launch/. Knows nothing of rigs."""

from __future__ import annotations

from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from vla_ros.core.rig import NodeSpec


def launch_node(spec: NodeSpec) -> Node:
    """Returns the launch action that starts `spec`; the nodes configure and activate themselves (parameter `autostart`)."""
    return Node(
        package=spec.package,
        executable=spec.executable,
        name=spec.name,
        namespace=spec.namespace,
        exec_name=spec.name,  # in the log; it would say "nice" otherwise
        # Text stays text: launch_ros would read "yes" or "1e3" as YAML.
        parameters=[{key: ParameterValue(value, value_type=type(value)) for key, value in spec.parameters.items()}],
        remappings=spec.remappings,
        prefix=f"nice -n {spec.nice}" if spec.nice else None,
        output="screen",
        emulate_tty=True,
    )
