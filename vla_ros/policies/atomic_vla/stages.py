"""What of AtomicVLA learns: everything, or one new skill and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vla_ros.core.errors import PolicyError, did_you_mean
from vla_ros.policies.atomic_vla.mixture import SkillLibrary

if TYPE_CHECKING:
    from vla_ros.policies.atomic_vla.network import AtomicVla


def learn_everything(network: AtomicVla) -> None:
    """The first training."""
    network.requires_grad_(True)
    network.learning = None


def learn_skill(network: AtomicVla, name: str, writer: bool = False) -> None:
    """Freezes everything but the expert of one skill and its gate, so that all other skills keep acting as they did, to the bit.

    Args:
        network: its batches must show this skill alone from now on.
        name: of the skill.
        writer: lets a writer that acting does not depend on learn the plans too. The plans of old tasks may change then.

    Raises:
        PolicyError: no such skill, no experts of skills, or the backbone writes itself and `writer` is asked for.
    """
    library = network.library
    if not isinstance(library, SkillLibrary) or name not in library.experts:
        valid = library.sigmas if isinstance(library, SkillLibrary) else ()
        raise PolicyError(f"skill {name!r} cannot learn alone (routing '{network.routing}'); {did_you_mean(name, valid)}")
    network.requires_grad_(False)
    if writer:
        network.reader.train_writer()
    library.experts[name].requires_grad_(True)
    library.gates[name].requires_grad_(True)
    network.learning = name
