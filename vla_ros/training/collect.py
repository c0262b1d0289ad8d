"""Demonstrations by the scripted expert, disturbed while they run, in as many processes as the configuration says."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vla_ros.core.errors import DataError
from vla_ros.policies.images import shrink
from vla_ros.training.config import TrainingConfig
from vla_ros.training.demonstrations import OBJECTS, Episode, episode_seeds, save_episode
from vla_ros.training.disturbance import Disturbance
from vla_ros.training.phrasings import parse
from vla_ros.training.progress import Progress
from vla_ros.training.simulator import Simulator, open_simulator

STEPS_AFTER_SUCCESS = 3
LONGEST_STEPS = 160
_worker: Collector | None = None  # one scene a process, compiled once


def collect(config: TrainingConfig, folder: Path) -> None:
    """Collects what is missing of `data.episodes` into `folder`; nothing when it holds as many, whatever made them.

    Raises:
        DataError: the disk is full.
    """
    done = set(episode_seeds(folder))
    seeds = range(config.data.first_seed, config.data.first_seed + config.data.episodes)
    missing = [seed for seed in seeds if seed not in done][: max(0, len(seeds) - len(done))]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    steps, successes = 0, 0
    with Progress(config.data.episodes, len(done), "demonstrations") as progress:
        for count, (length, success) in enumerate(_run(config, folder, missing), 1):
            steps, successes = steps + length, successes + success
            if count % 10 == 0 or count == len(missing):
                progress.advance(len(done) + count, {"steps": steps, "success": successes / count})


def _run(config: TrainingConfig, folder: Path, seeds: list[int]) -> Iterator[tuple[int, bool]]:
    """Yields (steps, success) of each episode as it is done."""
    try:
        if config.data.processes == 1:
            collector = Collector(config, folder)
            yield from map(collector.collect, seeds)
            return
        context = multiprocessing.get_context("spawn")  # a renderer's GL context does not survive a fork
        with context.Pool(config.data.processes, _start_worker, (config, folder)) as pool:
            yield from pool.imap_unordered(_collect, seeds)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot write demonstrations ({error}): free some space and run again; finished episodes are kept"
        ) from error


def _start_worker(config: TrainingConfig, folder: Path) -> None:
    global _worker
    os.nice(max(0, 5 - os.nice(0)))  # behind whatever else the machine does
    _worker = Collector(config, folder)


def _collect(seed: int) -> tuple[int, bool]:
    return _worker.collect(seed)


class Collector:
    """Makes and saves one episode at a time."""

    def __init__(self, config: TrainingConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._simulator: Simulator = open_simulator(config)

    def collect(self, seed: int) -> tuple[int, bool]:
        """Runs the disturbed expert on scene `seed` until the task has been done for a while; returns steps and success."""
        rng = np.random.default_rng(seed)
        simulator, config = self._simulator, self._config
        tasks = simulator.instructions(stack=bool(rng.random() < config.data.stack_share))
        instruction = tasks[int(rng.integers(len(tasks)))]
        simulator.reset(seed, instruction, disturb_start=True)
        disturbance = Disturbance(config.data.noise, rng)
        rows: list[dict[str, object]] = []
        rested = 0
        while len(rows) < LONGEST_STEPS and rested < STEPS_AFTER_SUCCESS:
            scene = simulator.look()
            targets, stage = simulator.expert(scene, config.horizon)
            frames = np.stack([shrink(scene.images[name], config.image["width"], config.image["height"]) for name in config.cameras])
            rows.append(
                {
                    "frames": frames,
                    "pose": scene.pose,
                    "gripper_width_m": scene.gripper_width_m,
                    "targets": targets,
                    "objects": scene.objects,
                    "stage": np.uint8(stage),
                }
            )
            simulator.step(*disturbance.command(targets, stage))
            rested += simulator.outcome().success
        columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        success = simulator.outcome().success
        save_episode(self._folder, Episode(**columns, roles=roles(instruction), instruction=instruction, seed=seed, success=success))
        return len(rows), success


def roles(instruction: str) -> np.ndarray:
    """Returns int [2]: the indices in `OBJECTS` of what to move and where to."""
    _, fields = parse(instruction)
    return np.array([OBJECTS.index(fields["colour"]), OBJECTS.index(fields.get("container") or fields["base"])])
