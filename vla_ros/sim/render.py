"""Pictures of the scene: one way for demonstrations and for the rig's cameras, so that a policy sees the same world in both."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET

import mujoco
import numpy as np

from vla_ros.core.errors import DeviceError
from vla_ros.core.types import Intrinsics


def compile_scene(scene: ET.Element) -> mujoco.MjModel:
    """Compiles an MJCF tree."""
    return mujoco.MjModel.from_xml_string(ET.tostring(scene, encoding="unicode"))


def intrinsics(model: mujoco.MjModel, camera: str, width: int, height: int) -> Intrinsics:
    """The pinhole model of a camera of the scene: square pixels, no distortion."""
    focal = height / 2 / np.tan(np.radians(model.camera(camera).fovy[0]) / 2)
    return Intrinsics(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)


class Renderer:
    """Draws `width` x `height` pictures of a compiled scene. Use it in the thread that made it.

    Raises:
        DeviceError: no GL here, or its first picture is garbage.
    """

    def __init__(self, model: mujoco.MjModel, width: int, height: int) -> None:
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except Exception as error:  # each GL back-end has its own kinds
            raise DeviceError(
                f"MuJoCo cannot render with MUJOCO_GL={os.environ['MUJOCO_GL']} ({error}):"
                " install libegl1 and libgl1-mesa-dri, or libosmesa6 and set MUJOCO_GL=osmesa"
            ) from error
        self._model = model
        self._option = mujoco.MjvOption()
        # Without a GPU shadows double the cost of a picture, and multisampling is not needed: policies average pictures down.
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._checked = False

    def render(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """Returns uint8 [H, W, 3] RGB; needs `mj_kinematics` and `mj_camlight` after the last change of qpos."""
        self._renderer.update_scene(data, camera, self._option)
        image = self._renderer.render()
        if not self._checked:
            self._check(image, camera)
        return image

    def _check(self, image: np.ndarray, camera: str) -> None:
        """A broken GL driver gives one colour, or noise: neighbours in a picture of a table are mostly alike."""
        spread = float(image.std())
        jump = float(np.abs(np.diff(image.astype(np.int16), axis=1)).mean())
        if spread < 8 or jump > spread / 3:
            raise DeviceError(
                f"the first picture of camera {camera} is garbage (spread {spread:.0f}, jump between pixels {jump:.0f} of 255)"
                f" with MUJOCO_GL={os.environ['MUJOCO_GL']}: install libosmesa6 and set MUJOCO_GL=osmesa"
            )
        self._checked = True

    def close(self) -> None:
        """Frees the GL context."""
        self._renderer.close()
