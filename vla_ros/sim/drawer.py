"""The cabinet with one drawer: its sizes, and its parts as MuJoCo primitives. The drawer opens along x, away from the robot.

The cabinet is too heavy for an arm to push by mistake, but placed anew in every episode: it slides on two joints like a plate, held by
friction. The drawer is its child, so the two never collide; what the hand takes is a fin that stands out of the drawer's front.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

TRAVEL_M = 0.115
OPEN_M, CLOSED_M = 0.085, 0.010  # opening from which on, and up to which, it counts as open and as closed
FLOOR_M = 0.008
RIM_M = 0.034
TOP_M = 0.070  # of the cabinet
HALF_M = (0.075, 0.078)  # of the cabinet along x and y
FIN_M = (0.05, 0.022, 0.036)  # along x, thickness, height
_WALL_M, _FRONT_M = 0.005, 0.010
_INSIDE_M = (0.064, 0.064)  # half of the drawer's inside along x and y
_GRIP_HEIGHT_M = 0.030
# Along x from the cabinet's middle when closed: the drawer's middle, its front's inner face, the fin's middle, where a block goes.
_MIDDLE_M = HALF_M[0] - _INSIDE_M[0]
_FACE_M = HALF_M[0]
_FIN_X_M = _FACE_M + _FRONT_M + FIN_M[0] / 2
SPOT_M = _FACE_M - 0.045
SPOT_TO_GRIP_M = (_FIN_X_M - SPOT_M + 0.004, 0.0, _GRIP_HEIGHT_M)
INSIDE_M = ((SPOT_M - _MIDDLE_M + _INSIDE_M[0], _FACE_M - SPOT_M), _INSIDE_M[1])  # from the spot: backwards and forwards along x, along y
_WOOD, _DARK, _KNOB, _LINING = "0.78 0.66 0.50 1", "0.66 0.54 0.40 1", "0.22 0.23 0.26 1", "0.88 0.82 0.72 1"


def add_drawer(world: ET.Element, grip: dict[str, str]) -> None:
    """Adds cabinet and drawer to a scene's world body; `grip` are the contact attributes of what fingers hold."""
    cabinet = ET.SubElement(world, "body", name="cabinet")
    for axis, direction in (("x", "1 0 0"), ("y", "0 1 0")):
        ET.SubElement(cabinet, "joint", name=f"cabinet {axis}", type="slide", axis=direction, frictionloss="200", damping="200")
    ET.SubElement(cabinet, "inertial", pos="0 0 0.03", mass="8", diaginertia="0.05 0.05 0.05")
    half_x, half_y = HALF_M
    roof_z, side_z = TOP_M - 0.003, (TOP_M - 0.006) / 2
    _box(cabinet, (half_x, half_y, 0.003), (0, 0, roof_z), _WOOD)
    for side in (-1, 1):
        _box(cabinet, (half_x, 0.003, side_z), (0, side * (half_y - 0.003), side_z + 0.001), _DARK)
    _box(cabinet, (0.003, half_y - 0.006, side_z), (-half_x + 0.003, 0, side_z + 0.001), _DARK)
    _add_sliding_part(cabinet, grip)


def _add_sliding_part(cabinet: ET.Element, grip: dict[str, str]) -> None:
    body = ET.SubElement(cabinet, "body", name="drawer")
    motion = {"axis": "1 0 0", "range": f"0 {TRAVEL_M}", "limited": "true", "frictionloss": "2", "damping": "12"}
    ET.SubElement(body, "joint", name="drawer", type="slide", **motion)
    ET.SubElement(body, "inertial", pos="0 0 0.02", mass="0.4", diaginertia="0.001 0.001 0.001")
    (inside_x, inside_y), wall = _INSIDE_M, _WALL_M / 2
    wall_z = RIM_M / 2
    _box(body, (inside_x, inside_y, (FLOOR_M - 0.002) / 2), (_MIDDLE_M, 0, (FLOOR_M + 0.002) / 2), _LINING)
    for side in (-1, 1):
        _box(body, (inside_x, wall, wall_z - 0.001), (_MIDDLE_M, side * (inside_y + wall), wall_z), _LINING)
    _box(body, (wall, inside_y + _WALL_M, wall_z - 0.001), (_MIDDLE_M - inside_x - wall + 0.001, 0, wall_z), _LINING)
    front_z = (TOP_M - 0.008) / 2
    _box(body, (_FRONT_M / 2, HALF_M[1], front_z - 0.001), (_FACE_M + _FRONT_M / 2, 0, front_z), _WOOD)
    length, thickness, height = FIN_M
    fin_z = _GRIP_HEIGHT_M + 0.012 - height / 2
    _box(body, (length / 2, thickness / 2, height / 2), (_FIN_X_M, 0, fin_z), _KNOB, grip)


def _box(body: ET.Element, half: tuple, position: tuple, rgba: str, contact: dict[str, str] | None = None) -> None:
    size, pos = (" ".join(f"{value:.5g}" for value in values) for values in (half, position))
    ET.SubElement(body, "geom", type="box", size=size, pos=pos, rgba=rgba, mass="0", **(contact or {}))
