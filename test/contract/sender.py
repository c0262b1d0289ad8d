"""A policy in a process of its own, to be killed: `python sender.py DOMAIN RIG ARM VELOCITY` streams the last joint's velocity (rad/s)."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from arm_client import Client

from vla_ros.core.rig import load_rig

if __name__ == "__main__":
    client = Client(int(sys.argv[1]), load_rig(sys.argv[2]).embodiment.robots[sys.argv[3]])
    client.velocity = float(sys.argv[4])
    time.sleep(60.0)
