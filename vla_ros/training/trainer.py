"""The training state: network, optimiser, averaged weights and step; it survives a kill."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vla_ros.core.errors import ConfigError, DataError
from vla_ros.policies.network import Batch
from vla_ros.training.config import Optimisation
from vla_ros.training.objective import Average, Objective

STATE_FILE = "state.safetensors"


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
        """Writes the whole state next to the older one, then swaps them."""
        tensors = {f"weights.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.weights.items()}
        for index, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
        partial = folder / f".{STATE_FILE}.part"
        try:
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                partial,
                {"step": str(self.step), "best_success": str(self.best_success)},
            )
            partial.replace(folder / STATE_FILE)
        finally:
            partial.unlink(missing_ok=True)

    def load(self, folder: Path) -> None:
        """Continues from `save`. Raises ConfigError when there is none or it belongs to another network."""
        path = folder / STATE_FILE
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; there is nothing to resume: leave --resume out")
        try:
            with safe_open(path, "pt") as file:
                note, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            parts = {part: _part(tensors, part) for part in ("weights.", "average.", "optimiser.")}
            self.objective.load_state_dict(parts["weights."])
            self.average.weights = {name: parts["average."][name] for name in self.average.weights}
            self._load_optimiser(parts["optimiser."])
            self.step, self.best_success = int(note["step"]), float(note["best_success"])
        except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
            raise ConfigError(f"{path}: does not fit this configuration ({error}): train into another --out") from error

    def _load_optimiser(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": state})


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
