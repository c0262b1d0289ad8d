"""Closed-loop success in the fast simulation: the gate of a training, and a measure of robustness."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.interfaces import Policy
from vla_ros.core.types import Frame, Observation, Proprioception
from vla_ros.policies import load_policy
from vla_ros.training.config import TrainingConfig
from vla_ros.training.phrasings import held_out
from vla_ros.training.simulator import Outcome, Simulator, View, open_simulator
from vla_ros.training.sources import Source

LONGEST_STEPS = 120  # for each step of the task


@dataclass(frozen=True)
class Result:
    """Shares of `episodes`; `mean_steps` counts policy-rate steps of the successful ones.

    `progress` is the mean share of a task's own steps (open, put in, close) that were done in the end.
    """

    episodes: int
    success_rate: float
    wrong_object_rate: float
    mean_steps: float
    execute_steps: int
    delay_steps: int
    progress: float = 0.0

    def __str__(self) -> str:
        rates = f"success {self.success_rate:.1%}, progress {self.progress:.1%}, wrong object {self.wrong_object_rate:.1%}"
        return f"{self.episodes} episodes: {rates}, {self.mean_steps:.0f} steps"


def check_closed_loop(
    config: TrainingConfig,
    source: Source,
    checkpoint: Path,
    seeds: Iterable[int],
    execute_steps: int | None = None,
    delay_steps: int = 0,
    phrasing: int | None = None,
) -> Result:
    """Runs the checkpoint on the scenes of `seeds` at the table of `source`, its tasks in turn.

    Args:
        execute_steps: rows of each chunk that are executed; the configuration's by default.
        delay_steps: age of the observation when its chunk starts, in steps; its first rows are then skipped.
        phrasing: which held-out phrasing to use instead of the canonical sentence.
    """
    simulator = open_simulator(source.simulator, source.embodiment, source.cameras, **config.image)
    policy = load_policy(str(checkpoint), load_embodiment(source.embodiment))
    tasks = in_turn([simulator.instructions(kind) for kind, share in source.kinds.items() if share > 0])
    result = run_scenes(simulator, policy, tasks, seeds, execute_steps or config.check.execute_steps, delay_steps, phrasing)
    simulator.close()
    return result


def run_scenes(
    simulator: Simulator,
    policy: Policy,
    tasks: list[str],
    seeds: Iterable[int],
    execute_steps: int,
    delay_steps: int = 0,
    phrasing: int | None = None,
) -> Result:
    """Runs the policy on the scenes of `seeds`, `tasks` in turn; see `check_closed_loop`."""
    outcomes: list[tuple[Outcome, int]] = []
    for seed in seeds:
        instruction = tasks[seed % len(tasks)]
        simulator.reset(seed, instruction)
        spoken = instruction if phrasing is None else held_out(instruction)[phrasing]
        outcomes.append(_rollout(simulator, policy, spoken, execute_steps, delay_steps))
    steps = [length for end, length in outcomes if end.success]
    return Result(
        len(outcomes), float(np.mean([end.success for end, _ in outcomes])), float(np.mean([end.wrong_object for end, _ in outcomes])),
        float(np.mean(steps)) if steps else 0.0, execute_steps, delay_steps,
        float(np.mean([end.steps_done / end.steps for end, _ in outcomes])),
    )  # fmt: skip


def _rollout(simulator: Simulator, policy: Policy, instruction: str, execute_steps: int, delay_steps: int) -> tuple[Outcome, int]:
    """Returns how it ended, and the policy-rate steps it took."""
    policy.reset()
    views: list[View] = []
    rows: np.ndarray | None = None
    used = execute_steps
    longest = LONGEST_STEPS * simulator.outcome().steps
    for step in range(longest):
        views.append(simulator.look(render=used >= execute_steps or delay_steps > 0))
        if used >= execute_steps:
            seen = max(0, step - delay_steps)
            rows = policy.infer(to_observation(views[seen], policy.spec.state, instruction)).chunk.data[step - seen :]
            used = 0
        simulator.step(rows[min(used, len(rows) - 1)])
        used += 1
        if simulator.outcome().success:
            return simulator.outcome(), step + 1
    return simulator.outcome(), longest


def in_turn(kinds: list[list[str]]) -> list[str]:
    """Tasks of several kinds in one list in which every kind is as frequent as every other: [a, b], [x, y, z] -> a, x, b, y, a, z."""
    length = max(len(kind) for kind in kinds)
    return [kind[i % len(kind)] for i in range(length) for kind in kinds]


def to_observation(view: View, channels: tuple[str, ...], instruction: str) -> Observation:
    """What the policy node would hand over for this view; `channels` name its state."""
    frames = {name: Frame(0, image, 0, name) for name, image in view.images.items()}
    return Observation(0, frames, Proprioception(0, channels, view.state), instruction)
