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
from vla_ros.training.config import Augmentation, TrainingConfig
from vla_ros.training.curves import Log
from vla_ros.training.dataset import Batches, Demonstrations, Reader
from vla_ros.training.measure import record, record_results
from vla_ros.training.objective import Objective
from vla_ros.training.phrasings import all_training_sentences
from vla_ros.training.progress import Progress
from vla_ros.training.sources import Source
from vla_ros.training.trainer import Trainer
from vla_ros.training.validation import Validation

LOG_EVERY_STEPS = 50
RATES = ("success_rate", "wrong_object_rate")


def train(config: TrainingConfig, data: Path, out: Path, resume: bool = False) -> dict[str, Result]:
    """Collects what demonstrations are missing, trains, and leaves `latest/` and `best/` checkpoints, log and curves in `out`.

    Args:
        data: holds a folder of demonstrations for each embodiment, and what is read from datasets.

    Returns:
        By embodiment the closed-loop result of the best checkpoint over `check.final_episodes` scenes; none for a dataset.

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
    return Demonstrations(folder, layout, config.optimisation.stage_weights, source.held_out_share, config.optimisation.seed)


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
        self.reader = Reader(self.tokenizer, int(config.network["text_length"]), self.prompt)
        self.validation = Validation(demonstrations, self.batches, config.optimisation.batch, config.optimisation.seed)
        self.log = Log(out, self.trainer.step)

    def prompt(self, layout: Layout, sentence: str) -> str:
        config = self.config
        return load_device(SYSTEMS, config.system).prompt(layout, sentence, config.horizon, config.dt_s)

    def checkpoint_config(self, training: dict[str, object]) -> CheckpointConfig:
        config = self.config
        layouts = {source.layout.embodiment: source.layout for source in self.demonstrations}
        return CheckpointConfig(config.system, config.preset, layouts, config.image, config.horizon, config.dt_s, self.network, training)

    def batches(self, augmentation: Augmentation, seed: int) -> Batches:
        """What the network sees of the demonstrations."""
        window = getattr(self.trainer.objective.network, "window", 1)
        shares = [source.share for source in self.config.sources]
        return Batches(self.demonstrations, shares, self.reader, augmentation, seed, window)

    def train(self) -> None:
        """Runs to `optimisation.steps`, saving and checking on the way."""
        config, trainer = self.config, self.trainer
        options, check = config.optimisation, config.check
        batches = self.batches(config.augmentation, options.seed + trainer.step)
        with Progress(options.steps, trainer.step) as progress:
            recent: list[dict[str, float]] = []
            while trainer.step < options.steps:
                parts = trainer.advance(batches.next(options.batch))
                recent.append({name: float(part.detach()) for name, part in parts.items()})
                if trainer.step % LOG_EVERY_STEPS == 0 or trainer.step == options.steps:
                    figures = means(recent)
                    self.log.add(step=trainer.step, steps_per_s=progress.advance(trainer.step, figures), **figures)
                    recent.clear()
                checked = trainer.step % check.every_steps == 0 or trainer.step == options.steps
                if checked or trainer.step % options.save_every_steps == 0:  # what is checked is what was saved
                    self.save()
                if checked:
                    self.check(progress)

    def save(self) -> None:
        """Writes the state to resume from and the checkpoint `latest`."""
        self.trainer.save(self.out)
        write_checkpoint(self.out / "latest", self.checkpoint_config(self.provenance()), self.trainer.averaged_network(), self.tokenizer)
        self.log.draw()

    def check(self, progress: Progress) -> None:
        """Measures `latest` and keeps it as `best` unless an earlier one did better.

        What counts is closed-loop success over all simulators; without one it is the loss on held-out episodes; without these the newest
        is the best.
        """
        options, trainer = self.config.check, self.trainer
        figures, score = {}, 0.0
        if self.validation.sources:
            figures["validation"] = self.validation.loss(trainer.objective, trainer.average)
            score = -figures["validation"]
            progress.say(f"step {trainer.step}: validation loss {-score:.4g}")
        trainer.objective.eval()
        results = self.measure("latest", options.first_seed, options.episodes)
        trainer.objective.train()
        for embodiment, result in results.items():
            progress.say(f"step {trainer.step}: {embodiment}: {result}")
        if results:
            success, wrong = (float(np.mean([getattr(result, rate) for result in results.values()])) for rate in RATES)
            figures |= {"success": success, "wrong_object": wrong}
            score = success
        self.log.add(step=trainer.step, **figures)
        if score >= trainer.best_success:
            trainer.best_success = score
            trainer.save(self.out)
            shutil.copytree(self.out / "latest", self.out / "best", dirs_exist_ok=True)

    def measure(self, checkpoint: str, first_seed: int, episodes: int) -> dict[str, Result]:
        """Closed-loop results of one of the run's checkpoints by embodiment, of those that have a simulator."""
        seeds, folder = range(first_seed, first_seed + episodes), self.out / checkpoint
        simulated = [source for source in self.config.sources if source.simulator]
        return {source.embodiment: check_closed_loop(self.config, source, folder, seeds) for source in simulated}

    def finish(self) -> dict[str, Result]:
        """Measures `best` on the final seeds and writes the figures into its config.json."""
        options, best = self.config.check, self.out / "best"
        results = self.measure("best", options.final_seed, options.final_episodes)
        if results:
            record_results(best, options.final_seed, {f"{name}, after training": result for name, result in results.items()})
        elif self.validation.sources:
            record(best, {"validation": -self.trainer.best_success})
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


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every figure over the rows that have it: a dataset does not know the error of an object's position."""
    finite = {name: [row[name] for row in rows if np.isfinite(row[name])] for name in rows[0]}
    return {name: float(np.mean(values)) for name, values in finite.items() if values}


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
