"""The training state: network, optimiser, averaged weights and step; it survives a kill."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from vla_ros.core.errors import DataError
from vla_ros.policies.network import Batch, on_device
from vla_ros.training.config import Optimisation
from vla_ros.training.objective import Average, Objective
from vla_ros.training.state import Parts, apart, load_state, optimiser_tensors, restore_optimiser, save_state


class Trainer:
    """Does one optimisation step at a time and saves itself.

    Args:
        objective: moved to the processes' device, and to channels-last memory, which is faster on CPUs. What of it does not require
            gradients stays as it is.
        options: learning rate and the like.
        processes: see `processes.start_processes`.
    """

    def __init__(self, objective: Objective, options: Optimisation, processes: Accelerator) -> None:
        self.options, self._processes = options, processes
        self.objective = objective.to(processes.device, memory_format=torch.channels_last)
        self._trained = {name: parameter for name, parameter in self.objective.named_parameters() if parameter.requires_grad}
        optimiser = torch.optim.AdamW(self._trained.values(), lr=options.learning_rate, weight_decay=options.weight_decay)
        self._parallel, self.optimiser = processes.prepare(self.objective, optimiser)
        self.average = Average(objective, options.average)
        self.step = 0
        self.best_score = -math.inf

    @property
    def learning_rate(self) -> float:
        """Of the step to come."""
        return self.options.learning_rate * self.options.rate(self.step)

    def advance(self, batch: Batch) -> dict[str, Tensor]:
        """Trains on one batch, every process on its own; returns the parts of the loss. Raises DataError when it is not finite."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        device = self._processes.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.options.bf16):
            loss, parts = self._parallel(on_device(batch, device))
        if not self._processes.gather(loss.detach().reshape(1)).isfinite().all():  # all processes end, or none
            values = ", ".join(f"{name} {float(part.detach()):.3g}" for name, part in parts.items())
            raise DataError(
                f"step {self.step}: the loss is {float(loss.detach())} ({values}): lower learning_rate or set bf16: false, then --resume"
            )
        self.optimiser.zero_grad(set_to_none=True)
        self._processes.backward(loss)
        self._processes.clip_grad_norm_(self._trained.values(), self.options.clip_norm)
        self.optimiser.step()
        self.average.update(self.objective, self.step)
        self.step += 1
        return {"loss": loss.detach(), **parts}

    def averaged_network(self) -> dict[str, Tensor]:
        """Returns the averaged weights of the network alone, with those that did not learn, as a checkpoint ships them."""
        weights = self.objective.state_dict() | self.average.weights
        return apart({name.removeprefix("network."): tensor for name, tensor in weights.items() if name.startswith("network.")})

    def save(self, folder: Path) -> None:
        """Writes the whole state."""
        memory = optimiser_tensors(self.optimiser, self._trained)
        parts = {"weights": self.objective.state_dict(), "average": self.average.weights, "optimiser": memory}
        save_state(folder, parts, {"step": self.step, "best_score": self.best_score, "trained": "\n".join(self._trained)})

    def load(self, folder: Path) -> None:
        """Continues from `save`, on whatever device. Raises ConfigError when there is none or it belongs to another network."""
        load_state(folder, self._restore)

    def _restore(self, parts: Parts, notes: dict[str, str]) -> None:
        there, here = set(notes["trained"].split("\n")), set(self._trained)
        if there != here:
            parted = f"only there {sorted(there - here)[:3]}, only here {sorted(here - there)[:3]}"
            raise ValueError(f"it trained {len(there)} parameters, this trains {len(here)}: {parted}")
        self.objective.load_state_dict(parts["weights"])
        self.average.load(parts["average"])
        restore_optimiser(self.optimiser, self._trained, parts.get("optimiser", {}))
        self.step, self.best_score = int(notes["step"]), float(notes["best_score"])
