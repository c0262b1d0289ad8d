"""The stages in which VITA-VLA is trained, and the paper's two variants: what learns, from what, starting where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vla_ros.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from vla_ros.policies.vita_vla.network import VitaVla


@dataclass(frozen=True)
class Stage:
    """One stage. State encoder, action token and mapper learn in each, the vision in none.

    Args:
        language: whether the language model learns.
        decoder: whether the decoder and the heads learn.
        aligns: the loss is the distance to the teacher's states, not to the demonstrated actions.
        from_teacher: it starts with the teacher's decoder and heads; else from the weights that stage `align` has left.
    """

    language: bool
    decoder: bool
    aligns: bool
    from_teacher: bool


STAGES = {
    "align": Stage(language=False, decoder=False, aligns=True, from_teacher=True),
    "finetune": Stage(language=True, decoder=True, aligns=False, from_teacher=False),
    "only_ft": Stage(language=True, decoder=True, aligns=False, from_teacher=True),
    "frozen": Stage(language=False, decoder=True, aligns=False, from_teacher=False),
}


def configure_stage(network: VitaVla, stage: str, tokenizer: Tokenizer | None = None) -> Stage:
    """Makes `network` ready for a stage: `requires_grad`, its loss, and the teacher where the stage starts from one.

    On the meta device there are no weights to take over, so no teacher is asked for.

    Args:
        network: what will be trained.
        stage: a key of `STAGES`.
        tokenizer: the student's, to be compared with the teacher's.

    Raises:
        ConfigError: no such stage.
        PolicyError: the teacher is missing or does not fit, see `teacher.load_teacher`.
    """
    if stage not in STAGES:
        raise ConfigError(f"stage '{stage}'; {did_you_mean(stage, STAGES)}")
    chosen = STAGES[stage]
    if chosen.from_teacher and not network.token.is_meta:
        network.attend(tokenizer)
    network.stage = chosen
    network.requires_grad_(True)
    network.backbone.vision.requires_grad_(False)
    network.backbone.language.requires_grad_(chosen.language)
    network.decoder.requires_grad_(chosen.decoder)
    return chosen
