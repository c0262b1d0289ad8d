"""Demonstrations on disk: two files an episode in one folder, `<seed>.frames.npy` (memory-mapped) and `<seed>.steps.npz`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from vla_ros.core.errors import DataError

OBJECTS = ("red", "green", "blue", "plate", "bowl", "bar", "tray", "drawer")
BEFORE_GRASP, HELD, PLACED = 0, 1, 2


@dataclass(frozen=True)
class Episode:
    """T steps of one demonstration at the policy's rate; channels as in `policies.layout`, everything in `base_link`.

    Args:
        frames: uint8 [T, cameras, H, W, 3] RGB, shrunk by `policies.images.shrink`.
        state: [T, S] as measured.
        targets: [T, horizon, D] what a perfect expert would do from here, absolute.
        objects: [T, 8, 3] positions (m) in the order of `OBJECTS`, NaN for what is not on the table.
        stage: uint8 [T], BEFORE_GRASP, HELD or PLACED.
        roles: int [T, 2], indices into `OBJECTS`: what the skill of this step moves and where to.
        instruction: canonical sentence.
        seed: of the scene.
        success: how the (noisy) episode ended.
        chain: the atomic skills of the task, in order, e.g. ("open drawer", "pick red block", "place in drawer", "close drawer").
        skill: uint8 [T], the skill that the expert is at, as an index into `chain`; it goes back when something was lost.
    """

    frames: np.ndarray
    state: np.ndarray
    targets: np.ndarray
    objects: np.ndarray
    stage: np.ndarray
    roles: np.ndarray
    instruction: str
    seed: int
    success: bool
    chain: tuple[str, ...] = ()
    skill: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.state)

    def skill_name(self, step: int) -> str:
        """The atomic skill at a step, e.g. "pick". Raises DataError: the episode says nothing about skills."""
        if self.skill is None:
            raise DataError(f"the episode of seed {self.seed} was collected without skills: delete its files and collect it again")
        return self.chain[self.skill[step]].split()[0]


def save_episode(folder: Path, episode: Episode) -> None:
    """Writes one episode; a kill or a full disk never leaves half of one under its final name."""
    steps, frames = folder / f"{episode.seed}.steps.npz", folder / f"{episode.seed}.frames.npy"
    rest = {item.name: getattr(episode, item.name) for item in fields(episode) if item.name != "frames"}
    rest = {name: value for name, value in rest.items() if value is not None and name != "chain"} | {"chain": np.array(episode.chain, "U")}
    partial = [path.with_name(f".{path.name}.part") for path in (frames, steps)]
    try:
        with partial[0].open("wb") as stream:
            np.save(stream, episode.frames)
        with partial[1].open("wb") as stream:
            np.savez_compressed(stream, **rest)
        partial[0].replace(frames)
        partial[1].replace(steps)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)


def load_episode(folder: Path, seed: int) -> Episode:
    """Opens one episode, its frames as a memory map. Raises DataError when a file is broken."""
    path = folder / f"{seed}.steps.npz"
    try:
        with np.load(path, allow_pickle=False) as steps:
            values = {name: steps[name] for name in steps.files}
        frames = np.load(folder / f"{seed}.frames.npy", mmap_mode="r", allow_pickle=False)
        values = _completed(values)
        scalars = {"instruction": str(values.pop("instruction")), "seed": int(values.pop("seed")), "success": bool(values.pop("success"))}
        episode = Episode(frames=frames, **values, **scalars)
    except Exception as error:  # numpy raises a dozen kinds for broken files
        raise DataError(
            f"{path}: not an episode ({type(error).__name__}: {error}): delete both files of seed {seed} and collect again"
        ) from error
    if len(frames) != len(episode):
        raise DataError(f"{path}: {len(frames)} frames for {len(episode)} steps: delete both files of seed {seed} and collect again")
    return episode


def _completed(values: dict[str, np.ndarray]) -> dict[str, object]:
    """Brings an episode from before there were tasks of several skills to the present form: fewer objects, one pair of roles for all."""
    objects, roles = values["objects"], values["roles"]
    lacking = len(OBJECTS) - objects.shape[1]
    values["objects"] = np.pad(objects, ((0, 0), (0, lacking), (0, 0)), constant_values=np.nan)
    values["roles"] = np.broadcast_to(roles, (len(objects), 2))
    return values | {"chain": tuple(map(str, values.get("chain", ())))}


def episode_seeds(folder: Path) -> list[int]:
    """Returns the seeds of the complete episodes in `folder`, ascending."""
    return sorted(int(path.name.split(".")[0]) for path in folder.glob("[0-9]*.steps.npz"))
