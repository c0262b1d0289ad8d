"""Which task and which words each episode of an evaluation gets; all drawn from its seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_ros.core.errors import ConfigError, did_you_mean
from vla_ros.sim.layout import Layout
from vla_ros.sim.tasks import task_of_seed
from vla_ros.training.phrasings import HELD_OUT_TEMPLATES, TRAIN_TEMPLATES, held_out, rephrase

LONGEST_DELAY_MS = 5000.0  # of the policy node
INSTRUCTION_SETS = ("canonical", "train", "held-out")


@dataclass(frozen=True)
class EpisodePlan:
    """One episode: `task` is the canonical instruction that is judged, in so many `steps`; `instruction` is what the policy is told, by the
    wording `phrasing`.
    """

    seed: int
    task: str
    instruction: str
    phrasing: str
    steps: int = 1


def plan_episodes(first_seed: int, episodes: int, instruction_set: str, kinds: tuple[str, ...] = ("place",)) -> list[EpisodePlan]:
    """Plans episodes with the seeds first_seed, first_seed + 1, ...

    Args:
        first_seed: of episode 0.
        episodes: how many.
        instruction_set: "canonical" (as the task is named), "train" (a wording from training, drawn from the seed)
            or "held-out" (the wordings that were never trained on, in turn).
        kinds: of tasks (`sim.tasks.KINDS`), in turn.

    Raises:
        ConfigError: unknown instruction set or kind.
    """
    if instruction_set not in INSTRUCTION_SETS:
        raise ConfigError(f"instruction set '{instruction_set}' does not exist; {did_you_mean(instruction_set, INSTRUCTION_SETS)}")
    return [_plan(first_seed + k, k, instruction_set, kinds) for k in range(episodes)]


def _plan(seed: int, number: int, instruction_set: str, kinds: tuple[str, ...]) -> EpisodePlan:
    draw = np.random.default_rng([seed, 5])
    drawn = task_of_seed(seed, kinds)
    task, steps = drawn.text, len(drawn.goals)
    if instruction_set == "held-out" and drawn.kind in HELD_OUT_TEMPLATES:
        templates = HELD_OUT_TEMPLATES[drawn.kind]
        k = number % len(templates)
        return EpisodePlan(seed, task, held_out(task)[k], templates[k], steps)
    if instruction_set == "train":
        templates = TRAIN_TEMPLATES[drawn.kind]
        template = templates[draw.integers(len(templates))]
        return EpisodePlan(seed, task, rephrase(task, template, lambda words: words[draw.integers(len(words))]), template, steps)
    return EpisodePlan(seed, task, task, TRAIN_TEMPLATES[drawn.kind][0], steps)


def split_kinds(text: str, layout: Layout) -> tuple[str, ...]:
    """Reads "place,drawer" as kinds of tasks; empty: those that the table's tasks are drawn from.

    Raises:
        ConfigError: the table has no tasks of a kind.
    """
    kinds = tuple(filter(None, (piece.strip() for piece in text.split(","))))
    for kind in kinds:
        if kind not in layout.kinds:
            raise ConfigError(f"--kinds '{text}': the table has no tasks of kind '{kind}'; {did_you_mean(kind, layout.kinds)}")
    return kinds or layout.drawn


def split_executors(text: str) -> list[str]:
    """Splits "first,ensemble:weighting=age,m=2,rtc" into its executors: a piece "option=value" belongs to the one before it.

    Raises:
        ConfigError: the list is empty or begins with an option.
    """
    names: list[str] = []
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        if "=" in piece and ":" not in piece:
            if not names:
                raise ConfigError(f"--executors '{text}' begins with an option; example: first,ensemble:weighting=age,m=2")
            names[-1] += f",{piece}"
        else:
            names.append(piece)
    if not names:
        raise ConfigError("--executors is empty; example: first,ensemble:weighting=age,m=2")
    return names


def split_delays(text: str) -> list[float]:
    """Reads "0,100,400" as delays in ms, each once. Raises ConfigError: not numbers of 0 .. 5000, or none."""
    delays: list[float] = []
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        try:
            delay_ms = float(piece)
        except ValueError:
            raise ConfigError(f"--delays '{text}': '{piece}' is no number of ms; example: 0,100,200,400") from None
        if not 0 <= delay_ms <= LONGEST_DELAY_MS:
            raise ConfigError(f"--delays '{text}': {piece} ms, expected 0 .. {LONGEST_DELAY_MS:g}")
        if delay_ms not in delays:
            delays.append(delay_ms)
    if not delays:
        raise ConfigError("--delays is empty; example: 0,100,200,400")
    return delays
