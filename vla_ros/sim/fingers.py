"""The fingers of a simulated ViperX."""

from __future__ import annotations

import math
from collections.abc import Mapping


class Fingers:
    """The linkage: a horn on the motor, an arm from it to each finger. Options as the driver's.

    `lever_m`: opening per motor angle (m/rad) where the fingers are half open; torque / lever = force.
    """

    def __init__(self, options: Mapping[str, object]) -> None:
        self._horn_m, self._arm_m = float(options.get("horn_m", 0.022)), float(options.get("arm_m", 0.036))
        self._closed_m = float(options.get("finger_closed_m", 0.018))
        half = self.angle_rad(0.04)
        self.lever_m = (self.width_m(half + 1e-4) - self.width_m(half - 1e-4)) / 2e-4

    def width_m(self, angle_rad: float) -> float:
        height, across = self._horn_m * math.sin(angle_rad), self._horn_m * math.cos(angle_rad)
        return 2.0 * (height + math.sqrt(self._arm_m**2 - across**2) - self._closed_m)

    def angle_rad(self, width_m: float) -> float:
        finger = self._closed_m + 0.5 * width_m
        sine = (finger**2 + self._horn_m**2 - self._arm_m**2) / (2.0 * finger * self._horn_m)
        return math.asin(max(-1.0, min(1.0, sine)))
