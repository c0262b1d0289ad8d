"""AtomicVLA: think which atomic skill is due, act with that skill's expert. See `network.Network`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vla_ros.core.errors import PolicyError, did_you_mean
from vla_ros.policies.atomic_vla.expert import ActionExpert, Mix, Prefix, shared_alone
from vla_ros.policies.atomic_vla.mixture import Fused, SkillLibrary, TokenLibrary, fused_mix
from vla_ros.policies.atomic_vla.plan import Plan
from vla_ros.policies.atomic_vla.sizes import read_sizes
from vla_ros.policies.atomic_vla.skills import Skill, checked
from vla_ros.policies.atomic_vla.thinking import plan_loss, think
from vla_ros.policies.flow import TAU_SAMPLERS, NoiseSource, Velocity, flow_loss, guidance, guided, solve
from vla_ros.policies.layout import Layout
from vla_ros.policies.network import Batch, Inputs

DECISION_WEIGHT, TEXT_WEIGHT = 1 / 20, 1 / 50
BALANCE_WEIGHT = 0.01  # of the token-level ablation, as in the Switch transformer
EXPERT_SIZES = ("width", "layers", "hidden", "heads", "key_heads", "head_size", "activation")


class Context(NamedTuple):
    """All that does not change while one observation's noise becomes a chunk: `state` [B, state_width], `mask` bool [K], own channels."""

    prefix: Prefix
    state: Tensor
    mask: Tensor


@dataclass(frozen=True)
class PlannedBatch(Batch):
    """A batch with what to think of each observation; AtomicVLA learns from nothing less.

    Args:
        skill: int64 [B], the skill that acts, as an index into `network.skills`.
        think: bool [B], whether a new thought is due here: at the start, where a step of the chain begins, and where one failed.
        plan: int64 [B, n], `plan.plan_text` in ids of the checkpoint's tokenizer, 0 after its end (n <= plan_length). A sample without
            words teaches none; one may have them without `think`, then it learns what it would say there.
    """

    skill: Tensor | None = None
    think: Tensor | None = None
    plan: Tensor | None = None


