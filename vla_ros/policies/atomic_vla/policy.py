"""AtomicVLA behind the policy protocol: what it thinks goes along with each chunk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tokenizers import Tokenizer

from vla_ros.core.embodiment import Embodiment
from vla_ros.core.types import Observation, SkillPlan
from vla_ros.policies.atomic_vla.network import AtomicVla
from vla_ros.policies.atomic_vla.skills import Skill, with_skill
from vla_ros.policies.checkpoint import CONFIG, CheckpointConfig, read_config, read_tokenizer, write_checkpoint
from vla_ros.policies.network_policy import NetworkPolicy, make_network
from vla_ros.policies.weights import load_network


class AtomicPolicy(NetworkPolicy):
    """Reads the network's thoughts with the checkpoint's tokenizer."""

    def __init__(self, config: CheckpointConfig, embodiment: Embodiment, network: AtomicVla, tokenizer: Tokenizer, origin: str) -> None:
        super().__init__(config, embodiment, network, tokenizer, origin)
        network.decode = tokenizer.decode
        self._stamps_ns: list[int] = []

    def reset(self) -> None:
        super().reset()
        self._stamps_ns = []

    def _plans(self, observations: list[Observation]) -> list[SkillPlan | None]:
        """The latest plan of each rollout, with the instant that it was thought at."""
        now, before = [observation.stamp_ns for observation in observations], self._stamps_ns
        self._stamps_ns = [now[i] if fresh else before[i] for i, fresh in enumerate(self._network.fresh)]
        return [
            SkillPlan(stamp_ns, plan.chain, plan.step, plan.skill, plan.text)
            for stamp_ns, plan in zip(self._stamps_ns, self._network.plans, strict=True)
        ]


def grow_checkpoint(folder: Path, out: Path, skill: Skill, start: str = "random") -> None:
    """Writes the checkpoint of `folder` with one more skill to `out`; what was there is copied to the bit.

    Raises:
        PolicyError: see `checkpoint.read_config`, `weights.load_network` and `AtomicVla.add_skill`.
    """
    config = read_config(folder)
    network = load_network(folder, lambda: make_network(config, str(folder / CONFIG)))
    network.add_skill(skill, start)
    config = dataclasses.replace(config, network=with_skill(config.network, skill))
    write_checkpoint(out, config, network.state_dict(), read_tokenizer(folder))
