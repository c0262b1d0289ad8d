"""Robot drivers by name; a driver implements `core.interfaces.Robot`. A name with a ":" in a rig is an import path instead."""

ROBOTS: dict[str, str] = {
    "franka": "vla_ros.robots.franka:Franka",
}
