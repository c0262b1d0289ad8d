"""The skills' own feed-forward parts beside the shared ones: y = (1 - w_k) F_share(x) + w_k F_k(x), of which only the due skill's runs.

Skill and w hold for a whole chunk. So one gate serves all layers, and at inference shared and selected part are one SwiGLU of double width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_ros.core.errors import PolicyError, did_you_mean
from vla_ros.policies.atomic_vla.expert import ActionExpert, Mix, SwiGlu, swiglu
from vla_ros.policies.atomic_vla.skills import LARGEST_SIGMA, LEAST_SIGMA, Skill
from vla_ros.policies.robo_vlms.flow_head import sinusoid

STARTS = ("random", "shared")
_GATE_SPREAD = 0.01  # small, so that every skill starts with half of its own part
Fused = tuple[tuple[Tensor, Tensor], ...]  # of each layer gate_up [4 * hidden, width] and down [width, 2 * hidden]


def embedding(sigma: float, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Z [width] of a skill's noise level: sines and cosines of its logarithm, scaled to 0 .. 1."""
    place = math.log(sigma / LEAST_SIGMA) / math.log(LARGEST_SIGMA / LEAST_SIGMA)
    return sinusoid(torch.tensor([place], device=device), width)[0]


class SkillLibrary(nn.Module):
    """An expert and a gate for each skill.

    The paper's router is a softmax over all skills, which changes the old ones' weights when one is added. Here each gate, a sigmoid, is
    asked about its own skill alone, and the skill's expert is the one that is chosen: nothing that comes later can move it.
    """

    def __init__(self, expert: ActionExpert, skills: Sequence[Skill]) -> None:
        super().__init__()
        self.experts, self.gates = nn.ModuleDict(), nn.ModuleDict()
        self.sigmas: dict[str, float] = {}
        for skill in skills:
            self.add(skill, expert)

    def add(self, skill: Skill, expert: ActionExpert, start: str = "random") -> None:
        """Makes room for one more skill, whose expert starts at `random`, as in the paper, or as a copy of the `shared` one.

        Raises:
            PolicyError: another start.
        """
        if start not in STARTS:
            raise PolicyError(f"start {start!r} of skill {skill.name}; {did_you_mean(start, STARTS)}")
        parts = [layer.shared for layer in expert.layers]
        hidden, width = parts[0].down.in_features, parts[0].down.out_features
        own = [copy.deepcopy(part) if start == "shared" else SwiGlu(width, hidden, part.activation) for part in parts]
        gate = nn.Linear(width, 1)
        nn.init.normal_(gate.weight, std=_GATE_SPREAD)
        nn.init.zeros_(gate.bias)
        like = parts[0].down.weight
        self.experts[skill.name] = nn.ModuleList(own).to(like.device, like.dtype).requires_grad_(True)
        self.gates[skill.name] = gate.to(like.device, like.dtype)
        self.sigmas[skill.name] = skill.sigma

    def weight(self, name: str) -> Tensor:
        """w of a skill, a number in 0 .. 1. Raises PolicyError: unknown."""
        if name not in self.sigmas:
            raise PolicyError(f"skill {name!r}; {did_you_mean(name, self.sigmas)}")
        gate = self.gates[name]
        with torch.autocast(gate.weight.device.type, enabled=False):
            place = embedding(self.sigmas[name], gate.in_features, gate.weight.device)
            return gate(place.to(gate.weight.dtype)).sigmoid().float()[0]

    def blend(self, names: Sequence[str]) -> Mix:
        """The definition, for training: a skill for each of B observations."""
        groups = group(names)
        gates = {name: self.weight(name) for name in groups}
        weights = torch.stack([gates[name] for name in names])[:, None, None]

        def mix(layer: int, shared: SwiGlu, x: Tensor) -> Tensor:
            own = [self.experts[name][layer](x[rows]) for name, rows in groups.items()]
            common = shared(x)
            return torch.lerp(common, _in_order(own, groups), weights.to(common.dtype))

        return mix

    def fuse(self, name: str, expert: ActionExpert) -> Fused:
        """Shared and own part of a skill side by side, the weight in what goes down."""
        weight, layers = self.weight(name), []
        for layer, own in zip(expert.layers, self.experts[name], strict=True):
            shared = layer.shared
            gates, ups = zip(shared.gate_up.weight.chunk(2), own.gate_up.weight.chunk(2), strict=True)
            share = weight.to(own.down.weight.dtype)
            down = torch.cat([(1 - share) * shared.down.weight, share * own.down.weight], 1)
            layers.append((torch.cat([*gates, *ups]), down))
        return tuple(layers)


def fused_mix(names: Sequence[str], parts: dict[str, Fused]) -> Mix:
    """The mix of B observations whose skills were fused; one call a layer and skill."""
    groups = group(names)

    def mix(layer: int, shared: SwiGlu, x: Tensor) -> Tensor:
        return _in_order([swiglu(x[rows], *parts[name][layer], shared.activation) for name, rows in groups.items()], groups)

    return mix


class TokenLibrary(nn.Module):
    """The ablation: as many experts, but in each layer every token chooses for itself, whatever the skill (token-level MoE)."""

    def __init__(self, expert: ActionExpert, skills: Sequence[Skill]) -> None:
        super().__init__()
        parts = [layer.shared for layer in expert.layers]
        hidden, width = parts[0].down.in_features, parts[0].down.out_features
        self.experts = nn.ModuleDict(
            {skill.name: nn.ModuleList(SwiGlu(width, hidden, part.activation) for part in parts) for skill in skills}
        )
        self.routers = nn.ModuleList(nn.Linear(width, len(skills)) for _ in parts)
        self.balance: list[Tensor] = []

    def mix(self, layer: int, shared: SwiGlu, x: Tensor) -> Tensor:
        """A `Mix`; in training it collects in `balance`, a number a layer, how far the experts are from equal shares (1: equal)."""
        tokens = x.flatten(0, 1)
        chances = self.routers[layer](tokens).float().softmax(-1)
        weight, choice = chances.max(-1)
        if self.training:
            loads = functional.one_hot(choice, len(self.experts)).float().mean(0)
            self.balance.append(len(self.experts) * (loads * chances.mean(0)).sum())
        names = [list(self.experts)[i] for i in choice.tolist()]
        groups = group(names)
        own = _in_order([self.experts[name][layer](tokens[rows]) for name, rows in groups.items()], groups)
        common = shared(tokens)
        return torch.lerp(common, own, weight[:, None].to(common.dtype)).view_as(x)

    def taken_balance(self) -> Tensor:
        """Returns the mean of `balance` over the layers since the last call."""
        self.balance, taken = [], torch.stack(self.balance).mean()
        return taken


def group(names: Sequence[str]) -> dict[str, list[int] | slice]:
    """Returns which rows each name has; all of them as a slice, which copies nothing."""
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        groups.setdefault(name, []).append(row)
    return groups if len(groups) > 1 else {name: slice(None) for name in groups}


def _in_order(parts: list[Tensor], groups: dict[str, list[int] | slice]) -> Tensor:
    """Puts what was computed group by group back into the order of the rows."""
    if len(parts) == 1:
        return parts[0]
    order = [row for rows in groups.values() for row in rows]
    back = torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=parts[0].device)
    return torch.cat(parts)[back]
