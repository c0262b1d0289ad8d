"""Camera drivers by name; a driver implements `core.interfaces.Camera`. A name with a ":" in a rig is an import path instead."""

CAMERAS: dict[str, str] = {
    "mujoco": "vla_ros.sim.camera:MujocoCamera",
    "opencv": "vla_ros.cameras.opencv:OpenCVCamera",
    "realsense": "vla_ros.cameras.realsense:RealSense",
    "video": "vla_ros.cameras.video:VideoCamera",
}
