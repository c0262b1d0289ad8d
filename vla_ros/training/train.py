"""`vla train`: demonstrations, training, closed-loop checks, checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from vla_ros.core.embodiment import load_embodiment
from vla_ros.policies.layout import Layout, layout_for
from vla_ros.training.closed_loop import Result
from vla_ros.training.collect import collect
from vla_ros.training.config import TrainingConfig
from vla_ros.training.dataset import Demonstrations
from vla_ros.training.failures import told
from vla_ros.training.processes import start_processes
from vla_ros.training.run import Run
from vla_ros.training.sources import Source
from vla_ros.training.start import inherited_layouts, starting_point


def train(config: TrainingConfig, data: Path, out: Path, resume: bool = False) -> dict[str, Result] | None:
    """Collects what demonstrations are missing, trains, and leaves `latest/` and `best/` checkpoints, log and curves in `out`.

    Args:
        data: holds a folder of demonstrations for each embodiment, and what is read from datasets.

    Returns:
        By embodiment the closed-loop result of the best checkpoint over `check.final_episodes` scenes; none for a dataset. None in
        every process but the first.

    Raises:
        ConfigError: nothing to resume, or a state, `init` or `stage` that does not fit the configuration.
        DataError: broken demonstrations, a loss that is not finite, no memory, or a full disk; the last checkpoint stays usable.
    """
    start = starting_point(out, resume, config.init)
    layouts = inherited_layouts(start, config)
    out.mkdir(parents=True, exist_ok=True)
    processes = start_processes()
    with processes.main_process_first():  # the others find what it has collected
        demonstrations = [open_source(config, source, data, layouts.get(source.embodiment)) for source in config.sources]
    torch.manual_seed(config.optimisation.seed)
    run = Run(config, demonstrations, layouts, out, start, processes)
    torch.manual_seed(config.optimisation.seed + processes.process_index)  # the same weights, then noise of their own
    with told(out, f"optimisation.batch (now {config.optimisation.batch})"):
        run.train()
        return run.finish() if processes.is_main_process else None


def open_source(config: TrainingConfig, source: Source, data: Path, layout: Layout | None = None) -> Demonstrations:
    """Collects what the simulator's demonstrations in `data` lack, or brings a dataset there, and reads them, by a known layout if any."""
    layout = layout or layout_for(load_embodiment(source.embodiment), source.cameras)
    if source.dataset is None:
        folder = data / source.embodiment
        collect(config, source, folder)
    else:
        from vla_ros.training.lerobot_import import import_dataset

        folder = import_dataset(config, source, data)
    return Demonstrations(folder, layout, config.optimisation.stage_weights, source.held_out_share, config.optimisation.seed)
