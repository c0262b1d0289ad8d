"""How close an arm comes to itself, to the table and to the arm beside it: collision primitives of the URDF, on pinocchio and coal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product

import coal
import numpy as np
import pinocchio as pin

from vla_ros.core.collision import Gap
from vla_ros.core.embodiment import RobotDescription
from vla_ros.core.errors import ConfigError, DataError, did_you_mean
from vla_ros.core.urdf import load_urdf

TABLE = "table"
_GRID = 31  # positions of a joint that are looked up


@dataclass(frozen=True)
class Shape:
    """A primitive: its `number` in pinocchio's geometry, its link, and which of the arm's joints moves it (0: it stands still)."""

    number: int
    link: str
    joint: int
    part: str  # "arm"; of the gripper: "palm", what is fixed to the last link, and "finger", what moves on it


@dataclass(frozen=True)
class Pair:
    """Two shapes by number and how close they may come (m). `joint`: where just two joints lie between them, the number of the first."""

    first: int
    second: int
    links: tuple[str, str]
    margin_m: float
    joint: int = -1
    between_arms: bool = False


class Clearance:
    """Finds the pair of links with the least room, for `core.safety.Limiter`.

    Looked at are
      * links of the arm against each other and against what stands still, neighbours (one joint between them) excepted;
      * links of the arm against the table, the gripper's excepted: its work is there, and the workspace box limits the TCP;
      * with `other`, links of the arm against those of the arm beside it. Where both belong to a gripper only contact counts (margin 0),
        and fingers against fingers are left out: they meet at what is handed over.
    Left out are links with one link between them that cannot touch within the limits of the two joints (looked up on a grid): however close
    they are built, those limits keep them apart.
    Fingers count as wide open. Things in the world are unknown here.

    Not thread-safe.

    Args:
        robot: arm with URDF, `clearance_m` and `table_z_m`.
        other: the arm beside it, in the same URDF.

    Attributes:
        pairs: what is looked at; those with the other arm come last.

    Raises:
        ConfigError: the URDF is missing or lacks a joint.
    """

    def __init__(self, robot: RobotDescription, other: RobotDescription | None = None) -> None:
        xml = load_urdf(robot.urdf)
        self._model = pin.buildModelFromXML(xml)
        self._geometry = pin.buildGeomFromUrdfString(self._model, xml, pin.GeometryType.COLLISION)
        self._data = self._model.createData()
        joints, others = _joints(self._model, robot), _joints(self._model, other) if other else []
        self._own, self._beside = ([self._model.joints[joint].idx_q for joint in group] for group in (joints, others))
        self._q = np.nan_to_num(self._model.upperPositionLimit, posinf=0.0)  # fingers wide open
        arm, beside = (_shapes(self._model, self._geometry, group) for group in (joints, others))
        pairs = [*_within(arm, [0, *joints], robot.clearance_m), *self._above_table(arm, robot)]
        self._watch(pairs)
        self._watch([*self._able_to_touch(robot), *_between(arm, beside, robot.clearance_m)])

    def distance(self, position_rad: np.ndarray, other_rad: np.ndarray | None = None) -> Gap:
        """Returns the pair with the least room at joint positions [N] rad.

        Without `other_rad` [M] rad the arm beside it is left out. A negative distance is how deep two links are in each other.

        Raises:
            DataError: "not_finite".
        """
        self._place(position_rad, other_rad)
        bound = self._least_room()
        if other_rad is None:
            bound = bound[: self._alone]
        nearest, room = Gap(np.inf, "", "", 0.0), np.inf
        for k in bound.argsort().tolist():
            if bound[k] >= room:
                break
            distance, pair = pin.computeDistance(self._geometry, self._placed, k).min_distance, self.pairs[k]
            if not distance - pair.margin_m >= room:
                nearest, room = Gap(distance, *pair.links, pair.margin_m), distance - pair.margin_m
        return nearest

    def _place(self, position_rad: np.ndarray, other_rad: np.ndarray | None) -> None:
        self._q[self._own] = position_rad
        if other_rad is not None:
            self._q[self._beside] = other_rad
        if not np.isfinite(self._q).all():
            raise DataError(f"joint positions {self._q[self._own]}, of the other arm {self._q[self._beside]}: not finite", "not_finite")
        pin.updateGeometryPlacements(self._model, self._data, self._geometry, self._placed, self._q)

    def _least_room(self) -> np.ndarray:
        """Returns for each pair what its room (m) cannot be below, from the balls about the shapes: most pairs need no closer look."""
        centres = np.array(self._centres)
        first = centres.take(self._first, 0)
        between = first - centres.take(self._second, 0)
        apart = np.sqrt(np.einsum("ij,ij->i", between, between))
        apart[self._to_table] = first[self._to_table] @ self._up - self._table_m
        return apart - self._reach

    def _watch(self, pairs: list[Pair]) -> None:
        self.pairs = pairs
        self._alone = sum(not pair.between_arms for pair in pairs)
        self._geometry.removeAllCollisionPairs()
        for pair in pairs:
            self._geometry.addCollisionPair(pin.CollisionPair(pair.first, pair.second))
        self._placed = self._geometry.createData()
        self._centres = [pose.translation for pose in self._placed.oMg]  # views: they move with the shapes
        self._first, self._second = (np.array([getattr(pair, side) for pair in pairs], dtype=int) for side in ("first", "second"))
        self._to_table = np.array([TABLE in pair.links for pair in pairs], dtype=bool)
        radius = np.array([_radius(shape.geometry) for shape in self._geometry.geometryObjects])
        self._reach = radius[self._first] + radius[self._second] + np.array([pair.margin_m for pair in pairs])

    def _above_table(self, arm: list[Shape], robot: RobotDescription) -> list[Pair]:
        self._up, self._table_m = np.array([0.0, 0.0, 1.0]), 0.0
        if robot.table_z_m is None:
            return []
        base = self._model.frames[self._model.getFrameId(robot.base_frame)].placement
        self._up = base.rotation[:, 2].copy()
        self._table_m = float(self._up @ base.translation) + robot.table_z_m
        plane = coal.Halfspace(self._up, self._table_m)
        table = self._geometry.addGeometryObject(pin.GeometryObject(TABLE, 0, 0, pin.SE3.Identity(), plane))
        return [Pair(shape.number, table, (shape.link, TABLE), robot.clearance_m) for shape in arm if shape.joint and shape.part == "arm"]

    def _able_to_touch(self, robot: RobotDescription) -> list[Pair]:
        able = {pair.links for pair in self.pairs if pair.joint < 0}
        for joint in {pair.joint for pair in self.pairs} - {-1}:
            watched = [k for k, pair in enumerate(self.pairs) if pair.joint == joint]
            ranges = (np.linspace(robot.position_min_rad[j], robot.position_max_rad[j], _GRID) for j in (joint, joint + 1))
            position = np.array(robot.home_rad)
            for position[joint], position[joint + 1] in product(*ranges):
                self._place(position, None)
                near = [k for k in watched if pin.computeDistance(self._geometry, self._placed, k).min_distance <= 0.0]
                able |= {self.pairs[k].links for k in near}
        return [pair for pair in self.pairs if pair.links in able]


def _joints(model: pin.Model, robot: RobotDescription) -> list[int]:
    names = [robot.joint_prefix + name for name in robot.joints]
    for name in names:
        if not model.existJointName(name):
            raise ConfigError(f"{robot.urdf}: no joint '{name}'; {did_you_mean(name, list(model.names)[1:])}")
    return [model.getJointId(name) for name in names]


def _shapes(model: pin.Model, geometry: pin.GeometryModel, joints: list[int]) -> list[Shape]:
    """What the arm of these joints consists of, and what stands still; nothing of another arm."""
    shapes = []
    for number, shape in enumerate(geometry.geometryObjects):
        joint, link = _moved_by(model, shape.parentJoint, joints), model.frames[shape.parentFrame]
        if joint in joints or joint == 0:
            bolted_on = joint in joints[-1:] and model.frames[link.parentFrame].type == pin.FrameType.FIXED_JOINT
            part = "finger" if joint != shape.parentJoint else "palm" if bolted_on else "arm"
            shapes.append(Shape(number, link.name, joint, part))
    return shapes


def _moved_by(model: pin.Model, joint: int, joints: list[int]) -> int:
    """The nearest of `joints` on the way to the root, 0 for what stands still, -1 for what another arm moves."""
    still = joint == 0
    while joint != 0 and joint not in joints:
        joint = model.parents[joint]
    return joint if joint or still else -1


def _within(arm: list[Shape], chain: list[int], margin_m: float) -> Iterator[Pair]:
    """All pairs of one arm but neighbours; `chain` are its joints from the root on, 0 first."""
    for one, other in combinations(arm, 2):
        first, second = sorted((chain.index(one.joint), chain.index(other.joint)))
        if second - first > 1:
            yield Pair(one.number, other.number, (one.link, other.link), margin_m, first if second - first == 2 else -1)


def _between(arm: list[Shape], beside: list[Shape], margin_m: float) -> Iterator[Pair]:
    for one, other in product(arm, beside):
        fingers = one.part == other.part == "finger"
        if one.joint and other.joint and not fingers:
            both_grippers = one.part != "arm" and other.part != "arm"
            yield Pair(one.number, other.number, (one.link, other.link), 0.0 if both_grippers else margin_m, between_arms=True)


def _radius(shape: coal.CollisionGeometry) -> float:
    """Of the ball (m) about a shape's origin that holds it; 0 for the table."""
    if isinstance(shape, coal.Halfspace):
        return 0.0
    shape.computeLocalAABB()
    return float(np.linalg.norm(np.maximum(np.abs(shape.aabb_local.min_), np.abs(shape.aabb_local.max_))))
