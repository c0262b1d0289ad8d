"""What a memory holds, in figures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vla_ros.core.errors import PolicyError
from vla_ros.policies.checkpoint import CONFIG, read_config
from vla_ros.policies.mol_msm.memory import l1_distances
from vla_ros.policies.mol_msm.memory_file import MEMORY, open_memory
from vla_ros.policies.mol_msm.sizes import read_sizes

_SAMPLE = 512


def summarise(folder: Path) -> dict[str, object]:
    """Returns what `vla skill memory --json` prints, of a checkpoint's folder; the network is not built.

    `nearest_distance` is the median over entries of the L1 distance to the nearest key of another episode; `correlation` is that of the
    distances of keys with the distances of their chunks: near 1 where scenes that look alike want the same motion (the paper has 0.62).
    Both are of at most 512 entries, and None where there are too few.

    Raises:
        PolicyError: no MoL-MSM checkpoint, one without a memory, or its memory is missing, empty or broken.
    """
    config = read_config(folder)
    if config.system != "mol_msm_vla":
        raise PolicyError(f"{folder / CONFIG}: a {config.system}, which has no memory; mol_msm_vla has")
    capacity = read_sizes(config.layouts, config.network)[1]["memory"]
    if not capacity:
        raise PolicyError(f"{folder / CONFIG}: network.memory = 0: this checkpoint does without a memory")
    tensors, note = open_memory(folder)
    keys, chunks, episodes = tensors["keys"], tensors["chunks"], tensors["episodes"]
    nearest, correlation = _distances(keys, chunks, episodes)
    return {
        "file": str(folder / MEMORY),
        "bytes": (folder / MEMORY).stat().st_size,
        "entries": len(keys),
        "capacity": capacity,
        "episodes": len(episodes.unique()),
        "stage": note.stage,
        "embodiment": note.embodiment,
        "channels": list(note.channels),
        "horizon": note.horizon,
        "key_width": note.key_width,
        "nearest_distance": nearest,
        "correlation": correlation,
    }


def _distances(keys: Tensor, chunks: Tensor, episodes: Tensor) -> tuple[float | None, float | None]:
    if len(keys) < 3:
        return None, None
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(0))[:_SAMPLE]
    keys, chunks, episodes = keys[order], chunks[order].flatten(1), episodes[order]
    of_keys, of_chunks = l1_distances(keys, keys), l1_distances(chunks, chunks)
    others = of_keys.masked_fill(episodes[:, None] == episodes, torch.inf).amin(1)
    others = others[others.isfinite()]
    pairs = torch.triu_indices(len(keys), len(keys), 1)
    correlation = torch.corrcoef(torch.stack([of_keys[pairs[0], pairs[1]], of_chunks[pairs[0], pairs[1]]]))[0, 1]
    return (
        round(float(others.median()), 3) if len(others) else None,
        round(float(correlation), 3) if correlation.isfinite() else None,
    )
