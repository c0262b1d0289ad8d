"""The stages in which MoL-MSM VLA is trained: whether the backbone learns, and whether there is a memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        backbone: whether it learns. Keys of the memory are states of the backbone, so it must stand still while there is one.
        memory: whether chunks are remembered and retrieved.
    """

    backbone: bool
    memory: bool


STAGES = {
    "pretrain": Stage(backbone=True, memory=False),  # for a backbone that nobody has trained: it learns with the head, without a memory
    "skills": Stage(backbone=False, memory=True),  # the paper's: queries, head and memory learn
}
