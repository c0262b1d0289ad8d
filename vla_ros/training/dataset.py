"""Batches for training: weighted steps of all demonstrations, augmented images, rephrased instructions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from vla_ros.core.errors import DataError
from vla_ros.policies.normalization import Quantiles
from vla_ros.policies.poses import SMALLEST_POSE_RANGE, SMALLEST_STATE_RANGE, relative_poses, state_features
from vla_ros.policies.robovlms import to_pixels
from vla_ros.policies.text import UNKNOWN_ID, encode
from vla_ros.training.config import Augmentation
from vla_ros.training.demonstrations import Episode, episode_seeds, load_episode
from vla_ros.training.phrasings import TRAIN_TEMPLATES, keywords, parse, rephrase

CANONICAL_SHARE = 0.25


@dataclass(frozen=True)
class Batch:
    """B training samples; `objects` [B, 5, 3] and `roles` [B, 2] serve the auxiliary losses (positions in units of their spread)."""

    images: Tensor
    state: Tensor
    tokens: Tensor
    pose: Tensor
    closed: Tensor
    objects: Tensor
    roles: Tensor


class Demonstrations:
    """All episodes of a folder as one array of steps.

    Args:
        folder: see `demonstrations`.
        stage_weights: how often a step before the grasp, with the block held and after the release is drawn.

    Raises:
        DataError: no episodes, a broken one, or episodes of different shapes.
    """

    def __init__(self, folder: Path, stage_weights: tuple[float, float, float]) -> None:
        episodes = [load_episode(folder, seed) for seed in episode_seeds(folder)]
        if not episodes:
            raise DataError(f"{folder}: no demonstrations: collect them with `vla train CONFIG --data {folder}`")
        shapes = {(*episode.frames.shape[1:], *episode.targets.shape[1:]) for episode in episodes}
        if len(shapes) > 1:
            raise DataError(f"{folder}: episodes of different shapes {sorted(shapes)}: keep one kind in a folder")
        self.episodes = episodes
        self.owner = np.repeat(np.arange(len(episodes)), [len(episode) for episode in episodes])
        self.step = np.concatenate([np.arange(len(episode)) for episode in episodes])
        self.pose, self.width_m, self.objects = (self._join(episodes, name) for name in ("pose", "gripper_width_m", "objects"))
        targets = self._join(episodes, "targets")
        self.motion = relative_poses(targets[..., :6], self.pose).astype(np.float32)
        self.closed = targets[..., 6].astype(np.float32)
        self.state_statistics = Quantiles.measure(state_features(self.pose, self.width_m), SMALLEST_STATE_RANGE)
        self.pose_statistics = Quantiles.measure(self.motion, SMALLEST_POSE_RANGE)
        self.object_mean, self.object_spread_m = self.objects.mean((0, 1)), np.maximum(self.objects.std((0, 1)), 0.02)
        weights = np.asarray(stage_weights)[self._join(episodes, "stage")]
        self._cumulative = np.cumsum(weights / weights.sum())

    @staticmethod
    def _join(episodes: list[Episode], name: str) -> np.ndarray:
        return np.concatenate([getattr(episode, name) for episode in episodes])

    def __len__(self) -> int:
        return len(self.owner)

    def instructions(self) -> list[str]:
        return sorted({episode.instruction for episode in self.episodes})

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Returns `count` step indices by stage weight."""
        return np.minimum(np.searchsorted(self._cumulative, rng.random(count)), len(self) - 1)

    def frames(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self.episodes[self.owner[i]].frames[self.step[i]] for i in indices])


class Batches:
    """Endless augmented batches of `demonstrations`."""

    def __init__(
        self, demonstrations: Demonstrations, tokenizer: Tokenizer, text_length: int, augmentation: Augmentation, seed: int
    ) -> None:
        self._data, self._tokenizer, self._text_length = demonstrations, tokenizer, text_length
        self._augmentation = augmentation
        self._rng = np.random.default_rng(seed)
        words = {word for instruction in demonstrations.instructions() for word in keywords(instruction)}
        self._kept = [tokenizer.token_to_id(word) for word in words]

    def next(self, size: int) -> Batch:
        data, rng, noise = self._data, self._rng, self._augmentation
        indices = data.draw(rng, size)
        pose = data.pose[indices] + rng.normal(size=(size, 6)) * np.repeat([noise.position_noise_m, noise.rotation_noise_rad], 3)
        width_m = data.width_m[indices] + rng.normal(size=size) * noise.width_noise_m
        episodes = [data.episodes[i] for i in data.owner[indices]]
        return Batch(
            images=augment(torch.from_numpy(data.frames(indices)), noise, rng),
            state=_tensor(data.state_statistics.normalize(state_features(pose, width_m), clip=False)),
            tokens=torch.from_numpy(np.stack([self._say(episode.instruction) for episode in episodes])),
            pose=_tensor(data.pose_statistics.normalize(data.motion[indices])),
            closed=_tensor(data.closed[indices]),
            objects=_tensor((data.objects[indices] - data.object_mean) / data.object_spread_m),
            roles=torch.from_numpy(np.stack([episode.roles for episode in episodes])),
        )

    def _say(self, instruction: str) -> np.ndarray:
        """Tokens of a random phrasing; some words, none of those that make the task, become <unk>."""
        rng = self._rng
        if rng.random() > CANONICAL_SHARE:
            kind, _ = parse(instruction)
            instruction = rephrase(instruction, str(rng.choice(TRAIN_TEMPLATES[kind])), lambda words: words[rng.integers(len(words))])
        ids = encode(self._tokenizer, instruction, self._text_length)
        dropped = (rng.random(len(ids)) < self._augmentation.word_dropout) & (ids > UNKNOWN_ID) & ~np.isin(ids, self._kept)
        return np.where(dropped, UNKNOWN_ID, ids)


def augment(images: Tensor, noise: Augmentation, rng: np.random.Generator) -> Tensor:
    """uint8 [B, cameras, H, W, 3] -> float [B, cameras, 3, H, W], every view shifted by whole pixels and tinted on its own."""
    batch, cameras, height, width, _ = images.shape
    views = images.flatten(0, 1)
    shift = torch.from_numpy(rng.integers(-noise.shift_px, noise.shift_px + 1, size=(2, len(views), 1)))
    rows = (torch.arange(height) + shift[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + shift[1]).clamp(0, width - 1)
    shifted = views[torch.arange(len(views))[:, None, None], rows[:, :, None], columns[:, None, :]]
    gain = 1 + noise.colour * torch.from_numpy(rng.uniform(-1, 1, size=(len(views), 3, 1, 1))).float()
    offset = noise.colour * torch.from_numpy(rng.uniform(-1, 1, size=(len(views), 1, 1, 1))).float()
    return (to_pixels(shifted) * gain + offset).unflatten(0, (batch, cameras))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def target_positions(objects: Tensor, roles: Tensor) -> Tensor:
    """Picks what to move and where to: objects [B, 5, 3], roles [B, 2] -> [B, 2, 3]."""
    return objects.gather(1, roles.long()[:, :, None].expand(-1, -1, objects.shape[-1]))
