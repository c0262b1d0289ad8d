"""How long one observation takes at paper size on a GPU: bf16, batch 1, random weights, eager and as a CUDA graph.

    python benchmarks/gpu_latency.py [--json FILE] [POLICY ...]

POLICY is a file of config/policies. Without a GPU it says so, claims nothing and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

POLICIES = ("qwen_vla", "robovlms_kosmos2", "robovlms_paligemma")
# Memory traffic and arithmetic of an H200 (4.3 TB/s, 790 TFLOP/s): what no implementation can be faster than.
FLOORS_MS = {"qwen_vla": 12.4}
WARM_UP, ROUNDS = 3, 30


def observation(config: object, device: str) -> object:
    """A random observation of the policy's first embodiment, [1, ...]."""
    import torch

    from vla_ros.policies.network import Inputs

    name, layout = next(iter(config.layouts.items()))
    size = len(layout.cameras), 3, config.image["height"], config.image["width"]
    tokens = torch.randint(2, 1000, (1, int(config.network["text_length"])), device=device)
    return Inputs(name, torch.rand(1, *size, device=device) * 2 - 1, torch.zeros(1, layout.feature_count, device=device), tokens)


def median_ms(run: Callable[[], object]) -> float:
    """Median over `ROUNDS` of the wall time of `run` until the device is done."""
    import torch

    spent = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        start_s = time.perf_counter()
        run()
        torch.cuda.synchronize()
        spent.append((time.perf_counter() - start_s) * 1e3)
    return statistics.median(spent)


def measure(policy: str, preset: str = "paper") -> dict[str, object]:
    """Returns milliseconds of `predict`, eager and captured; `graph_ms` is None, with `why_no_graph`, where capturing fails."""
    import torch

    from vla_ros.policies.network_policy import make_network
    from vla_ros.policies.presets import load_preset

    config = load_preset(policy, preset)
    config = replace(config, network={"vocabulary": 1000, **config.network} if preset == "tiny" else config.network)
    with torch.device("cuda"):
        network = make_network(config, policy).to(torch.bfloat16).eval()
    inputs = observation(config, "cuda")
    result: dict[str, object] = {"policy": policy, "preset": preset, "floor_ms": FLOORS_MS.get(policy)}

    def run() -> torch.Tensor:
        network.reset()
        return network.predict(inputs)

    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        for _ in range(WARM_UP):
            run()
        result["eager_ms"] = median_ms(run)
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            result["graph_ms"] = median_ms(graph.replay)
        except RuntimeError as error:  # an operation that waits for the host cannot be captured
            result |= {"graph_ms": None, "why_no_graph": str(error).splitlines()[0]}
    result["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="*", metavar="POLICY", help=f"default: {' '.join(POLICIES)}")
    parser.add_argument("--preset", default="paper", help='"paper" or "tiny"')
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured, nothing is claimed")
        return 0
    rows = []
    for policy in arguments.policies or POLICIES:
        torch.cuda.reset_peak_memory_stats()
        rows.append(measure(policy, arguments.preset))
        print(rows[-1], flush=True)
        torch.cuda.empty_cache()
    if arguments.json:
        device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
        arguments.json.write_text(json.dumps({**device, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
