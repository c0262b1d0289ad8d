"""The table, what lies on it, the cameras, and a robot before it: one MJCF for physics, pictures and demonstrations.

The Franka comes with franky-sim's own scene, every other arm from its URDF (`arms.arm_scene`).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from math import cos, pi, sin
from pathlib import Path
from typing import TYPE_CHECKING

from vla_ros.sim.drawer import add_drawer
from vla_ros.sim.layout import Layout, layout_of
from vla_ros.sim.meshes import light_mesh
from vla_ros.sim.tasks import BAR, BLOCKS, CONTAINERS, TRAY
from vla_ros.sim.world import (
    BAR_M,
    BLOCK_M,
    BOWL_FLOOR_M,
    BOWL_RADIUS_M,
    BOWL_RIM_M,
    HANDLE_M,
    PLATE_RADIUS_M,
    PLATE_TOP_M,
    TRAY_M,
)

if TYPE_CHECKING:
    from franky_sim.mujoco_simulator import MujocoSimulator

ROBOT = "robot0_"
TCP_FROM_HAND_M = 0.1034
COLOUR_RGBA = {
    "red block": "0.85 0.10 0.08 1",
    "green block": "0.10 0.62 0.18 1",
    "blue block": "0.08 0.22 0.85 1",
    "plate": "0.95 0.94 0.90 1",
    "bowl": "0.98 0.74 0.12 1",
    BAR: "0.93 0.86 0.10 1",
    TRAY: "0.55 0.30 0.60 1",
}
GRIP = {"friction": "1.3 0.01 0.001", "condim": "4", "solref": "0.005 1", "solimp": "0.95 0.99 0.001"}
_KP_SCALE, _KV_SCALE = 2.0, 0.3  # franky-sim's own gains lag 100 ms, these 14 ms


def build_simulator(initial_q: tuple[float, ...], drawer: bool = False) -> MujocoSimulator:
    """Returns a franky-sim simulator that holds the whole scene and is not yet started; `initial_q` [7] rad.

    With `drawer` there is a drawer instead of plate and bowl.
    """
    from franky_sim.mujoco_simulator import MUJOCO_DEFAULT_KP, MUJOCO_DEFAULT_KV, MujocoSimulator

    simulator = MujocoSimulator(enable_visualization=False)
    simulator.add_robot(
        initial_q=initial_q,
        initial_hand_width=0.08,
        kp=tuple(_KP_SCALE * value for value in MUJOCO_DEFAULT_KP),
        kv=tuple(_KV_SCALE * value for value in MUJOCO_DEFAULT_KV),
    )
    scene = simulator.scene
    scene.find("worldbody/geom[@name='ground']").set("pos", "0 0 -0.7")
    _add_look(scene)
    _lighten(scene)
    _tune_hand(scene.find("worldbody"))
    furnish(scene, layout_of("franka"), drawer)
    return simulator


def furnish(scene: ET.Element, layout: Layout, drawer: bool = False) -> None:
    """Adds the table, the objects and the cameras."""
    world = scene.find("worldbody")
    _add_table(world)
    if drawer:
        add_drawer(world, GRIP)
    else:
        for name in CONTAINERS:
            _add_container(world, name)
    for name in BLOCKS:
        add_loose(world, name, "0.06", [("box", [BLOCK_M / 2] * 3, (0.0, 0.0, 0.0))])
    if layout.bimanual:
        add_loose(world, BAR, "0.06", [("box", [side / 2 for side in BAR_M], (0.0, 0.0, 0.0))])
        add_loose(world, TRAY, "0.2", _tray())
    for name, camera in layout.cameras.items():
        parent = world if camera.body == "world" else world.find(f".//body[@name='{camera.body}']")
        ET.SubElement(parent, "camera", name=name, pos=camera.position, xyaxes=camera.axes, fovy=str(camera.fovy_deg))


def _add_look(scene: ET.Element) -> None:
    visual = scene.find("visual")
    ET.SubElement(visual, "global", offwidth="1280", offheight="960")
    ET.SubElement(visual, "map", znear="0.02", zfar="20")
    visual.find("headlight").attrib.update(ambient="0.35 0.35 0.35", diffuse="0.25 0.25 0.25")
    visual.find("quality").attrib.update(offsamples="0")
    asset = scene.find("asset")
    sky = {"rgb1": "0.80 0.86 0.92", "rgb2": "0.55 0.60 0.66", "width": "64", "height": "384"}
    ET.SubElement(asset, "texture", type="skybox", builtin="gradient", **sky)
    floor = asset.find("texture[@name='ground_checker']")
    floor.attrib.update(rgb1="0.50 0.52 0.55", rgb2="0.56 0.58 0.61")
    world = scene.find("worldbody")
    for light in ("fill_light", "rim_light"):
        world.remove(world.find(f"light[@name='{light}']"))
    key = world.find("light[@name='key_light']")
    key.attrib.update(pos="1.2 -0.9 1.6", dir="-0.45 0.55 -1", diffuse="0.62 0.60 0.56", specular="0.1 0.1 0.1")


def _lighten(scene: ET.Element) -> None:
    """Points visual geoms to light meshes; collision geoms keep theirs. Meshes that nothing shows are dropped."""
    folder = Path(scene.find("compiler").get("meshdir"))
    asset = scene.find("asset")
    files = {mesh.get("name"): mesh.get("file") for mesh in asset.findall("mesh")}
    shown = [geom for geom in scene.iter("geom") if geom.get("class") == "visual"]
    for name in sorted({geom.get("mesh") for geom in shown}):
        ET.SubElement(asset, "mesh", name=f"{name}_light", file=str(light_mesh(folder / files[name])), inertia="shell")
    for geom in shown:
        geom.set("mesh", f"{geom.get('mesh')}_light")
    used = {geom.get("mesh") for geom in scene.iter("geom")}
    for mesh in asset.findall("mesh"):
        if mesh.get("name") not in used:
            asset.remove(mesh)


def _tune_hand(world: ET.Element) -> None:
    """Gives the fingers their own friction and inertia (they inherit an arm joint's) and the hand its TCP."""
    for joint in (1, 2):
        world.find(f".//joint[@name='{ROBOT}finger_joint{joint}']").attrib.update(frictionloss="0", armature="0.1", damping="5")
    for finger in ("left", "right"):
        for geom in world.find(f".//body[@name='{ROBOT}{finger}_finger']").findall("geom"):
            if geom.get("class", "").startswith("fingertip"):
                geom.attrib.update(GRIP)
    ET.SubElement(world.find(f".//body[@name='{ROBOT}hand']"), "site", name="tcp", pos=f"0 0 {TCP_FROM_HAND_M}", group="5")


def _add_table(world: ET.Element) -> None:
    top = {"size": "0.62 0.62 0.02", "pos": "0.38 0 -0.02", "rgba": "0.60 0.47 0.36 1", "friction": "1 0.01 0.001"}
    ET.SubElement(world, "geom", name="table", type="box", **top)
    for x in (-0.18, 0.94):
        for y in (-0.56, 0.56):
            _add_shown(world, "box", "0.03 0.03 0.33", f"{x} {y} -0.37", "0.30 0.31 0.33 1")


def add_loose(world: ET.Element, name: str, mass: str, shapes: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> None:
    """Adds a body that moves freely, from shapes (kind, half sizes, position) of one colour that share its mass (kg)."""
    body = ET.SubElement(world, "body", name=name)
    ET.SubElement(body, "freejoint", name=name)
    for kind, size, position in shapes:
        geom = {"type": kind, "size": " ".join(map(str, size)), "mass": str(float(mass) / len(shapes)), "rgba": COLOUR_RGBA[name], **GRIP}
        if any(position):
            geom["pos"] = " ".join(map(str, position))
        ET.SubElement(body, "geom", **geom)


def _tray() -> list[tuple[str, list[float], tuple[float, float, float]]]:
    """A plate with two rims, and at both ends of its y axis an upright handle that a gripper closes on along x."""
    x, y, z = (side / 2 for side in TRAY_M)
    handle = [side / 2 for side in HANDLE_M]
    shapes = [("box", [x, y, z], (0.0, 0.0, z))]
    shapes += [("box", [0.003, y, 0.009], (side * (x - 0.003), 0.0, 0.009)) for side in (-1, 1)]
    return shapes + [("box", handle, (0.0, side * (y + handle[1]), handle[2])) for side in (-1, 1)]


def _add_container(world: ET.Element, name: str) -> None:
    """A plate or bowl that slides on the table when pushed hard, and never tips: two joints, so that it costs no contacts."""
    body = ET.SubElement(world, "body", name=name)
    for axis, direction in (("x", "1 0 0"), ("y", "0 1 0")):
        ET.SubElement(body, "joint", name=f"{name} {axis}", type="slide", axis=direction, frictionloss="1.5", damping="4")
    ET.SubElement(body, "inertial", pos="0 0 0.01", mass="0.4", diaginertia="0.001 0.001 0.001")
    if name == "plate":
        _add_disc(body, PLATE_RADIUS_M, PLATE_TOP_M)
        _add_shown(body, "cylinder", f"{PLATE_RADIUS_M} {PLATE_TOP_M / 2}", f"0 0 {PLATE_TOP_M / 2}", COLOUR_RGBA[name])
        _add_shown(body, "cylinder", f"{PLATE_RADIUS_M * 0.68} 0.0004", f"0 0 {PLATE_TOP_M}", "0.80 0.80 0.78 1")
        return
    _add_disc(body, BOWL_RADIUS_M, BOWL_FLOOR_M)
    _add_shown(body, "cylinder", f"{BOWL_RADIUS_M} {BOWL_FLOOR_M / 2}", f"0 0 {BOWL_FLOOR_M / 2}", "0.80 0.58 0.08 1")
    _add_wall(body, sides=16)


def _add_wall(body: ET.Element, sides: int) -> None:
    half_height, middle = (BOWL_RIM_M - 0.001) / 2, BOWL_RADIUS_M + 0.003
    half_width = (BOWL_RADIUS_M + 0.004) * sin(pi / sides) + 0.0015  # a little wide, so that no gap shows
    for side in range(sides):
        angle = 2 * pi * side / sides
        position = f"{middle * cos(angle)} {middle * sin(angle)} {0.001 + half_height}"
        size = f"0.003 {half_width} {half_height}"
        ET.SubElement(body, "geom", type="box", size=size, pos=position, euler=f"0 0 {angle}", rgba=COLOUR_RGBA["bowl"], mass="0")


def _add_disc(body: ET.Element, radius: float, height: float) -> None:
    """Collides as two crossed boxes: a box on a cylinder would rest on a single contact and spin."""
    half = radius * cos(pi / 8) * 0.765  # both corners of the star stay within the disc's edge
    for angle in (0.0, pi / 4):
        size, position = f"{half} {half} {(height - 0.001) / 2}", f"0 0 {(height + 0.001) / 2}"
        ET.SubElement(body, "geom", type="box", size=size, pos=position, euler=f"0 0 {angle}", group="3", mass="0")


def _add_shown(body: ET.Element, shape: str, size: str, position: str, rgba: str) -> None:
    ET.SubElement(body, "geom", type=shape, size=size, pos=position, rgba=rgba, contype="0", conaffinity="0", mass="0")
