"""Channel names and rotation arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from vla_ros.core import rotations as r
from vla_ros.core.channels import TCP_POSE, for_arm, group, join, mode_of, split
from vla_ros.core.errors import DataError


def test_split_and_join() -> None:
    for channel, parts in {
        "tcp.x": ("", "tcp.x"),
        "left.tcp.x": ("left", "tcp.x"),
        "left_joint1.position": ("", "left_joint1.position"),
    }.items():
        assert split(channel) == parts and join(*parts) == channel
    assert for_arm(("left.tcp.x", "right.tcp.x", "right.gripper.width"), "right") == ((1, 2), ("tcp.x", "gripper.width"))


def test_groups_of_two_arms() -> None:
    names = [f"{arm}.{name}" for arm in ("left", "right") for name in (*TCP_POSE, "gripper.closed")]
    groups = group(tuple(names[::-1]))
    assert [[names[::-1][i] for i in triple] for triple in groups.rotations] == [
        ["right.tcp.rx", "right.tcp.ry", "right.tcp.rz"],
        ["left.tcp.rx", "left.tcp.ry", "left.tcp.rz"],
    ]
    assert len(groups.linear) == 6 and len(groups.grippers) == 2 and len(groups.translations) == 2 and not len(groups.joints)


@pytest.mark.parametrize(
    ("channels", "mode"),
    [
        (("j1.position", "gripper.width"), "joint_position"),
        (("left.j1.velocity", "right.j1.velocity"), "joint_velocity"),
        ((*TCP_POSE, "gripper.closed"), "tcp_pose"),
    ],
)
def test_mode(channels: tuple[str, ...], mode: str) -> None:
    assert mode_of(channels) == mode


@pytest.mark.parametrize(
    "channels", [("tcp.x",), TCP_POSE[:5], TCP_POSE[3:], ("j1.torque",), ("j1.position", "j2.velocity"), ("position",)]
)
def test_no_mode(channels: tuple[str, ...]) -> None:
    with pytest.raises(DataError):
        mode_of(channels)


def random_rotvecs(count: int = 500) -> np.ndarray:
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(count, 3))
    angles = np.concatenate([rng.uniform(0, np.pi, count - 3), [0.0, 1e-9, np.pi]])
    return axes / np.linalg.norm(axes, axis=1, keepdims=True) * angles[:, None]


def test_conversions_round_trip() -> None:
    vectors = random_rotvecs()
    matrices = r.rotvec_to_matrix(vectors)
    np.testing.assert_allclose(matrices @ np.swapaxes(matrices, -1, -2), np.broadcast_to(np.eye(3), matrices.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(matrices), 1, atol=1e-12)
    np.testing.assert_allclose(r.rotvec_to_matrix(r.matrix_to_rotvec(matrices)), matrices, atol=1e-9)
    np.testing.assert_allclose(r.matrix_to_rotvec(matrices)[:-1], vectors[:-1], atol=1e-8)
    np.testing.assert_allclose(r.quat_to_rotvec(-r.rotvec_to_quat(vectors))[:-1], vectors[:-1], atol=1e-12)


def test_known_rotation() -> None:
    np.testing.assert_allclose(r.rotvec_to_matrix([0, 0, np.pi / 2]), [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-15)
    np.testing.assert_allclose(r.rotvec_to_quat([np.pi, 0, 0]), [1, 0, 0, 0], atol=1e-15)


def test_product_is_that_of_the_matrices() -> None:
    a, b = random_rotvecs(), random_rotvecs()[::-1]
    product = r.quat_to_matrix(r.multiply(r.rotvec_to_quat(a), r.rotvec_to_quat(b)))
    np.testing.assert_allclose(product, r.rotvec_to_matrix(a) @ r.rotvec_to_matrix(b), atol=1e-12)


def test_interpolation_is_even_and_short() -> None:
    a, b = random_rotvecs(), random_rotvecs()[::-1]
    whole = r.angle_between(a, b)
    assert (whole <= np.pi + 1e-12).all()
    for share in (0.0, 0.3, 1.0):
        between = r.interpolate(a, b, share)
        np.testing.assert_allclose(r.angle_between(a, between), share * whole, atol=1e-7)
        np.testing.assert_allclose(r.angle_between(between, b), (1 - share) * whole, atol=1e-7)


def test_mean_across_the_half_turn() -> None:
    vectors = np.array([[np.pi - 0.1, 0, 0], [-np.pi + 0.3, 0, 0]])
    for anchor in vectors:
        mean = r.mean(vectors, np.array([0.25, 0.75]), anchor)
        assert r.angle_between(mean, [np.pi + 0.2, 0, 0]) == pytest.approx(0, abs=1e-9)
        assert np.linalg.norm(mean - anchor) < 0.4, "written with the numbers next to the anchor's"


def test_nearest_rotvec_is_the_same_rotation() -> None:
    vectors, references = random_rotvecs(), random_rotvecs()[::-1] * 2
    near = r.nearest_rotvec(vectors, references)
    np.testing.assert_allclose(r.angle_between(vectors, near), 0, atol=1e-7)
    assert (np.linalg.norm(near - references, axis=1) <= np.linalg.norm(vectors - references, axis=1) + 1e-9).all()
