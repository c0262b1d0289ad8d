"""`vla train`: demonstrations, training, closed-loop checks, checkpoint."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer

from vla_ros.core.devices import load_device
from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import DataError
from vla_ros.policies.checkpoint import CheckpointConfig, write_checkpoint
from vla_ros.policies.layout import Layout, layout_for
from vla_ros.policies.network_policy import SYSTEMS, make_network
from vla_ros.policies.text import build_tokenizer
from vla_ros.training.closed_loop import Result, check_closed_loop
from vla_ros.training.collect import collect
from vla_ros.training.config import TrainingConfig
from vla_ros.training.curves import Log
from vla_ros.training.dataset import Batches, Demonstrations, Reader
from vla_ros.training.measure import record_results
from vla_ros.training.objective import Objective
from vla_ros.training.phrasings import all_training_sentences
from vla_ros.training.progress import Progress
from vla_ros.training.sources import Source
from vla_ros.training.trainer import Trainer

LOG_EVERY_STEPS = 50
RATES = ("success_rate", "wrong_object_rate")


def train(config: TrainingConfig, data: Path, out: Path, resume: bool = False) -> dict[str, Result]:
    """Collects what demonstrations are missing, trains, and leaves `latest/` and `best/` checkpoints, log and curves in `out`.

    Args:
        data: holds a folder of demonstrations for each embodiment, and what is read from datasets.

    Returns:
        By embodiment the closed-loop result of the best checkpoint over `check.final_episodes` scenes.

    Raises:
        ConfigError: nothing to resume, or the state does not fit the configuration.
        DataError: broken demonstrations, a loss that is not finite, no memory, or a full disk; the last checkpoint stays usable.
    """
    demonstrations = [open_source(config, source, data) for source in config.sources]
    torch.manual_seed(config.optimisation.seed)
    run = Run(config, demonstrations, out, resume)
    try:
        run.train()
        return run.finish()
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise DataError(
            f"out of memory ({error}): lower optimisation.batch (now {config.optimisation.batch}), then --resume; "
            f"{out / 'latest'} holds the last good checkpoint"
        ) from error
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{out}: cannot write ({error}); free some space, then --resume. {out / 'latest'} holds the last good checkpoint"
        ) from error


def open_source(config: TrainingConfig, source: Source, data: Path) -> Demonstrations:
    """Collects what the simulator's demonstrations in `data` lack, or brings a dataset there, and reads them."""
    layout = layout_for(load_embodiment(source.embodiment), source.cameras)
    if source.dataset is None:
        folder = data / source.embodiment
        collect(config, source, folder)
    else:
        from vla_ros.training.lerobot_import import import_dataset

        folder = import_dataset(config, source, data)
    return Demonstrations(folder, layout, config.optimisation.stage_weights)


