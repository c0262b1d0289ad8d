"""Four Euler steps of Qwen-VLA's action expert with the observation's keys and values kept, against computing them anew in each step.

The proportions are the paper's (700 tokens of the observation, 16 action rows, 64 channels), the widths such that one CPU core is enough.
    python benchmarks/flow_cache.py
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CONTEXT, TOKENS, ROWS, CHANNELS = 640, 700, 16, 64
WIDTH, BLOCKS, HEADS = 384, 4, 3
STEPS, ROUNDS = 4, 7
LIMIT = 0.33


def measure() -> dict[str, float]:
    """Returns milliseconds of a chunk, medians of alternating rounds, their ratio and the largest difference of the actions."""
    import torch

    from vla_ros.policies.flow import solve
    from vla_ros.policies.qwen_vla.expert import ActionExpert

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    expert = ActionExpert(CONTEXT, WIDTH, BLOCKS, HEADS, CHANNELS, 10_000.0).eval()
    sequence, noise = torch.randn(1, TOKENS, CONTEXT), torch.randn(1, ROWS, CHANNELS)
    mask = torch.ones(1, TOKENS, dtype=torch.bool)

    def cached() -> torch.Tensor:
        prefix = expert.prefill(sequence, mask)
        return solve(lambda rows, tau: expert.velocity(prefix, rows, tau), noise, STEPS)

    def uncached() -> torch.Tensor:
        return solve(lambda rows, tau: expert.velocity(expert.prefill(sequence, mask), rows, tau), noise, STEPS)

    def whole() -> torch.Tensor:  # in one pass with one mask: slower than `uncached`, so it is no fair peer
        return solve(lambda rows, tau: expert(sequence, mask, rows, tau), noise, STEPS)

    spent: dict[str, list[float]] = {"cached": [], "uncached": []}
    with torch.no_grad():
        difference = float((cached() - whole()).abs().max())  # also the warm-up
        for _ in range(ROUNDS):
            for name, run in (("cached", cached), ("uncached", uncached)):
                start_s = time.perf_counter()
                run()
                spent[name].append((time.perf_counter() - start_s) * 1e3)
    torch.set_num_threads(threads)
    if difference > 1e-5:
        raise RuntimeError(f"cached and uncached actions differ by {difference}")
    medians = {name: statistics.median(values) for name, values in spent.items()}
    return {
        "cached_ms": medians["cached"],
        "uncached_ms": medians["uncached"],
        "ratio": medians["cached"] / medians["uncached"],
        "difference": difference,
    }


if __name__ == "__main__":
    figures = measure()
    print(", ".join(f"{name} {value:.3g}" for name, value in figures.items()), f"(limit of the ratio {LIMIT})")
    sys.exit(figures["ratio"] > LIMIT)
