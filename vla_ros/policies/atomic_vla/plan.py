"""What a thought says: the grammar of the plan's text, written for training and read at inference.

    task chain pick up the red block, then place the red block on the plate, step 2/2, atomic skill place

A tokenizer may drop capitals and punctuation: the words alone say it all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vla_ros.core.errors import DataError

NEXT = "then"  # between two steps of the chain
_PLAN = re.compile(r"task chain (?P<chain>.+) step (?P<step>\d{1,3}) (?P<of>\d{1,3}) atomic skill (?P<skill>\w+)")


@dataclass(frozen=True)
class Plan:
    """The chain of steps in words, the step that is due (from 0), its skill, and the text that said so."""

    chain: tuple[str, ...]
    step: int
    skill: str
    text: str


def plan_text(chain: tuple[str, ...], step: int, skill: str) -> str:
    """Returns the text of a plan. Raises DataError for a step that is not in the chain, or words that could not be read again."""
    text = f"task chain {f', {NEXT} '.join(chain)}, step {step + 1}/{len(chain)}, atomic skill {skill}"
    plan = read_plan(text)
    if plan is None or (plan.chain, plan.step, plan.skill) != (tuple(_words(item) for item in chain), step, skill):
        raise DataError(f"plan {chain}, step {step}, skill {skill!r}: cannot be read again; steps are words without {NEXT!r}")
    return text


def read_plan(text: str) -> Plan | None:
    """Returns what `text` says, or None: it is no plan, or its step is not in its chain."""
    found = _PLAN.fullmatch(_words(text))
    if found is None:
        return None
    chain = tuple(item.strip() for item in found["chain"].split(f" {NEXT} "))
    step, of = int(found["step"]), int(found["of"])
    if of != len(chain) or not 1 <= step <= of or not all(chain):
        return None
    return Plan(chain, step - 1, found["skill"], text)


def _words(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())
