"""A memory that grows without training: demonstrations that succeeded become entries of a MoL-MSM checkpoint."""

from __future__ import annotations

from pathlib import Path

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import DataError
from vla_ros.core.types import Frame, Observation, PolicySpec, Proprioception
from vla_ros.policies.mol_msm.policy import MolMsmPolicy
from vla_ros.training.demonstrations import Episode, episode_seeds, load_episode


def grow_memory(checkpoint: Path, embodiment: str, data: Path) -> int:
    """Adds the demonstrations in `data` that succeeded to the memory of a checkpoint's folder; returns how many there were.

    Raises:
        DataError: there is none, or one is of another robot.
        PolicyError: the checkpoint does not load for `embodiment`, or has no memory.
    """
    policy = MolMsmPolicy.load(checkpoint, load_embodiment(embodiment))
    episodes = [episode for episode in (load_episode(data, seed) for seed in episode_seeds(data)) if episode.success]
    if not episodes:
        raise DataError(f"{data}: no demonstration that succeeded: give the folder of one robot, such as data/{embodiment}")
    for episode in episodes:
        policy.remember(_observations(policy.spec, episode, data), episode.targets[:, 0])
    policy.save_memory(checkpoint)
    return len(episodes)


def _observations(spec: PolicySpec, episode: Episode, data: Path) -> list[Observation]:
    found, wanted = (episode.frames.shape[1], episode.state.shape[1]), (len(spec.cameras), len(spec.state))
    if found != wanted:
        raise DataError(f"{data}: seed {episode.seed} has (cameras, numbers of state) {found}; {spec.embodiment} has {wanted}")
    return [
        Observation(
            0,
            {name: Frame(0, image, 0, name) for name, image in zip(spec.cameras, images, strict=True)},
            Proprioception(0, spec.state, state),
            episode.instruction,
        )
        for images, state in zip(episode.frames, episode.state, strict=True)
    ]
