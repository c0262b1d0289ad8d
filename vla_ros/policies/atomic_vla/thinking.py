"""Thinking: which plan an observation asks for, and how that is learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from vla_ros.core.errors import PolicyError, did_you_mean
from vla_ros.policies.atomic_vla.expert import Prefix
from vla_ros.policies.atomic_vla.plan import Plan, read_plan
from vla_ros.policies.text import PAD_ID


class Thinker(Protocol):
    """What of a reader (see `readers`) matters here: its reserved ids, and that it writes."""

    end: int
    think: int
    act: int

    def write(self, prefix: Prefix, count: int, choose: Callable[[Tensor], int]) -> list[int]: ...


def think(
    reader: Thinker, prefix: Prefix, length: int, decode: Callable[[list[int]], str], skills: Sequence[str], generator: torch.Generator
) -> Plan:
    """Writes a plan of at most `length` ids for one observation and reads it.

    The likeliest words come first. If they make no plan it thinks once more, with words drawn by their chances: the likeliest would be the
    same again.

    Raises:
        PolicyError: neither is a plan, or its skill is none of `skills`.
    """
    thoughts = []
    for choose in (_likeliest, lambda logits: _drawn(logits, generator)):
        thoughts.append(decode(reader.write(prefix, length, choose)))
        plan = read_plan(thoughts[-1])
        if plan is None:
            continue
        if plan.skill not in skills:
            raise PolicyError(f"the thought {plan.text!r} names the skill {plan.skill!r}; {did_you_mean(plan.skill, skills)}")
        return plan
    said = " and ".join(f"{thought!r:.300}" for thought in thoughts)
    raise PolicyError(f"two thoughts in a row are no plans: {said}; expected 'task chain ..., step i/N, atomic skill NAME'")


def _likeliest(logits: Tensor) -> int:
    return int(logits.argmax())


def _drawn(logits: Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(logits.float().softmax(-1).cpu(), 1, generator=generator))


def plan_loss(logits: Tensor, due: Tensor, plan: Tensor, reader: Thinker) -> dict[str, Tensor]:
    """Cross-entropies of the decision, between the two ids that are compared, and of the words, averaged over samples that have any.

    Args:
        logits: [B, n + 2, vocabulary] behind the observation, THINK and the words.
        due: bool [B], whether to think.
        plan: int64 [B, n], 0 after the end.
        reader: whose ids these are.
    """
    decision = functional.cross_entropy(logits[:, 0, [reader.act, reader.think]], due.long())
    length = (plan != PAD_ID).sum(1, keepdim=True)
    targets = functional.pad(plan, (0, 1)).scatter(1, length, reader.end)
    targets = torch.where(length > 0, targets, PAD_ID)
    losses = functional.cross_entropy(logits[:, 1:].transpose(1, 2), targets, ignore_index=PAD_ID, reduction="sum")
    return {"decision": decision, "text": losses / (targets != PAD_ID).sum().clamp(min=1)}
