"""openpi's own client and server, run in their own environment (see `round_trip._peer_environment`).

serve                        openpi's server with a policy that does nothing; prints its port
measure PORT ROUNDS WARM_UP  the ms of each round trip of openpi's client to whoever serves there, as JSON
ask PORT TOKEN               what a served policy for one arm with two cameras says, as JSON
"""

from __future__ import annotations

import json
import socket
import sys
import time

import numpy as np

CAMERAS = ("front", "wrist", "side")
STATE, ROWS = 6, 50


class StillPolicy:
    """The same answer as `benchmarks.doubles.StillPolicy`."""

    def infer(self, observation: dict) -> dict:
        return {"actions": np.tile(np.append(observation["state"], 0.0), (ROWS, 1))}


def serve() -> None:
    from openpi_server import WebsocketPolicyServer

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    print(port, flush=True)
    WebsocketPolicyServer(StillPolicy(), host="127.0.0.1", port=port, metadata={"name": "still"}).serve_forever()


def client(port: int, token: str | None = None):
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    until_s = time.monotonic() + 30.0
    while True:
        try:
            return WebsocketClientPolicy("127.0.0.1", port, token)
        except ConnectionRefusedError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.05)


def measure(port: int, rounds: int, warm_up: int) -> None:
    policy = client(port)
    pictures = {name: np.random.default_rng(i).integers(0, 255, (480, 640, 3), dtype=np.uint8) for i, name in enumerate(CAMERAS)}
    taken = []
    for _ in range(rounds + warm_up):
        start_s = time.perf_counter()
        answer = policy.infer({**pictures, "state": np.zeros(STATE), "prompt": "stay"})
        taken.append((time.perf_counter() - start_s) * 1e3)
        if answer["actions"].shape != (ROWS, STATE + 1):
            raise SystemExit(f"actions {answer['actions'].shape}")
    print(json.dumps(taken[warm_up:]))


def ask(port: int, token: str) -> None:
    policy = client(port, token)
    observation = {name: np.zeros((48, 64, 3), np.uint8) for name in CAMERAS[:2]}
    observation |= {"state": 0.1 * np.arange(1, STATE + 1), "prompt": "stay"}
    good = policy.infer(observation)["actions"]
    try:
        error = str(policy.infer({**observation, "state": np.zeros(STATE - 1)}))
    except RuntimeError as raised:
        error = str(raised)
    after_error = policy.infer(observation)["actions"]
    answer = {"metadata": policy.get_server_metadata(), "shape": good.shape, "first": good[0].tolist(), "error": error}
    print(json.dumps({**answer, "after_error": after_error.shape}))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "serve":
        serve()
    elif command == "measure":
        measure(*map(int, arguments))
    else:
        ask(int(arguments[0]), arguments[1])
