"""Rotations in numpy, batched over leading axes: `quat_xyzw` [..., 4], rotation vectors [..., 3] (rad), matrices [..., 3, 3].

A rotation vector near a half turn has two faces, +pi about an axis and -pi about it; what is averaged, interpolated or compared
goes through quaternions and never through the numbers of the vector.
"""

from __future__ import annotations

import numpy as np

# Quaternion product as a matrix: a * b = (b[_SHUFFLE] * _SIGN) @ a, rows are the components of the result.
_SHUFFLE = np.array([[3, 2, 1, 0], [2, 3, 0, 1], [1, 0, 3, 2], [0, 1, 2, 3]])
_SIGN = np.array([[1, 1, -1, 1], [-1, 1, 1, 1], [1, -1, 1, 1], [-1, -1, -1, 1]], dtype=np.float64)
_CONJUGATE = np.array([-1.0, -1.0, -1.0, 1.0])


def _length(vector: np.ndarray) -> np.ndarray:
    """Euclidean length [..., 1]; np.linalg.norm costs more on a handful of vectors."""
    return np.sqrt((vector * vector).sum(axis=-1, keepdims=True))


def multiply(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Hamilton product first * second (the rotation `second`, then `first`), both quat_xyzw [..., 4]."""
    matrix = np.asarray(second)[..., _SHUFFLE] * _SIGN
    return (matrix @ np.asarray(first)[..., None])[..., 0]


def conjugate(quat_xyzw: np.ndarray) -> np.ndarray:
    """The inverse rotation of a unit quaternion."""
    return np.asarray(quat_xyzw) * _CONJUGATE


def rotvec_to_quat(rotvec: np.ndarray) -> np.ndarray:
    """Rotation vectors [..., 3] -> unit quat_xyzw [..., 4]."""
    rotvec = np.asarray(rotvec, dtype=np.float64)
    angle = _length(rotvec)
    # np.sinc(x) is sin(pi x) / (pi x): sin(a/2)/a without a division by 0
    return np.concatenate([rotvec * (0.5 * np.sinc(angle / (2 * np.pi))), np.cos(angle / 2)], axis=-1)


def quat_to_rotvec(quat_xyzw: np.ndarray) -> np.ndarray:
    """Unit quat_xyzw [..., 4] -> rotation vectors [..., 3] of length <= pi."""
    quat = np.asarray(quat_xyzw, dtype=np.float64)
    vector, w = quat[..., :3], quat[..., 3:]
    # never 0: 2 atan(1e-150) / 1e-150 is the right limit, 2
    sine = np.maximum(_length(vector), 1e-150)
    # q and -q are one rotation: the sign of w goes to the vector, so that the angle is at most pi
    return vector * (np.arctan2(np.copysign(sine, w), np.abs(w)) * (2 / sine))


def quat_to_matrix(quat_xyzw: np.ndarray) -> np.ndarray:
    """Unit quat_xyzw [..., 4] -> rotation matrices [..., 3, 3]."""
    x, y, z, w = np.moveaxis(np.asarray(quat_xyzw, dtype=np.float64), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_quat(matrix: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] -> unit quat_xyzw [..., 4] with w >= 0."""
    m = np.asarray(matrix, dtype=np.float64)
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    # 4 q q^T, of which every column is the quaternion times one of its components: take the column of the largest
    x_w, y_w, z_w = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    x_y, x_z, y_z = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    outer = np.stack(
        [
            np.stack([1 + xx - yy - zz, x_y, x_z, x_w], axis=-1),
            np.stack([x_y, 1 - xx + yy - zz, y_z, y_w], axis=-1),
            np.stack([x_z, y_z, 1 - xx - yy + zz, z_w], axis=-1),
            np.stack([x_w, y_w, z_w, 1 + xx + yy + zz], axis=-1),
        ],
        axis=-2,
    )
    best = np.argmax(np.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    quat = np.take_along_axis(outer, best[..., None, None], axis=-2)[..., 0, :]
    quat = quat / np.linalg.norm(quat, axis=-1, keepdims=True)
    return np.where(quat[..., 3:] < 0, -quat, quat)


def rotvec_to_matrix(rotvec: np.ndarray) -> np.ndarray:
    """Rotation vectors [..., 3] -> rotation matrices [..., 3, 3]."""
    return quat_to_matrix(rotvec_to_quat(rotvec))


def matrix_to_rotvec(matrix: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] -> rotation vectors [..., 3] of length <= pi."""
    return quat_to_rotvec(matrix_to_quat(matrix))


def nearest_rotvec(rotvec: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns the same rotations [..., 3] written with the number of turns whose numbers lie nearest to `reference` [..., 3].

    A stream of rotation vectors stays continuous so: no flip from +pi to -pi between two samples.
    """
    rotvec, reference = np.asarray(rotvec, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if np.abs(rotvec - reference).max(initial=0.0) < 1.8:
        return rotvec  # nearer than pi whatever the axis, so it is the nearest
    angle = np.linalg.norm(rotvec, axis=-1, keepdims=True)
    length = np.linalg.norm(reference, axis=-1, keepdims=True)
    # next to no rotation has no axis of its own: that of the reference is as good
    axis = np.where(angle > 1e-9, rotvec / np.maximum(angle, 1e-9), reference / np.maximum(length, 1e-9))
    turns = np.rint((np.sum(axis * reference, axis=-1, keepdims=True) - angle) / (2 * np.pi))
    return rotvec + 2 * np.pi * turns * axis


def angle_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Geodesic angle [...] in 0..pi rad between rotations given as rotation vectors [..., 3]."""
    relative = multiply(conjugate(rotvec_to_quat(first)), rotvec_to_quat(second))
    return 2 * np.arctan2(np.linalg.norm(relative[..., :3], axis=-1), np.abs(relative[..., 3]))


def interpolate(first: np.ndarray, second: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """Turns `first` towards `second` (rotation vectors [..., 3]) the short way at constant speed; `share` [...] 0..1."""
    start = rotvec_to_quat(first)
    turn = quat_to_rotvec(multiply(conjugate(start), rotvec_to_quat(second)))
    step = rotvec_to_quat(turn * np.asarray(share, dtype=np.float64)[..., None])
    return nearest_rotvec(quat_to_rotvec(multiply(start, step)), first)


def mean(rotvecs: np.ndarray, weights: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """Weighted mean [..., 3] of rotation vectors [N, ..., 3] in the tangent space of `anchor` [..., 3]; `weights` [N] sum to 1."""
    return nearest_rotvec(quat_to_rotvec(mean_quat(rotvec_to_quat(rotvecs), weights, rotvec_to_quat(anchor))), anchor)


def mean_quat(quats_xyzw: np.ndarray, weights: np.ndarray, anchor_xyzw: np.ndarray) -> np.ndarray:
    """`mean` for quat_xyzw [N, ..., 4] about `anchor_xyzw` [..., 4]."""
    offsets = quat_to_rotvec(multiply(conjugate(anchor_xyzw), quats_xyzw))
    offset = (np.asarray(weights) @ offsets.reshape(len(offsets), -1)).reshape(offsets.shape[1:])
    return multiply(anchor_xyzw, rotvec_to_quat(offset))
