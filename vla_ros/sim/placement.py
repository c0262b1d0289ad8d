"""Where things lie at the start: a function of the seed alone, the same in every loop that plays the scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_ros.sim.tasks import BLOCKS, CONTAINERS

BLOCK_AREA_M = ((0.35, 0.65), (-0.20, 0.20))
CONTAINER_AREA_M = ((0.38, 0.64), (-0.28, 0.28))
BLOCK_YAW_RAD = 0.6
# Distances between centres that leave room for the open hand to come down beside a neighbour.
BLOCK_TO_BLOCK_M = 0.09
BLOCK_TO_CONTAINER_M = 0.13
CONTAINER_TO_CONTAINER_M = 0.17


@dataclass(frozen=True)
class Placement:
    """`position` object -> [2] m in `base_link`, `yaw` block -> rad."""

    position: dict[str, np.ndarray]
    yaw: dict[str, float]


def draw_placement(seed: int) -> Placement:
    """Draws containers and blocks that do not touch; equal seeds give equal placements."""
    rng = np.random.default_rng(seed)
    while True:
        position = _try(rng)
        if position is not None:
            return Placement(position, {name: float(rng.uniform(-BLOCK_YAW_RAD, BLOCK_YAW_RAD)) for name in BLOCKS})


def _try(rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    placed: dict[str, np.ndarray] = {}
    for name in CONTAINERS + BLOCKS:
        area = BLOCK_AREA_M if name in BLOCKS else CONTAINER_AREA_M
        spot = np.array([rng.uniform(*bounds) for bounds in area])
        if any(np.linalg.norm(spot - other) < _room(name, where) for where, other in placed.items()):
            return None
        placed[name] = spot
    return placed


def _room(first: str, second: str) -> float:
    blocks = (first in BLOCKS) + (second in BLOCKS)
    return (CONTAINER_TO_CONTAINER_M, BLOCK_TO_CONTAINER_M, BLOCK_TO_BLOCK_M)[blocks]