class AtomicVla(nn.Module):
    """The system. `sizes` are the keys of `sizes.py` and of the backbone.

    `decode` turns ids into text; the policy sets it, as it has the tokenizer. `plans` are the latest ones of the B rollouts, and `fresh`
    says which of them were thought in the last `predict`. All weights learn until `stages` says otherwise.
    """

    def __init__(self, layouts: Mapping[str, Layout], horizon: int, sizes: Mapping[str, object]) -> None:
        super().__init__()
        reader, values = read_sizes(layouts, sizes)
        self.layouts, self.horizon = dict(layouts), horizon
        self.channels, self.state_width, self.plan_length = (values[key] for key in ("channels", "state_width", "plan_length"))
        self.euler_steps, self.draws, self.routing = values["euler_steps"], values["draws"], values["routing"]
        cameras = tuple(sorted({camera for layout in layouts.values() for camera in layout.cameras}))
        self.reader = reader(cameras, values)
        own = {key: values[f"expert_{key}"] for key in EXPERT_SIZES}
        self.expert = ActionExpert(**own, channels=self.channels, state_width=self.state_width, theta=values["theta"])
        self.skills: tuple[Skill, ...] = values["skills"]
        libraries = {"skill": SkillLibrary, "token": TokenLibrary}
        self.library = libraries[self.routing](self.expert, self.skills) if self.routing in libraries else None
        self.visual_size, self.hidden_size = self.reader.visual_size, self.reader.hidden_size
        self.noise = NoiseSource(values["seed"])
        self.decode: Callable[[list[int]], str] | None = None
        self.learning: str | None = None  # the one skill that learns
        self.reset()

    @staticmethod
    def prompt(layout: Layout, instruction: str, horizon: int, dt_s: float) -> str:
        """The instruction alone."""
        return instruction

    def reset(self) -> None:
        """Forgets the plans and starts the noise anew; a rollout's weights are fused anew too, so call it after changing any."""
        self.noise.reset()
        self.plans: list[Plan] = []
        self.fresh: list[bool] = []
        self._fused: dict[str, Fused] = {}

    def train(self, mode: bool = True) -> AtomicVla:
        self._fused = {}
        return super().train(mode)

    def add_skill(self, skill: Skill, start: str = "random") -> None:
        """Makes room for one more skill, see `SkillLibrary.add`; the others stay what they are to the bit.

        Raises:
            PolicyError: the name or the noise level is taken, there are no skill experts, or there is no such start.
        """
        if not isinstance(self.library, SkillLibrary):
            raise PolicyError(f"skill {skill.name}: a network with routing '{self.routing}' has no experts of skills")
        self.library.add(checked(skill, self.skills), self.expert, start)
        self.skills = (*self.skills, skill)

    def context(self, inputs: Inputs, written: Tensor | None = None) -> Context:
        """Reads observations, once for thinking and acting. Raises PolicyError: an unknown embodiment, or other images than it has."""
        layout = self._layout(inputs.embodiment)
        if inputs.images.shape[1] != len(layout.cameras):
            raise PolicyError(f"{inputs.images.shape[1]} images; {layout.embodiment} has the cameras {', '.join(layout.cameras)}")
        state = nn.functional.pad(inputs.state, (0, self.state_width - inputs.state.shape[1]))
        mask = torch.arange(self.channels, device=inputs.tokens.device) < len(layout.channels)
        return Context(self.reader.prefix(inputs.images, state, inputs.tokens, layout.cameras, written), state, mask)

    def velocity(self, context: Context, mix: Mix) -> Velocity:
        """Returns the flow at B observations; channels beyond the robot's own are neither read nor moved."""

        def velocity(rows: Tensor, tau: Tensor) -> Tensor:
            found = self.expert.velocity(context.prefix, context.state, torch.where(context.mask, rows, 0.0), tau, mix)
            return torch.where(context.mask, found.float(), 0.0)

        return velocity

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """See `network.Network.loss`. Raises PolicyError: no `PlannedBatch`, or its parts do not fit each other or the skills."""
        names = self._check(batch)
        written = nn.functional.pad(batch.plan, (1, 0), value=self.reader.think)
        context = self.context(batch, written)
        prefix = context.prefix
        actions = nn.functional.pad(batch.actions, (0, self.channels - batch.actions.shape[-1])).repeat_interleave(self.draws, 0)
        names = [name for name in names for _ in range(self.draws)]
        repeated = context._replace(prefix=prefix.repeat(self.draws), state=context.state.repeat_interleave(self.draws, 0))
        flow = self.velocity(repeated, self._mix(names))
        tau = TAU_SAMPLERS["beta"](len(actions)).to(actions)
        parts = {"flow": flow_loss(flow, actions, tau, torch.randn_like(actions), context.mask.expand_as(actions))}
        parts |= plan_loss(prefix.logits, batch.think, batch.plan, self.reader)
        loss = parts["flow"] + DECISION_WEIGHT * parts["decision"] + TEXT_WEIGHT * parts["text"]
        if isinstance(self.library, TokenLibrary) and self.training:
            parts["balance"] = self.library.taken_balance()
            loss = loss + BALANCE_WEIGHT * parts["balance"]
        return loss, parts, prefix.visual, prefix.hidden

    def predict(self, inputs: Inputs) -> Tensor:
        """Returns normalised actions [B, horizon, D]. A rollout that wants a new thought, or has none yet, thinks first, then acts.

        As what follows a thought is always an act, on the same reading, no rollout can think for ever.

        Raises:
            PolicyError: a thought names an unknown skill, two in a row are no plans, or these are other rollouts than before.
        """
        context = self.context(inputs)
        count = len(inputs.tokens)
        if self.plans and len(self.plans) != count:
            raise PolicyError(f"plans of {len(self.plans)} rollouts, now come {count}: call reset() before other ones")
        decisions = context.prefix.logits[:, 0]
        due = (decisions[:, self.reader.think] > decisions[:, self.reader.act]).tolist()
        self.fresh = [wanted or not self.plans for wanted in due]
        self.plans = [self.think(context.prefix.row(i)) if fresh else self.plans[i] for i, fresh in enumerate(self.fresh)]
        return self.act(context, [plan.skill for plan in self.plans], inputs)

    def think(self, prefix: Prefix) -> Plan:
        """Returns what it thinks of one observation, see `thinking.think`."""
        if self.decode is None:
            raise PolicyError("the network has no tokenizer to read its own thoughts with: set `decode`")
        names = [skill.name for skill in self.skills]
        return think(self.reader, prefix, self.plan_length, self.decode, names, self.noise.generator)

    def act(self, context: Context, skills: Sequence[str], inputs: Inputs) -> Tensor:
        """Returns normalised actions [B, horizon, D] of a skill for each observation; with `inputs.prefix` they continue it."""
        flow = self.velocity(context, self._rollout_mix(skills))
        noise = self.noise.draw((len(inputs.tokens), self.horizon, self.channels), inputs.tokens.device)
        if inputs.prefix is not None:
            flow = guided(flow, guidance(inputs.prefix, inputs.prefix_weights, tuple(noise.shape)))
        return solve(flow, noise, self.euler_steps)[..., : len(self._layout(inputs.embodiment).channels)]

    def _mix(self, names: Sequence[str]) -> Mix:
        if isinstance(self.library, SkillLibrary):
            return self.library.blend(names)
        return shared_alone if self.library is None else self.library.mix

    def _rollout_mix(self, names: Sequence[str]) -> Mix:
        """Like `_mix`, out of fused weights that are kept as long as their skill is in use."""
        if not isinstance(self.library, SkillLibrary):
            return self._mix(names)
        self._fused = {name: self._fused.get(name) or self.library.fuse(name, self.expert) for name in dict.fromkeys(names)}
        return fused_mix(names, self._fused)

    def _layout(self, embodiment: str) -> Layout:
        if embodiment not in self.layouts:
            raise PolicyError(f"embodiment '{embodiment}'; {did_you_mean(embodiment, self.layouts)}")
        return self.layouts[embodiment]

    def _check(self, batch: Batch) -> list[str]:
        """Returns the skill of each sample by name."""
        if not isinstance(batch, PlannedBatch) or any(part is None for part in (batch.actions, batch.skill, batch.think, batch.plan)):
            raise PolicyError("AtomicVLA learns from a PlannedBatch with actions, skill, think and plan")
        wanted, count = len(self._layout(batch.embodiment).channels), len(batch.tokens)
        shapes = [tuple(part.shape) for part in (batch.actions, batch.skill, batch.think, batch.plan)]
        if batch.actions.shape[-1] != wanted or shapes[1:3] != [(count,)] * 2 or shapes[3][1] > self.plan_length:
            raise PolicyError(
                f"actions, skill, think and plan have shapes {shapes}, expected [{count}, T, {wanted}], [{count}], [{count}] and "
                f"[{count}, up to {self.plan_length}]"
            )
        indices = batch.skill.tolist()
        if wrong := [index for index in indices if not 0 <= index < len(self.skills)]:
            raise PolicyError(f"skill {wrong[0]} of a batch: there are 0 .. {len(self.skills) - 1}")
        names = [self.skills[index].name for index in indices]
        if self.learning and set(names) != {self.learning}:
            others = ", ".join(sorted(set(names) - {self.learning}))
            raise PolicyError(f"a batch shows {others}, but {self.learning} alone learns: leave the others out")
        return names
