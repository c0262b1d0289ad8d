"""openpi's client with 3 x 640x480 RGB and a state, a 50 x 7 chunk back: `vla serve` against openpi's server, the same dummy policy.

The client is the same on both sides and runs in openpi's own environment, so that only the server differs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.round_trip import _peer_environment

ROUNDS, WARM_UP, TURNS = 100, 20, 4
PEER = Path(__file__).with_name("serve_peer.py")
_OURS = [sys.executable, "-m", "vla_ros.cli", "serve", "benchmarks.doubles:StillPolicy", "--embodiment", "franka", "--port", "0"]


def measure(folder: Path) -> dict[str, float]:
    """Returns ms and the ratio of medians, ours over openpi's; the peer's environment is made in `folder`."""
    peer_python = _peer_environment(folder / "openpi")
    bare = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_LIBRARY_PATH")}  # ours hold another numpy
    ours, peer = [], []
    for _ in range(TURNS):  # alternate, so that whatever else the machine does meets both
        ours += _round_trips(_OURS, dict(os.environ), peer_python, bare)
        peer += _round_trips([peer_python, str(PEER), "serve"], bare, peer_python, bare)
    quantiles = {
        f"{name}_p{q}_ms": float(np.percentile(values, q)) for name, values in (("ours", ours), ("openpi", peer)) for q in (50, 99)
    }
    return {**quantiles, "ratio_p50": quantiles["ours_p50_ms"] / quantiles["openpi_p50_ms"]}


def _round_trips(server: list[str], environment: dict[str, str], client_python: str, bare: dict[str, str]) -> list[float]:
    process = subprocess.Popen(server, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        port = _port(process.stdout.readline())
        command = [client_python, str(PEER), "measure", port, str(ROUNDS), str(WARM_UP)]
        answer = subprocess.run(command, env=bare, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(answer.stdout)
    finally:
        process.terminate()
        process.wait()


def _port(line: str) -> str:
    """The server's first line: openpi's peer prints the port alone, `vla serve` an address openpi://host:port."""
    address = next((word for word in line.split() if word.startswith("openpi://")), line.strip())
    port = address.rpartition(":")[2]
    if not port.isdigit():
        raise RuntimeError(f"the server did not start: {line!r}")
    return port
