"""One training in its folder: steps, log, checkpoints, and the checks that choose the best of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from vla_ros.core.devices import load_device
from vla_ros.policies import SYSTEMS
from vla_ros.policies.checkpoint import CheckpointConfig, copy_checkpoint, write_checkpoint
from vla_ros.policies.layout import Layout
from vla_ros.policies.network_policy import make_network
from vla_ros.training.closed_loop import Result, check_closed_loop
from vla_ros.training.config import Augmentation, TrainingConfig
from vla_ros.training.curves import Log
from vla_ros.training.dataset import Batches, Demonstrations, Reader
from vla_ros.training.measure import record, record_results
from vla_ros.training.objective import Objective
from vla_ros.training.phrasings import all_training_sentences
from vla_ros.training.progress import Progress
from vla_ros.training.provenance import provenance
from vla_ros.training.start import configure_stage, load_weights, tokenizer_of
from vla_ros.training.trainer import Trainer
from vla_ros.training.validation import Validation

LOG_EVERY_STEPS = 50
RATES = ("success_rate", "wrong_object_rate")


class Run:
    """One training in the folder `out`, in which only the first of several processes writes and checks."""

    def __init__(
        self,
        config: TrainingConfig,
        demonstrations: list[Demonstrations],
        layouts: Mapping[str, Layout],
        out: Path,
        start: Path | None,
        processes: Accelerator,
    ) -> None:
        """Starts from scratch or at `start`; goes on where that is `latest` in `out`. `layouts`: robots to drive that learn nothing new."""
        self.config, self.demonstrations, self.out, self.processes = config, demonstrations, out, processes
        self.layouts = {**layouts, **{source.layout.embodiment: source.layout for source in demonstrations}}
        sentences = ((source.layout, text) for source in demonstrations for text in all_training_sentences(source.instructions()))
        self.tokenizer = tokenizer_of(start, (self.prompt(layout, text) for layout, text in sentences))
        self.network = dict(config.network, vocabulary=self.tokenizer.get_vocab_size())
        network = make_network(self.checkpoint_config(), "training configuration")
        resume = start == out / "latest"
        if start is not None and not resume:
            load_weights(network, start, self.checkpoint_config())
        configure_stage(network, config.stage, self.tokenizer)
        self.trainer = Trainer(Objective(network, config.loss), config.optimisation, processes)
        if resume:
            self.trainer.load(out)
            if hasattr(network, "load_memory"):
                network.load_memory(out / "latest")
        self.reader = Reader(self.tokenizer, int(config.network["text_length"]), self.prompt)
        self.validation = Validation(demonstrations, self.batches, config.optimisation.batch, config.optimisation.seed)

    def prompt(self, layout: Layout, sentence: str) -> str:
        config = self.config
        return load_device(SYSTEMS, config.system).prompt(layout, sentence, config.horizon, config.dt_s)

    def checkpoint_config(self, **training: object) -> CheckpointConfig:
        config = self.config
        return CheckpointConfig(
            config.system, config.preset, self.layouts, config.image, config.horizon, config.dt_s, self.network, training
        )

    def batches(self, augmentation: Augmentation, seed: int, process: int = 0) -> Batches:
        """What the network sees of the demonstrations; processes differ in everything but the source that a batch is of."""
        network = self.trainer.objective.network
        window, whole = getattr(network, "window", 1), getattr(network, "whole_trajectories", False)
        shares = [source.share for source in self.config.sources]
        return Batches(self.demonstrations, shares, self.reader, augmentation, seed, window, whole, process)

    def train(self) -> None:
        """Runs to `optimisation.steps`, saving and checking on the way."""
        config, trainer, first = self.config, self.trainer, self.processes.is_main_process
        options, check = config.optimisation, config.check
        batches = self.batches(config.augmentation, options.seed + trainer.step, self.processes.process_index)
        recent: list[dict[str, float]] = []
        with Progress(options.steps, trainer.step, shown=first) as progress, Log(self.out, trainer.step, written=first) as log:
            while trainer.step < options.steps:
                rate = trainer.learning_rate
                parts = trainer.advance(batches.next(options.batch))
                recent.append({name: float(part.detach()) for name, part in parts.items()})
                if trainer.step % LOG_EVERY_STEPS == 0 or trainer.step == options.steps:
                    figures = means(recent)
                    log.add(trainer.step, steps_per_s=progress.advance(trainer.step, figures), learning_rate=rate, **figures)
                    recent.clear()
                checked = trainer.step % check.every_steps == 0 or trainer.step == options.steps
                if first and (checked or trainer.step % options.save_every_steps == 0):  # what is checked is what was saved
                    self.save(log)
                if first and checked:
                    self.check(progress, log)
                if checked:
                    self.processes.wait_for_everyone()

    def save(self, log: Log) -> None:
        """Writes the state to resume from and the checkpoint `latest`."""
        write_checkpoint(self.out / "latest", self.checkpoint_config(**self.made()), self.trainer.averaged_network(), self.tokenizer)
        if hasattr(network := self.trainer.objective.network, "save_memory"):
            network.save_memory(self.out / "latest")
        self.trainer.save(self.out)  # last: to resume takes both
        log.draw()

    def check(self, progress: Progress, log: Log) -> None:
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
        log.add(trainer.step, **figures)
        log.draw()
        if score >= trainer.best_score:
            trainer.best_score = score
            copy_checkpoint(self.out / "latest", self.out / "best")
            trainer.save(self.out)

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
            record(best, {"validation": -self.trainer.best_score})
        return results

    def made(self) -> dict[str, object]:
        """What config.json says about how the weights were made."""
        return provenance() | {
            "init": self.config.init,
            "stage": self.config.stage,
            "steps": self.trainer.step,
            "episodes": {source.layout.embodiment: len(source.episodes) for source in self.demonstrations},
            "samples": sum(map(len, self.demonstrations)),
            "optimisation": asdict(self.config.optimisation),
            "processes": self.processes.num_processes,
            "fast_loop": {},
        }


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every figure over the rows that have it: a dataset does not know the error of an object's position."""
    finite = {name: [row[name] for row in rows if np.isfinite(row[name])] for name in rows[0]}
    return {name: float(np.mean(values)) for name, values in finite.items() if values}
