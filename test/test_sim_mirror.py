"""The shared state: whole, newest, and followed over a restart of the simulator."""

from __future__ import annotations

import os
import threading

import mujoco
import numpy as np
import pytest

from vla_ros.core.errors import DeviceError
from vla_ros.sim.mirror import MirrorReader, MirrorWriter, find_mirror, mirror_path


def sliders(count: int) -> mujoco.MjModel:
    """A model with so many coordinates."""
    bodies = "".join(f'<body><joint type="slide" axis="{i + 1} 0 1"/><geom size=".1"/></body>' for i in range(count))
    return mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{bodies}</worldbody></mujoco>")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mirror"


def test_reader_without_a_simulator_says_what_to_start(path):
    with pytest.raises(DeviceError, match="vla up franka_sim"):
        MirrorReader(path)


def test_reader_before_the_first_state(path):
    writer = MirrorWriter(path, sliders(3))
    with pytest.raises(DeviceError, match="no state"):
        MirrorReader(path).read()
    writer.close()


def test_newest_state_is_read(path):
    writer = MirrorWriter(path, sliders(3))
    reader = MirrorReader(path)
    for number in range(5):
        writer.write(np.full(3, number), number / 10, 1_795_000_000_000_000_001 + number)
        snapshot = reader.read()
        assert np.array_equal(snapshot.qpos, np.full(3, number))
        assert (snapshot.time_s, snapshot.stamp_ns) == (number / 10, 1_795_000_000_000_000_001 + number)
    writer.close()
    assert not path.exists()
    assert reader.read().stamp_ns == 1_795_000_000_000_000_005, "a stopped simulator's last state stays readable, its stamp stands still"


def test_states_are_never_torn(path):
    writer = MirrorWriter(path, sliders(500))
    writer.write(np.zeros(500), 0.0, 0)
    running = threading.Event()
    running.set()

    def write():
        number = 0
        while running.is_set():
            number += 1
            writer.write(np.full(500, number), float(number), number)

    thread = threading.Thread(target=write)
    thread.start()
    reader, seen = MirrorReader(path), set()
    try:
        for _ in range(3000):
            snapshot = reader.read()
            assert np.all(snapshot.qpos == snapshot.stamp_ns) and snapshot.time_s == snapshot.stamp_ns
            seen.add(snapshot.stamp_ns)
    finally:
        running.clear()
        thread.join()
        writer.close()
    assert len(seen) > 1


def test_reader_follows_a_restarted_simulator(path):
    killed = MirrorWriter(path, sliders(3))
    killed.write(np.zeros(3), 1.0, 1)
    reader = MirrorReader(path)
    assert reader.read().stamp_ns == 1
    again = MirrorWriter(path, sliders(4))  # without close(): the first was killed
    again.write(np.ones(4), 2.0, 2)
    assert reader.read().stamp_ns == 2 and reader.read().qpos.size == 4 == reader.model.nq
    killed.close()
    assert path.exists(), "the late end of the old one must not remove the new one's file"
    again.close()


def test_a_state_that_stays_half_written_is_refused(path):
    writer = MirrorWriter(path, sliders(3))
    writer.write(np.zeros(3), 1.0, 1)
    writer._header["sequence"] += 1
    with pytest.raises(DeviceError, match="died while writing"):
        MirrorReader(path).read()
    writer.close()


def test_path_keeps_users_domains_and_addresses_apart(monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", "17")
    assert mirror_path("127.0.0.1").name == f"vla_ros-{os.getuid()}-17-127.0.0.1"
    assert mirror_path("127.0.0.2", 3).name.endswith("-3-127.0.0.2")
    monkeypatch.delenv("ROS_DOMAIN_ID")
    assert mirror_path("127.0.0.1") == mirror_path("127.0.0.1", 0)


def test_the_simulation_of_this_domain_is_found(monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", str(200 + os.getpid() % 30))
    with pytest.raises(DeviceError, match="vla up franka_sim"):
        find_mirror()
    address = f"127.8.{os.getpid() % 200 + 1}.1"
    writer = MirrorWriter(mirror_path(address), sliders(3))
    try:
        assert find_mirror() == mirror_path(address) == find_mirror(address)
    finally:
        writer.close()
