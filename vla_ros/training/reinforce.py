"""`vla reinforce`: a flow policy that can do its tasks half tries them in the fast simulation and keeps what succeeds (PPO)."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from vla_ros.core.errors import ConfigError
from vla_ros.policies import find_checkpoint
from vla_ros.policies.checkpoint import CheckpointConfig, copy_checkpoint, read_tokenizer, write_checkpoint
from vla_ros.policies.weights import read_weights
from vla_ros.training.closed_loop import Result, run_scenes
from vla_ros.training.curves import Log, Panel
from vla_ros.training.failures import told
from vla_ros.training.progress import Progress
from vla_ros.training.provenance import provenance
from vla_ros.training.reinforce_config import ReinforcementConfig, Task
from vla_ros.training.reinforce_learner import Learner
from vla_ros.training.rollout_fleet import Fleet, open_collector
from vla_ros.training.rollouts import Episode

START = "start"  # a copy of what the run began with
PANELS = (
    Panel("success", ("rollouts", "success"), "share"),
    Panel("divergence, share beyond the clip", ("divergence", "clipped"), "linear"),
    Panel("losses", ("actor", "value", "imitation"), "linear"),
)


@dataclass(frozen=True)
class Comparison:
    """One task with the weights that the run began with and with the best it found, on the same scenes."""

    task: Task
    before: Result
    after: Result


def reinforce(config: ReinforcementConfig, out: Path, resume: bool = False) -> list[Comparison]:
    """Learns from trying, and leaves `latest/` and `best/` checkpoints, log and curves in `out`.

    Returns:
        Every task's success before and after, over `check.final_episodes` scenes that had no part in it.

    Raises:
        ConfigError: the checkpoint or a task does not fit the configuration, or there is nothing to resume.
        DataError: a loss that is not finite, no memory, or a full disk; the last checkpoint stays usable.
    """
    run = Run(config, out, resume)
    try:
        with told(out, f"rollout.episodes (now {config.rollout.episodes})"):
            run.learn()
            return run.compare()
    finally:
        run.fleet.close()


class Run:
    """One reinforcement in the folder `out`."""

    def __init__(self, config: ReinforcementConfig, out: Path, resume: bool) -> None:
        self.config, self.out = config, out
        if resume and not (out / START).is_dir():
            raise ConfigError(f"{out}: no run was started there; there is nothing to resume: leave --resume out")
        if not resume:
            out.mkdir(parents=True, exist_ok=True)
            copy_checkpoint(find_checkpoint(config.checkpoint), out / START)
        self.collector, self.checkpoint = open_collector(config, out / START)
        self.actor, self.tokenizer = self.collector.actor, read_tokenizer(out / START)
        self.learner = Learner(self.actor, config)
        if resume:
            self.learner.load(out)
        for task in config.tasks:
            self.collector.instructions(task)  # whether there is such a task, before hours are spent
        self.fleet = Fleet(config, self.collector, out / START)
        self.log = Log(out, self.learner.iteration, PANELS)

    def learn(self) -> None:
        """Runs to `ppo.iterations`: tries, learns, saves, and checks now and then."""
        config, learner = self.config, self.learner
        total, every = config.ppo.iterations, config.check.every_iterations
        with Progress(total, learner.iteration, "reinforcement") as progress:
            if learner.iteration == 0:
                self.check(progress)
            while learner.iteration < total:
                began_s = time.monotonic()
                episodes = self.rollouts()
                tried_s = time.monotonic() - began_s
                figures = self.figures(episodes) | learner.update(episodes)
                seconds = {"tried_s": tried_s, "learnt_s": time.monotonic() - began_s - tried_s}
                self.log.add(step=learner.iteration, **figures, **seconds)
                progress.advance(learner.iteration, figures | seconds)
                if learner.iteration % every == 0 or learner.iteration == total:
                    self.check(progress)
                else:
                    self.save()

    def rollouts(self) -> list[Episode]:
        """The episodes of this iteration: scenes that were never seen, divided among the tasks by their shares."""
        options, tasks = self.config.rollout, [task for task in self.config.tasks if task.share > 0]
        first = options.first_seed + self.learner.iteration * options.episodes
        ends = np.round(np.cumsum([task.share for task in tasks]) / sum(task.share for task in tasks) * options.episodes).astype(int)
        parts = np.split(np.arange(first, first + options.episodes), ends[:-1])
        return [episode for task, seeds in zip(tasks, parts, strict=True) for episode in self.fleet.collect(task, seeds.tolist())]

    def figures(self, episodes: list[Episode]) -> dict[str, float]:
        """Success with the injected noise, of all rollouts and of each task's."""
        values = {"rollouts": float(np.mean([episode.success for episode in episodes]))}
        names = dict.fromkeys(episode.task for episode in episodes)
        own = {name: [episode.success for episode in episodes if episode.task == name] for name in names}
        return values | ({f"rollouts, {name}": float(np.mean(own[name])) for name in names} if len(names) > 1 else {})

    def save(self, is_best: bool = False) -> None:
        """Writes the checkpoints `latest` and perhaps `best`, then the state to resume from: a kill on the way repeats the iteration."""
        write_checkpoint(self.out / "latest", self.described(), self.actor.network.state_dict(), self.tokenizer)
        if is_best:
            copy_checkpoint(self.out / "latest", self.out / "best")
        self.learner.save(self.out)
        self.log.draw()

    def check(self, progress: Progress) -> None:
        """Measures the tasks that learn, without noise, and keeps the weights as `best` unless earlier ones did better."""
        options = self.config.check
        seeds = range(options.first_seed, options.first_seed + options.episodes)
        results = {task.name: self.measure(task, seeds) for task in self.config.tasks if task.share > 0}
        for name, result in results.items():
            progress.say(f"iteration {self.learner.iteration}: {name}: {result}")
        success = float(np.mean([result.success_rate for result in results.values()]))
        self.log.add(step=self.learner.iteration, success=success)
        is_best = success >= self.learner.best_success
        self.learner.best_success = max(success, self.learner.best_success)
        self.save(is_best)

    def measure(self, task: Task, seeds: range) -> Result:
        """Closed-loop success of the weights of now, at one table."""
        collector = self.collector
        (table,), policy = collector.tables(task.embodiment, 1), collector.policy(task.embodiment)
        return run_scenes(table, policy, collector.instructions(task), seeds, self.config.rollout.execute_steps)

    def compare(self) -> list[Comparison]:
        """Measures every task with the first and with the best weights."""
        options, results = self.config.check, {}
        seeds = range(options.final_seed, options.final_seed + options.final_episodes)
        for folder in (START, "best"):
            read_weights(self.out / folder, self.actor.network)
            results[folder] = [self.measure(task, seeds) for task in self.config.tasks]
        return [Comparison(*row) for row in zip(self.config.tasks, results[START], results["best"], strict=True)]

    def described(self) -> CheckpointConfig:
        """config.json of the weights of now: how they were made, and in `history` how those before them were."""
        before = dict(self.checkpoint.training)
        history = before.pop("history", [])
        training = provenance() | {
            "iterations": self.learner.iteration,
            "reinforcement": {name: asdict(self.config)[name] for name in ("tasks", "rollout", "ppo")},
            "history": [*(history if isinstance(history, list) else [history]), before],
        }
        return replace(self.checkpoint, training=training)
