"""Experience for `vla reinforce`: episodes in the fast simulation, with all that is needed to ask for their probability again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, did_you_mean
from vla_ros.policies.checkpoint import CheckpointConfig
from vla_ros.policies.flow import NoiseSource
from vla_ros.policies.network_policy import NetworkPolicy
from vla_ros.policies.qwen_vla.actor import Actor, EpisodeNoise
from vla_ros.training.closed_loop import to_observation
from vla_ros.training.reinforce_config import ReinforcementConfig, Task
from vla_ros.training.simulator import Simulator, open_simulator


@dataclass(frozen=True)
class Episode:
    """One scene from start to end; S decisions of a chunk each. Arrays, so that it travels between processes as it is.

    Args:
        task: its name.
        embodiment: the robot.
        seed: of scene and noise.
        success: of the task; the reward, which the last decision gets.
        images: uint8 [S, C, 3, H, W]. state: [S, F], normalised. tokens: int64 [S, L].
        states: [S, N + 1, T, K], from noise to chunk. log_probs: [S, N, T] of the robot's own channels.
        mask: bool [T, K], these channels.
        executed: int64 [S], how many rows of each chunk were executed.
        values: [S].
    """

    task: str
    embodiment: str
    seed: int
    success: bool
    images: np.ndarray
    state: np.ndarray
    tokens: np.ndarray
    states: np.ndarray
    log_probs: np.ndarray
    mask: np.ndarray
    executed: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)


class _Attempt:
    """An episode that is being made at one table."""

    def __init__(self, table: Simulator, task: Task, seed: int, instruction: str, disturb_start: bool) -> None:
        self.table, self.task, self.seed, self.instruction = table, task, seed, instruction
        self.noise = NoiseSource(seed)
        self.rows: list[dict[str, np.ndarray]] = []
        self.steps = 0
        table.reset(seed, instruction, disturb_start)

    def execute(self, targets: np.ndarray, longest_steps: int) -> bool:
        """Drives through the rows of `targets` [n, D] that there is time for; returns whether the episode is over."""
        executed = 0
        for target in targets[: longest_steps - self.steps]:
            self.table.step(target)
            executed += 1
            if self.table.outcome().success:
                break
        self.steps += executed
        self.rows[-1]["executed"] = np.int64(executed)
        return self.table.outcome().success or self.steps >= longest_steps

    def episode(self, mask: np.ndarray) -> Episode:
        columns = {name: np.stack([row[name] for row in self.rows]) for name in self.rows[0]}
        success = bool(self.table.outcome().success)
        return Episode(self.task.name, self.task.embodiment, self.seed, success, mask=mask, **columns)


class Collector:
    """Makes episodes in this process, at several tables side by side.

    Args:
        config: names the simulator and how to roll out.
        checkpoint, tokenizer: of the weights that `actor` has.
    """

    def __init__(self, config: ReinforcementConfig, checkpoint: CheckpointConfig, tokenizer: object, actor: Actor) -> None:
        self.actor = actor
        self._config, self._checkpoint, self._tokenizer = config, checkpoint, tokenizer
        self._policies: dict[str, NetworkPolicy] = {}
        self._tables: dict[str, list[Simulator]] = {}

    def policy(self, embodiment: str) -> NetworkPolicy:
        """The actor's network behind the policy protocol, for one robot."""
        if embodiment not in self._policies:
            arguments = self._checkpoint, load_embodiment(embodiment), self.actor.network, self._tokenizer, self._config.checkpoint
            self._policies[embodiment] = NetworkPolicy(*arguments)
        return self._policies[embodiment]

    def tables(self, embodiment: str, count: int) -> list[Simulator]:
        """As many tables of one robot; opened once."""
        there = self._tables.setdefault(embodiment, [])
        while len(there) < count:
            cameras = self.policy(embodiment).spec.cameras
            there.append(open_simulator(self._config.simulator, embodiment, cameras, **self._checkpoint.image))
        return there[:count]

    def instructions(self, task: Task) -> list[str]:
        """What a task's robot is told. Raises ConfigError when its table has nothing of the kind."""
        there = self.tables(task.embodiment, 1)[0].instructions(task.kind)
        found = [text for text in there if task.containing in text]
        if not found:
            hint = did_you_mean(task.containing, there) if there else "it has none of this kind"
            raise ConfigError(f"tasks: {task.name}: the table of {task.embodiment} has no {task.kind} task '{task.containing}'; {hint}")
        return found

    def collect(self, task: Task, seeds: Iterable[int]) -> list[Episode]:
        """Runs the scenes of `seeds`; returns their episodes in the same order."""
        options, texts = self._config.rollout, self.instructions(task)
        waiting = list(seeds)
        order, finished, running = list(waiting), {}, []
        idle = list(self.tables(task.embodiment, min(options.environments, len(waiting))))
        while waiting or running:
            while waiting and idle:
                seed = waiting.pop(0)
                running.append(_Attempt(idle.pop(), task, seed, texts[seed % len(texts)], options.disturb_start))
            targets, mask = self._decide(running)
            over = [attempt.execute(rows, options.longest_steps) for attempt, rows in zip(running, targets, strict=True)]
            for attempt, is_over in zip(running, over, strict=True):
                if is_over:
                    finished[attempt.seed] = attempt.episode(mask)
                    idle.append(attempt.table)
            running = [attempt for attempt, is_over in zip(running, over, strict=True) if not is_over]
        return [finished[seed] for seed in order]

    def _decide(self, running: list[_Attempt]) -> tuple[np.ndarray, np.ndarray]:
        """Looks, draws a chunk for each attempt and notes it; returns absolute targets [B, execute_steps, D] and the mask [T, K]."""
        options = self._config.rollout
        policy = self.policy(running[0].task.embodiment)
        observations = [to_observation(attempt.table.look(), policy.spec.state, attempt.instruction) for attempt in running]
        inputs, states = policy.inputs(observations)
        noise = EpisodeNoise(attempt.noise for attempt in running)
        drawn, values = self.actor.act(inputs, noise, options.level, options.temperature)
        columns = {
            "images": to_bytes(inputs.images),
            "state": inputs.state.numpy(),
            "tokens": inputs.tokens.numpy(),
            "states": drawn.states.transpose(0, 1).numpy(),
            "log_probs": drawn.log_probs.transpose(0, 1).numpy(),
            "values": values.numpy(),
        }
        for number, attempt in enumerate(running):
            attempt.rows.append({name: column[number].copy() for name, column in columns.items()})
        targets = policy.targets(drawn.actions[..., : len(policy.spec.channels)], states)
        return targets[:, : options.execute_steps], drawn.mask.numpy()

    def close(self) -> None:
        """Frees the renderers."""
        for tables in self._tables.values():
            for table in tables:
                table.close()
        self._tables.clear()


def to_bytes(images: torch.Tensor) -> np.ndarray:
    """Images in [-1, 1] as the bytes that they were, a quarter of the memory; `from_bytes` is the exact inverse."""
    return ((images + 1) * 127.5).round().to(torch.uint8).numpy()


def from_bytes(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).float() / 127.5 - 1
