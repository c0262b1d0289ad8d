"""The processes of one training: one on a CPU or a GPU, or several, of `accelerate launch` or `torchrun`, each with batches of its own."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

# While the first process checks in closed loop the others wait.
PATIENCE = timedelta(hours=2)


def start_processes() -> Accelerator:
    """Joins the other processes, if there are any. Precision is the configuration's, not that of accelerate's own file."""
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),  # a batch is of one robot, a stage trains a part
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )
