"""Tests run in the environment of `vla`: ROS, the DDS profile, discovery on this machine only."""

import os

import pytest

from vla_ros.cli.environment import environment

_wanted = environment(os.environ)
if any(_wanted.get(name) != os.environ.get(name) for name in ("LD_LIBRARY_PATH", "PYTHONPATH")):  # read when a process starts
    pytest.exit(
        "ROS is not sourced in this shell: use `make test`, or `.venv/bin/python -m vla_ros.cli.environment .venv/bin/python -m pytest`", 4
    )
os.environ.update(_wanted)
