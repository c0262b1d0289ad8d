"""The scene around arms that come as a URDF: joints under stiff position servos, gravity compensated, links as the URDF's primitives."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import mujoco
import numpy as np

from vla_ros.core.embodiment import Embodiment, RobotDescription
from vla_ros.core.urdf import load_urdf
from vla_ros.sim.layout import ArmNames, arm_names, layout_of
from vla_ros.sim.scene import GRIP, furnish

TIMESTEP_S = 0.002
SERVO_RAD_S = 100.0  # the servos' own frequency, critically damped: they lag 20 ms behind a moving target
_ARMATURE_PER_NM = 0.002  # kg m^2 of rotor inertia for each N m of a joint's effort limit
_FINGER = {"damping": "5", "armature": "0.1", "frictionloss": "0"}
FINGER_KP, FINGER_KV = 1000.0, 50.0
_BARE = """
<mujoco>
  <compiler angle="radian"/>
  <option timestep="{timestep}" integrator="implicitfast"/>
  <visual>
    <global offwidth="1280" offheight="960"/>
    <map znear="0.02" zfar="20"/>
    <headlight ambient="0.35 0.35 0.35" diffuse="0.25 0.25 0.25" specular="0 0 0"/>
    <quality shadowsize="512" offsamples="0"/>
  </visual>
  <asset>
    <texture type="skybox" builtin="gradient" rgb1="0.80 0.86 0.92" rgb2="0.55 0.60 0.66" width="64" height="384"/>
    <texture name="floor" type="2d" builtin="checker" rgb1="0.50 0.52 0.55" rgb2="0.56 0.58 0.61" width="300" height="300"/>
    <material name="floor" texture="floor" texuniform="true" texrepeat="5 5"/>
  </asset>
  <worldbody>
    <geom name="ground" type="plane" size="10 10 0.1" pos="0 0 -0.7" material="floor"/>
    <light name="key_light" pos="1.2 -0.9 1.6" dir="-0.45 0.55 -1" directional="true" diffuse="0.62 0.60 0.56" specular="0.1 0.1 0.1"/>
  </worldbody>
  <actuator/>
</mujoco>
"""


def arm_scene(embodiment: Embodiment) -> ET.Element:
    """Returns the MJCF of the table with the embodiment's arms before it, for any embodiment but the Franka.

    Raises:
        ConfigError: it has no table (`layout.LAYOUTS`), or its URDF is missing.
    """
    layout, names = layout_of(embodiment.name), arm_names(embodiment)
    scene = ET.fromstring(_BARE.format(timestep=TIMESTEP_S))
    robot = _robot_body(embodiment.urdf)
    for number, (arm, description) in enumerate(embodiment.robots.items()):
        _tune(robot, description, names[arm], number)
    scene.find("worldbody").append(robot)
    furnish(scene, layout)
    _add_servos(scene, embodiment, names)
    return scene


def _robot_body(urdf: str) -> ET.Element:
    """Returns the URDF as one MJCF body at the origin. Of the gripper only the fingers stay: its opening is no body of its own."""
    root = ET.fromstring(load_urdf(urdf))
    for joint in root.findall("joint"):
        if joint.get("name").endswith("gripper"):
            root.remove(joint)
            root.remove(root.find(f"link[@name='{joint.find('child').get('link')}']"))
        for mimic in joint.findall("mimic"):
            joint.remove(mimic)
    compiler = ET.SubElement(ET.SubElement(root, "mujoco"), "compiler")
    compiler.attrib.update(discardvisual="false", fusestatic="false")
    spec = mujoco.MjSpec.from_string(ET.tostring(root, encoding="unicode"))
    spec.compile()
    world = ET.fromstring(spec.to_xml()).find("worldbody")
    world.tag = "body"
    world.set("name", "robot")
    for body in world.iter("body"):
        body.set("gravcomp", "1")
    return world


def _tune(robot: ET.Element, description: RobotDescription, names: ArmNames, number: int) -> None:
    """Gives an arm its contacts (with the world and the other arm, never with itself), its joints' friction and its TCP."""
    prefix = description.joint_prefix
    # a bit an arm: its own bit is never in the set of bits that its links answer to
    contype, conaffinity = (("2", "1"), ("0", "3"))[number]
    for body in robot.iter("body"):
        if prefix and not body.get("name").startswith(prefix):
            continue
        for geom in body.findall("geom"):
            if geom.get("contype") == "0":
                continue
            geom.attrib.update(contype=contype, conaffinity=conaffinity, group="3")
            if "finger" in body.get("name"):
                geom.attrib.update(GRIP)
    for joint in names.joints:
        element = robot.find(f".//joint[@name='{joint}']")
        effort_nm = float(element.get("actuatorfrcrange").split()[1])
        element.attrib.update(armature=str(_ARMATURE_PER_NM * effort_nm), damping="0", frictionloss="0")
    for joint in names.fingers:
        element = robot.find(f".//joint[@name='{joint}']")
        element.attrib.pop("actuatorfrcrange", None)
        element.attrib.update(_FINGER)
    ET.SubElement(robot.find(f".//body[@name='{description.tcp_frame}']"), "site", name=names.site, group="5")


def _add_servos(scene: ET.Element, embodiment: Embodiment, names: dict[str, ArmNames]) -> None:
    """One position servo a joint, its gains from the inertia that it moves at home, and one a finger."""
    model = mujoco.MjModel.from_xml_string(ET.tostring(scene, encoding="unicode"))
    data = mujoco.MjData(model)
    for arm, description in embodiment.robots.items():
        for joint, home in zip(names[arm].joints, description.home_rad, strict=True):
            data.joint(joint).qpos[0] = home
    mujoco.mj_forward(model, data)
    inertia = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, inertia)
    actuators = scene.find("actuator")
    for arm in names.values():
        for joint in arm.joints:
            dof = int(model.joint(joint).dofadr[0])
            gain = SERVO_RAD_S**2 * inertia[dof, dof]
            ET.SubElement(actuators, "position", name=joint, joint=joint, kp=str(gain), kv=str(2 * gain / SERVO_RAD_S))
        for joint in arm.fingers:
            ET.SubElement(actuators, "position", name=joint, joint=joint, kp=str(FINGER_KP), kv=str(FINGER_KV), forcerange="-40 40")
