"""The training state: network, optimiser, averaged weights and step; it survives a kill."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vla_ros.core.errors import DataError
from vla_ros.policies.network import Batch
from vla_ros.training.config import Optimisation
from vla_ros.training.objective import Average, Objective
from vla_ros.training.state import Parts, load_state, optimiser_tensors, restore_optimiser, save_state


class Trainer:
    """Does one optimisation step at a time and saves itself.

    Args:
        objective: moved to channels-last memory, which is faster on CPUs.
        options: learning rate and the like.
    """

    def __init__(self, objective: Objective, options: Optimisation) -> None:
        self.objective = objective.to(memory_format=torch.channels_last)
        self.options = options
        self.optimiser = torch.optim.AdamW(objective.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
        self.average = Average(objective, options.average)
        self.step = 0
        self.best_success = -1.0

    def advance(self, batch: Batch) -> dict[str, Tensor]:
        """Trains on one batch; returns the parts of the loss. Raises DataError when the loss is not finite."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.options.learning_rate * self.options.rate(self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16):
            loss, parts = self.objective(batch)
        if not loss.isfinite():
            values = ", ".join(f"{name} {float(part.detach()):.3g}" for name, part in parts.items())
            raise DataError(
                f"step {self.step}: the loss is {float(loss.detach())} ({values}): lower learning_rate or set bf16: false, then --resume"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.options.clip_norm)
        self.optimiser.step()
        self.average.update(self.objective, self.step)
        self.step += 1
        return {"loss": loss.detach(), **parts}

    def averaged_network(self) -> dict[str, Tensor]:
        """Returns the averaged weights of the network alone, as a checkpoint ships them."""
        return {name.removeprefix("network."): tensor for name, tensor in self.average.weights.items() if name.startswith("network.")}

    def save(self, folder: Path) -> None:
        """Writes the whole state."""
        parts = {"weights": self.objective.state_dict(), "average": self.average.weights, "optimiser": optimiser_tensors(self.optimiser)}
        save_state(folder, parts, {"step": self.step, "best_success": self.best_success})

    def load(self, folder: Path) -> None:
        """Continues from `save`. Raises ConfigError when there is none or it belongs to another network."""
        load_state(folder, self._restore)

    def _restore(self, parts: Parts, notes: dict[str, str]) -> None:
        self.objective.load_state_dict(parts["weights"])
        self.average.weights = {name: parts["average"][name] for name in self.average.weights}
        restore_optimiser(self.optimiser, parts.get("optimiser", {}))
        self.step, self.best_success = int(notes["step"]), float(notes["best_success"])
