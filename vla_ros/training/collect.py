"""Demonstrations by the scripted expert, disturbed while they run, in as many processes as the configuration says."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, DataError
from vla_ros.policies.images import shrink
from vla_ros.policies.layout import layout_for
from vla_ros.training.config import TrainingConfig
from vla_ros.training.demonstrations import Episode, episode_seeds, save_episode
from vla_ros.training.disturbance import Disturbance
from vla_ros.training.progress import Progress
from vla_ros.training.simulator import Simulator, open_simulator
from vla_ros.training.sources import Source

STEPS_AFTER_SUCCESS = 3
LONGEST_STEPS = 160  # for each step of the task
_worker: Collector | None = None  # one scene a process, compiled once


def collect(config: TrainingConfig, source: Source, folder: Path) -> None:
    """Collects what is missing of `source.episodes` into `folder`; nothing when it holds as many, whatever made them.

    Raises:
        DataError: the disk is full.
    """
    done = set(episode_seeds(folder))
    seeds = range(source.first_seed, source.first_seed + source.episodes)
    missing = [seed for seed in seeds if seed not in done][: max(0, len(seeds) - len(done))]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    steps, successes = 0, 0
    with Progress(source.episodes, len(done), f"{source.embodiment} demonstrations") as progress:
        for count, (length, success) in enumerate(_run(config, source, folder, missing), 1):
            steps, successes = steps + length, successes + success
            if count % 10 == 0 or count == len(missing):
                progress.advance(len(done) + count, {"steps": steps, "success": successes / count})


def _run(config: TrainingConfig, source: Source, folder: Path, seeds: list[int]) -> Iterator[tuple[int, bool]]:
    """Yields (steps, success) of each episode as it is done."""
    try:
        if source.processes == 1:
            collector = Collector(config, source, folder)
            yield from map(collector.collect, seeds)
            return
        context = multiprocessing.get_context("spawn")  # a renderer's GL context does not survive a fork
        with context.Pool(source.processes, _start_worker, (config, source, folder)) as pool:
            yield from pool.imap_unordered(_collect, seeds)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot write demonstrations ({error}): free some space and run again; finished episodes are kept"
        ) from error


def _start_worker(config: TrainingConfig, source: Source, folder: Path) -> None:
    global _worker
    os.nice(max(0, 5 - os.nice(0)))  # behind whatever else the machine does
    _worker = Collector(config, source, folder)


def _collect(seed: int) -> tuple[int, bool]:
    return _worker.collect(seed)


class Collector:
    """Makes and saves one episode at a time."""

    def __init__(self, config: TrainingConfig, source: Source, folder: Path) -> None:
        self._config, self._source, self._folder = config, source, folder
        self._layout = layout_for(load_embodiment(source.embodiment), source.cameras)
        self._simulator: Simulator = open_simulator(source.simulator, source.embodiment, source.cameras, **config.image)
        self._tasks = {kind: self._simulator.instructions(kind) for kind, share in source.kinds.items() if share > 0}
        for kind, tasks in self._tasks.items():
            if not tasks:
                raise ConfigError(f"sources: kinds.{kind}: the table of {source.embodiment} has no such task")

    def collect(self, seed: int) -> tuple[int, bool]:
        """Runs the disturbed expert on scene `seed` until the task has been done for a while; returns steps and success."""
        rng = np.random.default_rng(seed)
        simulator, config = self._simulator, self._config
        instruction = self._instruction(rng)
        simulator.reset(seed, instruction, disturb_start=True)
        disturbance = Disturbance(self._layout, self._config.noise, rng)
        rows: list[dict[str, object]] = []
        rested, longest = 0, LONGEST_STEPS * simulator.outcome().steps
        while len(rows) < longest and rested < STEPS_AFTER_SUCCESS:
            scene = simulator.look()
            targets, stage = simulator.expert(scene, config.horizon)
            skill = simulator.skill(scene)
            rows.append(
                {
                    "frames": np.stack([shrink(scene.images[name], *self._size) for name in self._source.cameras]),
                    "state": scene.state,
                    "targets": targets,
                    "objects": scene.objects,
                    "stage": np.uint8(stage),
                    "skill": np.uint8(skill),
                    "roles": simulator.roles(skill),
                }
            )
            simulator.step(disturbance.command(targets, stage))
            rested += simulator.outcome().success
        columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        success = bool(simulator.outcome().success)
        episode = Episode(**columns, instruction=instruction, seed=seed, success=success, chain=simulator.chain())
        save_episode(self._folder, episode)
        return len(rows), success

    @property
    def _size(self) -> tuple[int, int]:
        return self._config.image["width"], self._config.image["height"]

    def _instruction(self, rng: np.random.Generator) -> str:
        kinds = list(self._tasks)
        shares = np.array([self._source.kinds[kind] for kind in kinds])
        tasks = self._tasks[kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]]
        return tasks[int(rng.integers(len(tasks)))]
