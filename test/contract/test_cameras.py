"""The contract of `core.interfaces.Camera`, one set of tests over every driver of CAMERAS and what stands in for its device.

`--hardware=RIG` runs them on the real cameras of config/rigs/RIG.yaml (and site.yaml) instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from camera_devices import COUNTERPARTS, Counterpart

from vla_ros.cameras import CAMERAS
from vla_ros.core.devices import load_device
from vla_ros.core.errors import DeviceError, VlaError
from vla_ros.core.interfaces import Camera
from vla_ros.core.rig import EXTERNAL, load_rig
from vla_ros.core.types import Frame

PATIENCE_S = 10.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "under_test" in metafunc.fixturenames:
        rig = metafunc.config.getoption("--hardware")
        cameras = load_rig(rig).cameras if rig else {}
        names = [name for name, camera in cameras.items() if camera.driver != EXTERNAL] if rig else sorted(CAMERAS)
        metafunc.parametrize("under_test", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def under_test(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Counterpart]]:
    """(driver, counterpart); on hardware the counterpart holds the rig's options only."""
    if rig := request.config.getoption("--hardware"):
        camera = load_rig(rig).cameras[request.param]
        yield camera.driver, Counterpart(camera.options, {}, "", has_pattern=False, name=request.param)
        return
    with ExitStack() as stack:
        yield request.param, stack.enter_context(COUNTERPARTS[request.param](tmp_path_factory.mktemp(request.param)))


@pytest.fixture
def camera(under_test: tuple[str, Counterpart]) -> Iterator[Camera]:
    made = make(*under_test)
    yield made
    made.stop()


def make(driver: str, counterpart: Counterpart, options: dict[str, object] | None = None) -> Camera:
    return load_device(CAMERAS, driver)(counterpart.name, **(counterpart.options if options is None else options))


def take(camera: Camera, count: int) -> list[Frame]:
    """The next `count` frames."""
    frames: list[Frame] = []
    deadline_s = time.monotonic() + PATIENCE_S
    while len(frames) < count:
        assert time.monotonic() < deadline_s, f"{len(frames)} of {count} frames in {PATIENCE_S:g} s"
        frame = camera.read()
        frames += [frame] if frame is not None else []
    return frames


def test_every_driver_has_a_stand_in() -> None:
    assert sorted(COUNTERPARTS) == sorted(CAMERAS)


def test_frames_are_rgb_pictures_with_the_time_of_their_capture(under_test, camera: Camera) -> None:
    camera.start()
    first_ns = time.time_ns()
    frames = take(camera, 8)
    assert (np.diff([frame.number for frame in frames]) > 0).all()
    assert (np.diff([frame.stamp_ns for frame in frames]) > 0).all()
    assert all(first_ns - 1_000_000_000 < frame.stamp_ns <= time.time_ns() for frame in frames)
    image = frames[-1].image
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.std() > 0
    assert frames[-1].frame_id == f"{under_test[1].name}_color_optical_frame"
    if under_test[1].has_pattern:
        left, right = (image[-20:, part].mean(axis=(0, 1)) for part in (slice(5, 60), slice(-60, -5)))
        assert left[0] > 150 > 80 > left[2] and right[2] > 150 > 80 > right[0], "red left, blue right"


def test_the_lens_and_the_depth_fit_the_picture(camera: Camera) -> None:
    camera.start()
    frame = take(camera, 1)[0]
    height, width, _ = frame.image.shape
    if frame.intrinsics is not None:
        lens = frame.intrinsics
        assert (lens.width, lens.height) == (width, height)
        assert 0.3 * width < lens.fx < 5 * width and 0.3 * width < lens.cx < 0.7 * width and 0.3 * height < lens.cy < 0.7 * height
        assert len(lens.distortion) == {"plumb_bob": 5, "rational_polynomial": 8, "equidistant": 4}[lens.distortion_model]
    if frame.depth is not None:
        assert frame.depth.shape == (height, width) and frame.depth.dtype == np.uint16 and 1e-5 < frame.depth_scale_m < 0.1


def test_a_frame_is_given_once(camera: Camera) -> None:
    camera.start()
    stamps = [frame.stamp_ns for frame in take(camera, 5)]
    assert len(set(stamps)) == 5


def test_it_can_be_stopped_and_started_again(camera: Camera) -> None:
    camera.stop()
    camera.start()
    camera.start()
    before = take(camera, 1)[0]
    camera.stop()
    camera.stop()
    try:
        assert camera.read() is None, "nothing comes from a stopped camera"
    except DeviceError as error:
        assert "not started" in str(error)
    camera.start()
    assert take(camera, 1)[0].stamp_ns > before.stamp_ns


def test_two_of_a_kind_at_once(under_test, camera: Camera, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--hardware"):
        pytest.skip("one device serves one reader")
    other = make(*under_test)
    try:
        for each in (camera, other):
            each.start()
        pairs = [(take(camera, 1)[0], take(other, 1)[0]) for _ in range(4)]
        assert all(mine.image.shape == theirs.image.shape for mine, theirs in pairs)
    finally:
        other.stop()


def test_what_is_not_there_is_named(under_test, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--hardware"):
        pytest.skip("nothing is unplugged here")
    driver, counterpart = under_test
    absent = make(driver, counterpart, {**counterpart.options, **counterpart.absent})
    with pytest.raises(VlaError, match=counterpart.words):
        absent.start()
    absent.stop()


def test_an_end_is_told_and_the_last_picture_comes_first(under_test, request: pytest.FixtureRequest) -> None:
    driver, counterpart = under_test
    if counterpart.ending is None:
        pytest.skip("never ends by itself")
    camera = make(driver, counterpart, counterpart.ending)
    camera.start()
    seen = []
    deadline_s = time.monotonic() + PATIENCE_S
    with pytest.raises(DeviceError, match="ended; `repeat: true` plays it again") as error:
        while time.monotonic() < deadline_s:
            frame = camera.read()
            seen += [frame.number] if frame is not None else []
    assert error.value.reason == "ended"
    assert seen == list(range(len(seen))) and len(seen) >= 29, "all 30 pictures; librealsense may lose the first while the depth starts"
    camera.stop()
    camera.start()
    assert take(camera, 1), "starts over"
    camera.stop()
