"""TCP poses as a policy sees them. A pose is [..., 6]: x, y, z (m) and a rotation vector rx, ry, rz (rad), in `base_link`."""

from __future__ import annotations

import numpy as np

from vla_ros.core.rotations import matrix_to_rotvec, rotvec_to_matrix


def relative_poses(targets: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Returns `targets` [..., T, 6] as motion from `current` [..., 6].

    Offsets run along the base axes; the rotation vector is that of R_target R_current^T.

    The gripper points down (a rotation by pi), where absolute rotation vectors wrap; relative ones stay small.
    """
    current = np.expand_dims(current, -2)
    turn = rotvec_to_matrix(targets[..., 3:]) @ np.swapaxes(rotvec_to_matrix(current[..., 3:]), -1, -2)
    return np.concatenate([targets[..., :3] - current[..., :3], matrix_to_rotvec(turn)], axis=-1)


def absolute_poses(motion: np.ndarray, current: np.ndarray) -> np.ndarray:
    """The inverse of `relative_poses`: [..., T, 6] and [..., 6] -> absolute targets [..., T, 6]."""
    current = np.expand_dims(current, -2)
    turned = rotvec_to_matrix(motion[..., 3:]) @ rotvec_to_matrix(current[..., 3:])
    return np.concatenate([motion[..., :3] + current[..., :3], matrix_to_rotvec(turned)], axis=-1)


def state_features(pose: np.ndarray, gripper_width_m: np.ndarray) -> np.ndarray:
    """Returns [..., 10]: position (m), the first two columns of the rotation matrix (no wrap at pi), finger opening (m)."""
    columns = rotvec_to_matrix(pose[..., 3:])[..., :2]
    return np.concatenate([pose[..., :3], columns[..., 0], columns[..., 1], np.asarray(gripper_width_m)[..., None]], axis=-1)
