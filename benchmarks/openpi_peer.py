"""The same round trip over openpi's own client and server, each in a process of its own. Prints the ms of each round as JSON."""

from __future__ import annotations

import json
import multiprocessing
import socket
import sys
import time

import numpy as np


class StillPolicy:
    def infer(self, observation: dict) -> dict:
        return {"actions": np.tile(np.append(observation["state"], 0.0), (50, 1))}


def serve(port: int) -> None:
    from openpi_server import WebsocketPolicyServer

    WebsocketPolicyServer(StillPolicy(), host="127.0.0.1", port=port).serve_forever()


def main(rounds: int, warm_up: int) -> None:
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    server.start()
    client = None
    while client is None:
        try:
            client = WebsocketClientPolicy("127.0.0.1", port)
        except ConnectionRefusedError:
            time.sleep(0.05)
    pictures = {
        name: np.random.default_rng(i).integers(0, 255, (480, 640, 3), dtype=np.uint8) for i, name in enumerate(("front", "wrist", "side"))
    }
    taken = []
    for _ in range(rounds + warm_up):
        start_s = time.perf_counter()
        client.infer({**pictures, "state": np.zeros(6), "prompt": "stay"})
        taken.append((time.perf_counter() - start_s) * 1e3)
    server.terminate()
    print(json.dumps(taken[warm_up:]))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
