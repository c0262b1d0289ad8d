"""ament_python package: `colcon build` installs the Python package, the configuration, the launch files and the executables."""

from pathlib import Path

from setuptools import find_packages, setup

NODES = ("robot_node", "camera_node", "proprioception_node", "policy_node", "simulation_node")
SHARED = ("config", "launch", "urdf")


def data_files() -> list[tuple[str, list[str]]]:
    """Every file below the shared folders, kept in its folder, relative to this file as setuptools wants it."""
    root = Path(__file__).resolve().parent
    folders: dict[str, list[str]] = {}
    for top in SHARED:
        for path in sorted((root / top).rglob("*")):
            relative = path.relative_to(root)
            if path.is_file() and "__pycache__" not in relative.parts and relative.name != "site.yaml":
                folders.setdefault(f"share/vla_ros/{relative.parent}", []).append(str(relative))
    return [
        ("share/ament_index/resource_index/packages", ["resource/vla_ros"]),
        ("share/vla_ros", ["package.xml"]),
        *sorted(folders.items()),
    ]


setup(
    name="vla_ros",
    version="0.1.0",
    description="Vision-language-action policies on robots over ROS 2",
    maintainer="vla_ros maintainers",
    maintainer_email="maintainers@vla-ros.example",
    license="Apache-2.0",
    packages=find_packages(include=["vla_ros", "vla_ros.*"]),
    data_files=data_files(),
    install_requires=["setuptools"],
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "vla = vla_ros.cli.main:main",
            *(f"{name} = vla_ros.nodes.{name}:main" for name in NODES),
        ]
    },
)
