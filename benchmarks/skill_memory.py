"""What MoL-MSM VLA pays for a look into its memory: the nearest 4 of 4096 entries at the paper's key width, against torch's own distances.

python benchmarks/skill_memory.py
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ENTRIES, KEY_WIDTH, RETRIEVED = 4096, 3 * 896, 4  # three layers of the paper's language model
ROWS, CHANNELS = 8, 7
ROUNDS = 31
LIMIT_MS = 5.0


def measure() -> dict[str, float]:
    """Returns milliseconds of one retrieval, medians of alternating rounds, and their ratio; of a core's time, so that others may run."""
    import torch

    from vla_ros.policies.mol_msm.memory import Memory

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    memory = Memory(ENTRIES, KEY_WIDTH, ROWS, CHANNELS)
    memory.push(torch.randn(ENTRIES, KEY_WIDTH), torch.randn(ENTRIES, ROWS, CHANNELS), torch.arange(ENTRIES))
    key = torch.randn(1, KEY_WIDTH)

    def ours() -> torch.Tensor:
        return memory.nearest(key, RETRIEVED).chunks

    def plain() -> torch.Tensor:
        return memory.chunks[torch.cdist(key, memory.keys, p=1).topk(RETRIEVED, largest=False).indices]

    spent: dict[str, list[float]] = {"retrieval": [], "cdist": []}
    same = torch.equal(ours(), plain())  # also the warm-up
    for _ in range(ROUNDS):
        for name, run in (("retrieval", ours), ("cdist", plain)):
            start_s = time.thread_time()
            run()
            spent[name].append((time.thread_time() - start_s) * 1e3)
    torch.set_num_threads(threads)
    if not same:
        raise RuntimeError("the memory returned other chunks than torch.cdist")
    medians = {name: statistics.median(values) for name, values in spent.items()}
    return {"retrieval_ms": medians["retrieval"], "cdist_ms": medians["cdist"], "ratio": medians["retrieval"] / medians["cdist"]}


if __name__ == "__main__":
    figures = measure()
    print(", ".join(f"{name} {value:.3g}" for name, value in figures.items()), f"(limit of a retrieval {LIMIT_MS:g} ms)")
    sys.exit(figures["retrieval_ms"] > LIMIT_MS)
