"""The update of `vla reinforce`: episodes in, better weights out. It knows no simulator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_ros.core.errors import DataError
from vla_ros.policies.network import Inputs
from vla_ros.policies.qwen_vla.actor import Actor, executed_sum, imitation_loss
from vla_ros.policies.qwen_vla.ppo import Objective, advantages, normalized, objective, parameter_groups
from vla_ros.policies.qwen_vla.sde import Denoising
from vla_ros.training.reinforce_config import ReinforcementConfig
from vla_ros.training.rollouts import Episode, from_bytes
from vla_ros.training.state import Parts, load_state, optimiser_tensors, restore_optimiser, save_state


@dataclass(frozen=True)
class Decisions:
    """All chunks of one robot's episodes, as tensors; see `rollouts.Episode`. `denoising` has [N + 1, S, T, K]; `good`: it succeeded."""

    embodiment: str
    images: np.ndarray
    state: Tensor
    tokens: Tensor
    denoising: Denoising
    executed: Tensor
    values: Tensor
    good: Tensor
    advantages: Tensor
    returns: Tensor

    def inputs(self, rows: Tensor) -> Inputs:
        return Inputs(self.embodiment, from_bytes(self.images[rows.numpy()]), self.state[rows], self.tokens[rows])

    def drawn(self, rows: Tensor) -> Denoising:
        whole = self.denoising
        return Denoising(whole.states[:, rows], whole.log_probs[:, rows], whole.mask, whole.level)


class Learner:
    """Actor, optimiser and how many iterations they have had.

    Args:
        actor: its network's weights are where it starts from.
        config: of the run.
    """

    def __init__(self, actor: Actor, config: ReinforcementConfig) -> None:
        self.actor, self.options, self.level = actor, config.ppo, config.rollout.level
        actor.network.backbone.requires_grad_(config.ppo.backbone)
        self.optimiser = torch.optim.Adam(parameter_groups(actor.network, actor.value, config.ppo.actor_rate, config.ppo.value_rate))
        self.iteration = 0
        self.best_success = -1.0

    def update(self, episodes: list[Episode]) -> dict[str, float]:
        """One iteration of PPO; returns the means of its figures over the minibatches.

        Raises:
            DataError: the loss is not finite.
        """
        options = self.options
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + self.iteration)
        learns = self.iteration >= options.warm_up_iterations
        figures: list[dict[str, float]] = []
        for decisions, rows in self._minibatches(self._decisions(episodes), generator):
            found, imitation = self._judge(decisions, rows, generator)
            parts = found._asdict() | {"imitation": imitation}
            figures.append({name: float(part.detach()) for name, part in parts.items()})
            if figures[-1]["divergence"] > options.largest_divergence:
                break
            loss = found.loss + options.imitation_weight * imitation
            self._step(loss if learns else options.value_weight * found.value)
        self.iteration += 1
        means = {name: float(np.mean([row[name] for row in figures])) for name in figures[0]}
        return means | {"minibatches": len(figures)}

    def _judge(self, decisions: Decisions, rows: Tensor, generator: torch.Generator) -> tuple[Objective, Tensor]:
        """The objective of one minibatch, at denoising steps that are drawn for it, and the imitation of its successes."""
        options, drawn, executed = self.options, decisions.drawn(rows), decisions.executed[rows]
        steps = torch.randperm(drawn.steps, generator=generator)[: options.denoising_steps].tolist()
        log_probs, values, velocity = self.actor.judge(decisions.inputs(rows), drawn, executed, steps)
        old = executed_sum(drawn.log_probs[steps], executed)
        found = objective(
            log_probs, old, decisions.advantages[rows], values, decisions.values[rows], decisions.returns[rows],
            options.clip, options.value_weight,
        )  # fmt: skip
        if not found.loss.isfinite():
            raise DataError(f"iteration {self.iteration}: the loss is {float(found.loss.detach())}: lower ppo.actor_rate, then --resume")
        if not options.imitation_weight:
            return found, found.loss.new_zeros(())
        return found, imitation_loss(velocity, drawn, executed, decisions.good[rows], generator)

    def _step(self, loss: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.actor.parameters(), self.options.clip_norm)
        self.optimiser.step()

    def _minibatches(self, groups: list[Decisions], generator: torch.Generator) -> Iterator[tuple[Decisions, Tensor]]:
        """Every decision once an epoch, in an order that is drawn anew; one minibatch is of one robot."""
        for _ in range(self.options.epochs):
            parts = []
            for decisions in groups:
                shuffled = torch.randperm(len(decisions.values), generator=generator)
                parts += [(decisions, rows) for rows in shuffled.split(self.options.minibatch)]
            for index in torch.randperm(len(parts), generator=generator).tolist():
                yield parts[index]

    def _decisions(self, episodes: list[Episode]) -> list[Decisions]:
        """Puts the episodes of each robot together, with advantages normalised over all of them."""
        found = [self._advantages(episode) for episode in episodes]
        scaled = normalized(torch.cat([advantage for advantage, _ in found])).split([len(episode) for episode in episodes])
        groups = []
        for embodiment in sorted({episode.embodiment for episode in episodes}):
            chosen = [number for number, episode in enumerate(episodes) if episode.embodiment == embodiment]
            own = [episodes[number] for number in chosen]
            images, *tensors = (
                np.concatenate([getattr(episode, name) for episode in own])
                for name in ("images", "state", "tokens", "states", "log_probs", "executed", "values")
            )
            state, tokens, states, log_probs, executed, values = map(torch.from_numpy, tensors)
            drawn = Denoising(states.transpose(0, 1), log_probs.transpose(0, 1), torch.from_numpy(own[0].mask), self.level)
            good = torch.tensor([episode.success for episode in own for _ in range(len(episode))])
            advantage, returns = torch.cat([scaled[number] for number in chosen]), torch.cat([found[number][1] for number in chosen])
            groups.append(Decisions(embodiment, images, state, tokens, drawn, executed, values, good, advantage, returns))
        return groups

    def _advantages(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """[S] each; success is the only reward, and nothing comes after an episode, whether it was done or took too long."""
        rewards, ended = torch.zeros(len(episode), 1), torch.zeros(len(episode), 1, dtype=torch.bool)
        rewards[-1], ended[-1] = float(episode.success), True
        values = torch.from_numpy(episode.values)[:, None]
        advantage, returns = advantages(rewards, values, ended, torch.zeros(1), self.options.gamma, self.options.trace)
        return advantage[:, 0], returns[:, 0]

    def save(self, folder: Path) -> None:
        """Writes the whole state."""
        parts = {"actor": self.actor.state_dict(), "optimiser": optimiser_tensors(self.optimiser, self._names())}
        save_state(folder, parts, {"iteration": self.iteration, "best_success": self.best_success})

    def _names(self) -> list[str]:
        """Of the optimiser's parameters, in their order."""
        own = {id(parameter): name for name, parameter in self.actor.named_parameters()}
        return [own[id(parameter)] for group in self.optimiser.param_groups for parameter in group["params"]]

    def load(self, folder: Path) -> None:
        """Continues from `save`. Raises ConfigError when there is none or it belongs to another network."""
        load_state(folder, self._restore)

    def _restore(self, parts: Parts, notes: dict[str, str]) -> None:
        self.actor.load_state_dict(parts["actor"])
        restore_optimiser(self.optimiser, self._names(), parts.get("optimiser", {}))
        self.iteration, self.best_success = int(notes["iteration"]), float(notes["best_success"])
