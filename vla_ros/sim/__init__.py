"""Simulated rigs: the scene, its pictures, its physics over the real robot protocol, and an expert that solves its tasks."""

import os

# Read when MuJoCo is imported, hence set before any module here can: software GL that needs no display, on the caller's core only.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "1")

SIMULATORS = {"tabletop": "vla_ros.sim.server:TabletopServer"}