class Run:
    """One training in the folder `out`."""

    def __init__(self, config: TrainingConfig, demonstrations: list[Demonstrations], out: Path, resume: bool) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.config, self.demonstrations, self.out = config, demonstrations, out
        self.tokenizer: Tokenizer = build_tokenizer(
            self.prompt(source.layout, sentence) for source in demonstrations for sentence in all_training_sentences(source.instructions())
        )
        self.network = dict(config.network, vocabulary=self.tokenizer.get_vocab_size())
        network = make_network(self.checkpoint_config({}), "training configuration")
        self.trainer = Trainer(Objective(network, config.loss), config.optimisation)
        if resume:
            self.trainer.load(out)
        self.log = Log(out, self.trainer.step)

    def prompt(self, layout: Layout, sentence: str) -> str:
        config = self.config
        return load_device(SYSTEMS, config.system).prompt(layout, sentence, config.horizon, config.dt_s)

    def checkpoint_config(self, training: dict[str, object]) -> CheckpointConfig:
        config = self.config
        layouts = {source.layout.embodiment: source.layout for source in self.demonstrations}
        return CheckpointConfig(config.system, config.preset, layouts, config.image, config.horizon, config.dt_s, self.network, training)

    def train(self) -> None:
        """Runs to `optimisation.steps`, saving and checking on the way."""
        config, trainer = self.config, self.trainer
        options, check = config.optimisation, config.check
        seed = options.seed + trainer.step
        reader = Reader(self.tokenizer, int(config.network["text_length"]), self.prompt)
        window = getattr(trainer.objective.network, "window", 1)
        batches = Batches(self.demonstrations, [source.share for source in config.sources], reader, config.augmentation, seed, window)
        with Progress(options.steps, trainer.step) as progress:
            recent: list[dict[str, float]] = []
            while trainer.step < options.steps:
                parts = trainer.advance(batches.next(options.batch))
                recent.append({name: float(part.detach()) for name, part in parts.items()})
                if trainer.step % LOG_EVERY_STEPS == 0 or trainer.step == options.steps:
                    figures = {name: float(np.mean([row[name] for row in recent])) for name in recent[0]}
                    self.log.add(step=trainer.step, steps_per_s=progress.advance(trainer.step, figures), **figures)
                    recent.clear()
                if trainer.step % options.save_every_steps == 0 or trainer.step == options.steps:
                    self.save()
                if trainer.step % check.every_steps == 0 or trainer.step == options.steps:
                    self.check(progress)

    def save(self) -> None:
        """Writes the state to resume from and the checkpoint `latest`."""
        self.trainer.save(self.out)
        write_checkpoint(self.out / "latest", self.checkpoint_config(self.provenance()), self.trainer.averaged_network(), self.tokenizer)
        self.log.draw()

    def check(self, progress: Progress) -> None:
        """Measures `latest` in closed loop and keeps it as `best` unless an earlier one did better, over all embodiments."""
        options = self.config.check
        self.trainer.objective.eval()
        results = self.measure("latest", options.first_seed, options.episodes)
        self.trainer.objective.train()
        for embodiment, result in results.items():
            progress.say(f"step {self.trainer.step}: {embodiment}: {result}")
        success, wrong = (float(np.mean([getattr(result, rate) for result in results.values()])) for rate in RATES)
        self.log.add(step=self.trainer.step, success=success, wrong_object=wrong)
        if success >= self.trainer.best_success:
            self.trainer.best_success = success
            self.trainer.save(self.out)
            shutil.copytree(self.out / "latest", self.out / "best", dirs_exist_ok=True)

    def measure(self, checkpoint: str, first_seed: int, episodes: int) -> dict[str, Result]:
        """Closed-loop results of one of the run's checkpoints by embodiment."""
        seeds = range(first_seed, first_seed + episodes)
        return {source.embodiment: check_closed_loop(self.config, source, self.out / checkpoint, seeds) for source in self.config.sources}

    def finish(self) -> dict[str, Result]:
        """Measures `best` on the final seeds and writes the figures into its config.json."""
        options = self.config.check
        results = self.measure("best", options.final_seed, options.final_episodes)
        record_results(self.out / "best", options.final_seed, {f"{name}, after training": result for name, result in results.items()})
        self.log.draw()
        return results

    def provenance(self) -> dict[str, object]:
        """What config.json says about how the weights were made."""
        return {
            "command": shlex.join(["vla", *sys.argv[1:]]),
            "revision": git_revision(),
            "date": time.strftime("%Y-%m-%d"),
            "torch": torch.__version__,
            "steps": self.trainer.step,
            "episodes": {source.layout.embodiment: len(source.episodes) for source in self.demonstrations},
            "samples": sum(map(len, self.demonstrations)),
            "optimisation": asdict(self.config.optimisation),
            "fast_loop": {},
        }


def git_revision() -> str:
    """Returns the commit of this source tree, with "+changes" when it is not clean, or "unknown" outside git."""
    root = Path(__file__).resolve().parents[2]
    try:
        commit = subprocess.run(
            ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "-C", root, "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit + ("+changes" if changes else "")
