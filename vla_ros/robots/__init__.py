"""Robot drivers by name; a driver implements `core.interfaces.Robot`. A name with a ":" in a rig is an import path instead."""

ROBOTS: dict[str, str] = {
    "franka": "vla_ros.robots.franka:Franka",
    "kinova": "vla_ros.robots.kinova:Kinova",
    "piper": "vla_ros.robots.piper:Piper",
    "viperx": "vla_ros.robots.viperx:ViperX",
    "ros2_control": "vla_ros.nodes.ros2_control:Ros2ControlArm",
}
