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

from vla_ros.core.errors import DataError
from vla_ros.policies.checkpoint import CheckpointConfig, write_checkpoint
from vla_ros.policies.robovlms import ACTION_CHANNELS, STATE_CHANNELS, make_network
from vla_ros.policies.text import build_tokenizer
from vla_ros.training.closed_loop import Result, check_closed_loop
from vla_ros.training.collect import collect
from vla_ros.training.config import TrainingConfig
from vla_ros.training.curves import Log
from vla_ros.training.dataset import Batches, Demonstrations
from vla_ros.training.measure import record_results
from vla_ros.training.objective import Objective
from vla_ros.training.phrasings import all_training_sentences
from vla_ros.training.progress import Progress
from vla_ros.training.trainer import Trainer

LOG_EVERY_STEPS = 50


def train(config: TrainingConfig, data: Path, out: Path, resume: bool = False) -> Result:
    """Collects what demonstrations are missing, trains, and leaves `latest/` and `best/` checkpoints, log and curves in `out`.

    Returns:
        The closed-loop result of the best checkpoint over `check.final_episodes` scenes.

    Raises:
        ConfigError: nothing to resume, or the state does not fit the configuration.
        DataError: broken demonstrations, a loss that is not finite, or a full disk; the last checkpoint stays usable.
    """
    collect(config, data)
    torch.manual_seed(config.optimisation.seed)
    demonstrations = Demonstrations(data, config.optimisation.stage_weights)
    run = Run(config, demonstrations, out, resume)
    try:
        run.train()
        return run.finish()
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{out}: cannot write ({error}); free some space, then --resume. {out / 'latest'} holds the last good checkpoint"
        ) from error


class Run:
    """One training in the folder `out`."""

    def __init__(self, config: TrainingConfig, demonstrations: Demonstrations, out: Path, resume: bool) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.config, self.demonstrations, self.out = config, demonstrations, out
        self.tokenizer: Tokenizer = build_tokenizer(all_training_sentences(demonstrations.instructions()))
        self.network = dict(config.network, vocabulary=self.tokenizer.get_vocab_size())
        network = make_network(self.checkpoint_config({}), "training configuration")
        self.trainer = Trainer(Objective(network, config.loss), config.optimisation)
        if resume:
            self.trainer.load(out)
        self.log = Log(out, self.trainer.step)

    def checkpoint_config(self, training: dict[str, object]) -> CheckpointConfig:
        config, data = self.config, self.demonstrations
        return CheckpointConfig(
            system=config.system,
            preset=config.preset,
            embodiment=config.embodiment,
            cameras=config.cameras,
            image=config.image,
            state=STATE_CHANNELS,
            channels=ACTION_CHANNELS,
            horizon=config.horizon,
            dt_s=config.dt_s,
            network=self.network,
            normalization={"state": data.state_statistics.to_json(), "pose": data.pose_statistics.to_json()},
            training=training,
        )

    def train(self) -> None:
        """Runs to `optimisation.steps`, saving and checking on the way."""
        config, trainer = self.config, self.trainer
        options, check = config.optimisation, config.check
        seed = options.seed + trainer.step
        batches = Batches(self.demonstrations, self.tokenizer, int(config.network["text_length"]), config.augmentation, seed)
        with Progress(options.steps, trainer.step) as progress:
            window: list[dict[str, float]] = []
            while trainer.step < options.steps:
                parts = trainer.advance(batches.next(options.batch))
                window.append(self._figures(parts))
                if trainer.step % LOG_EVERY_STEPS == 0 or trainer.step == options.steps:
                    figures = {name: float(np.mean([row[name] for row in window])) for name in window[0]}
                    self.log.add(step=trainer.step, steps_per_s=progress.advance(trainer.step, figures), **figures)
                    window.clear()
                if trainer.step % options.save_every_steps == 0 or trainer.step == options.steps:
                    self.save()
                if trainer.step % check.every_steps == 0 or trainer.step == options.steps:
                    self.check(progress)

    def _figures(self, parts: dict[str, torch.Tensor]) -> dict[str, float]:
        spread = torch.from_numpy(self.demonstrations.object_spread_m).float()
        figures = {name: float(part.detach()) for name, part in parts.items() if name != "block"}
        return figures | {"block_m": float((parts["block"] * spread).norm(dim=-1).mean())}

    def save(self) -> None:
        """Writes the state to resume from and the checkpoint `latest`."""
        self.trainer.save(self.out)
        write_checkpoint(self.out / "latest", self.checkpoint_config(self.provenance()), self.trainer.averaged_network(), self.tokenizer)
        self.log.draw()

    def check(self, progress: Progress) -> None:
        """Measures `latest` in closed loop and keeps it as `best` unless an earlier one did better."""
        options = self.config.check
        self.trainer.objective.eval()
        seeds = range(options.first_seed, options.first_seed + options.episodes)
        result = check_closed_loop(self.config, self.out / "latest", seeds)
        self.trainer.objective.train()
        progress.say(f"step {self.trainer.step}: {result}")
        self.log.add(step=self.trainer.step, success=result.success_rate, wrong_object=result.wrong_object_rate)
        if result.success_rate >= self.trainer.best_success:
            self.trainer.best_success = result.success_rate
            self.trainer.save(self.out)
            shutil.copytree(self.out / "latest", self.out / "best", dirs_exist_ok=True)

    def finish(self) -> Result:
        """Measures `best` on the final seeds and writes the figures into its config.json."""
        options = self.config.check
        result = check_closed_loop(self.config, self.out / "best", range(options.final_seed, options.final_seed + options.final_episodes))
        record_results(self.out / "best", options.final_seed, {"after training": result})
        self.log.draw()
        return result

    def provenance(self) -> dict[str, object]:
        """What config.json says about how the weights were made."""
        return {
            "command": shlex.join(["vla", *sys.argv[1:]]),
            "revision": git_revision(),
            "date": time.strftime("%Y-%m-%d"),
            "torch": torch.__version__,
            "steps": self.trainer.step,
            "episodes": len(self.demonstrations.episodes),
            "samples": len(self.demonstrations),
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
