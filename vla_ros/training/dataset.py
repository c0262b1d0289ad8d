"""Batches for training: weighted steps of all demonstrations, augmented images, rephrased instructions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from vla_ros.core.errors import DataError
from vla_ros.policies.layout import Layout
from vla_ros.policies.network import Batch, to_pixels
from vla_ros.policies.normalization import Quantiles
from vla_ros.policies.text import UNKNOWN_ID, encode
from vla_ros.training.config import Augmentation
from vla_ros.training.demonstrations import Episode, episode_seeds, load_episode
from vla_ros.training.phrasings import TRAIN_TEMPLATES, is_canonical, keywords, parse, rephrase

CANONICAL_SHARE = 0.25


class Demonstrations:
    """All episodes of a folder as one array of steps.

    Args:
        folder: see `demonstrations`.
        layout: of the embodiment that they show; `self.layout` is the same with the normalisation of these data, if it has none yet.
        stage_weights: how often a step before the grasp, with the block held and after the release is drawn.
        held_out_share: share of the episodes, drawn by `seed`, that is neither drawn nor measured: `held_out` bool [steps].

    Raises:
        DataError: no episodes, a broken one, episodes of different shapes, or too few to hold one out.
    """

    def __init__(
        self, folder: Path, layout: Layout, stage_weights: tuple[float, float, float], held_out_share: float = 0.0, seed: int = 0
    ) -> None:
        episodes = [load_episode(folder, seed) for seed in episode_seeds(folder)]
        if not episodes:
            raise DataError(f"{folder}: no demonstrations: collect them with `vla train CONFIG --data {folder.parent}`")
        shapes = {(*episode.frames.shape[1:], *episode.state.shape[1:], *episode.targets.shape[1:]) for episode in episodes}
        if len(shapes) > 1:
            raise DataError(f"{folder}: episodes of different shapes {sorted(shapes)}: keep one kind in a folder")
        if episodes[0].targets.shape[2] != len(layout.channels) or episodes[0].frames.shape[1] != len(layout.cameras):
            shape = f"{episodes[0].frames.shape[1]} cameras, {episodes[0].targets.shape[2]} channels"
            raise DataError(f"{folder}: {shape}; {layout.embodiment} has {len(layout.cameras)} and {len(layout.channels)}")
        self.episodes = episodes
        self.owner = np.repeat(np.arange(len(episodes)), [len(episode) for episode in episodes])
        self.step = np.concatenate([np.arange(len(episode)) for episode in episodes])
        self.state, self.objects = (self._join(episodes, name) for name in ("state", "objects"))
        self.held_out = np.isin(self.owner, _held_out(folder, len(episodes), held_out_share, seed))
        motion = layout.relative(self._join(episodes, "targets"), self.state)
        seen = ~self.held_out
        statistics = layout.normalization or layout.measure(layout.features(self.state[seen]), motion[seen])
        self.layout = replace(layout, normalization=statistics)
        self.state_statistics, self.action_statistics = self.layout.statistics(motion.shape[1], str(folder))
        self.actions = self.action_statistics.normalize(motion).astype(np.float32)
        self._scale_objects()
        cumulative = np.cumsum(np.asarray(stage_weights)[self._join(episodes, "stage")] * seen)
        self._cumulative = cumulative / cumulative[-1]

    def _scale_objects(self) -> None:
        """Mean and spread (m) [3] of whatever lies on the table; a dataset does not say."""
        there = self.objects[np.isfinite(self.objects).all(-1)]
        self.object_mean, self.object_spread_m = np.zeros(3), np.ones(3)
        if len(there):
            self.object_mean, self.object_spread_m = there.mean(0), np.maximum(there.std(0), 0.02)

    @staticmethod
    def _join(episodes: list[Episode], name: str) -> np.ndarray:
        return np.concatenate([getattr(episode, name) for episode in episodes])

    def __len__(self) -> int:
        return len(self.owner)

    def instructions(self) -> list[str]:
        return sorted({episode.instruction for episode in self.episodes})

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Returns `count` step indices by stage weight."""
        return np.searchsorted(self._cumulative, rng.random(count), side="right")

    def frames(self, indices: np.ndarray) -> np.ndarray:
        """uint8 [..., cameras, H, W, 3] of the steps `indices` [...]."""
        found = np.stack([self.episodes[self.owner[i]].frames[self.step[i]] for i in indices.ravel()])
        return found.reshape(*indices.shape, *found.shape[1:])

    def trajectories(self, indices: np.ndarray) -> np.ndarray:
        """Returns [B, T, D]: what is commanded from each step to the end of its episode, normalised; NaN past the end.

        Motion is relative to the state at the step and has the statistics of the chunk, rows beyond the horizon those of its last row.
        Nothing is clipped: a whole trajectory goes farther than any chunk, and must not end where the chunk does.
        """
        own = [np.arange(i, i + len(self.episodes[self.owner[i]]) - self.step[i]) for i in indices]
        out = np.full((len(indices), max(map(len, own)), len(self.layout.channels)), np.nan, dtype=np.float32)
        for row, (i, steps) in enumerate(zip(indices, own, strict=True)):
            targets = np.stack([self.episodes[self.owner[k]].targets[self.step[k], 0] for k in steps])
            scale = self.action_statistics
            rows = np.minimum(np.arange(len(steps)), len(scale.low) - 1)
            motion = self.layout.relative(targets, self.state[i])
            out[row, : len(steps)] = Quantiles(scale.low[rows], scale.high[rows]).normalize(motion, clip=False)
        return out

    def before(self, indices: np.ndarray, window: int) -> np.ndarray:
        """[B] steps -> [B, window] consecutive steps that end there; an episode's first stands for those before it."""
        return indices[:, None] - np.minimum(self.step[indices][:, None], np.arange(window)[::-1])


def _held_out(folder: Path, episodes: int, share: float, seed: int) -> np.ndarray:
    """Indices of the episodes for validation, at least one if any are asked for."""
    count = max(1, round(share * episodes)) if share else 0
    if count >= episodes:
        raise DataError(f"{folder}: {episodes} episodes, {count} to hold out: record more, or set validation_share: 0.0")
    return np.random.default_rng(seed).permutation(episodes)[:count]


@dataclass(frozen=True)
class Reader:
    """How instructions become tokens: `prompt(layout, sentence)` is the system's."""

    tokenizer: Tokenizer
    length: int
    prompt: Callable[[Layout, str], str]

    def tokens(self, layout: Layout, sentence: str) -> np.ndarray:
        return encode(self.tokenizer, self.prompt(layout, sentence), self.length)


class Batches:
    """Endless augmented batches, each of one of `sources`, drawn by their `shares`.

    Args:
        window: above 1 images [B, window, C, 3, H, W] and state [B, window, F] are the last observations, as `network.Inputs` wants them.
        whole: no images, and actions [B, T, D] that go on to the end of the episode; see `Demonstrations.trajectories`.
        process: of several that train together: each has batches of its own, of the same source at a time.
    """

    def __init__(
        self,
        sources: list[Demonstrations],
        shares: list[float],
        reader: Reader,
        augmentation: Augmentation,
        seed: int,
        window: int = 1,
        whole: bool = False,
        process: int = 0,
    ) -> None:
        self._sources, self._reader, self._augmentation = sources, reader, augmentation
        self._window, self._whole = window, whole
        self._turns, self._rng = np.random.default_rng(seed), np.random.default_rng([seed, process])
        self._shares = np.array(shares) / np.sum(shares)
        self._first_episode = np.cumsum([0, *(len(source.episodes) for source in sources)])
        sentences = {instruction for source in sources for instruction in source.instructions()}
        self._kept = [number for sentence in sentences for words in keywords(sentence) for number in reader.tokenizer.encode(words).ids]

    def next(self, size: int) -> Batch:
        """Returns `size` samples of one source."""
        data = self._sources[int(self._turns.choice(len(self._sources), p=self._shares))]
        return self.of(data, data.draw(self._rng, size))

    def of(self, data: Demonstrations, indices: np.ndarray) -> Batch:
        """Returns the steps `indices` of one source as the network sees them."""
        episodes = [data.episodes[i] for i in data.owner[indices]]
        seen = data.before(indices, self._window) if self._window > 1 else indices
        features = data.layout.features(self._disturbed(data, data.state[seen]))
        return Batch(
            data.layout.embodiment,
            images=None if self._whole else augment(torch.from_numpy(data.frames(seen)), self._augmentation, self._rng),
            state=_tensor(data.state_statistics.normalize(features, clip=False)),
            tokens=torch.from_numpy(np.stack([self._say(data.layout, episode.instruction) for episode in episodes])),
            actions=_tensor(data.trajectories(indices) if self._whole else data.actions[indices]),
            objects=_tensor((data.objects[indices] - data.object_mean) / data.object_spread_m),
            roles=torch.from_numpy(np.stack([data.episodes[data.owner[i]].roles[data.step[i]] for i in indices])),
            episode=torch.from_numpy(data.owner[indices] + self._first_episode[self._sources.index(data)]),
        )

    def _disturbed(self, data: Demonstrations, state: np.ndarray) -> np.ndarray:
        """Proprioception [B, (W,) S] as noisy as the network should bear; one error a window, or the network would average it away."""
        noise = self._augmentation
        error = np.zeros((len(state), state.shape[-1]))
        for arm in data.layout.arms:
            scale = np.repeat([noise.position_noise_m, noise.rotation_noise_rad], 3) if arm.pose else noise.rotation_noise_rad
            error[:, arm.columns] = self._rng.normal(size=(len(state), arm.motion)) * scale
            error[:, arm.gripper] = self._rng.normal(size=len(state)) * noise.width_noise_m
        return state + (error if state.ndim == 2 else error[:, None])

    def _say(self, layout: Layout, instruction: str) -> np.ndarray:
        """Tokens of a random phrasing; some words, none of those that make the task, become <unk>."""
        rng = self._rng
        if is_canonical(instruction) and rng.random() > CANONICAL_SHARE:
            kind, _ = parse(instruction)
            instruction = rephrase(instruction, str(rng.choice(TRAIN_TEMPLATES[kind])), lambda words: words[rng.integers(len(words))])
        ids = self._reader.tokens(layout, instruction)
        dropped = (rng.random(len(ids)) < self._augmentation.word_dropout) & (ids > UNKNOWN_ID) & ~np.isin(ids, self._kept)
        return np.where(dropped, UNKNOWN_ID, ids)


def augment(images: Tensor, noise: Augmentation, rng: np.random.Generator) -> Tensor:
    """uint8 [B, (W,) cameras, H, W, 3] -> float [B, (W,) cameras, 3, H, W].

    Every view is shifted by whole pixels and tinted on its own, in a window always alike.
    """
    windows = images if images.ndim == 6 else images[:, None]
    batch, window, cameras, height, width, _ = windows.shape
    views = windows.transpose(1, 2).flatten(0, 1)
    shift = torch.from_numpy(rng.integers(-noise.shift_px, noise.shift_px + 1, size=(2, len(views), 1)))
    rows = (torch.arange(height) + shift[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + shift[1]).clamp(0, width - 1)
    view, step = torch.arange(len(views))[:, None, None, None], torch.arange(window)[:, None, None]
    shifted = views[view, step, rows[:, None, :, None], columns[:, None, None, :]]
    gain = 1 + noise.colour * torch.from_numpy(rng.uniform(-1, 1, size=(len(views), 1, 3, 1, 1))).float()
    offset = noise.colour * torch.from_numpy(rng.uniform(-1, 1, size=(len(views), 1, 1, 1, 1))).float()
    out = (to_pixels(shifted) * gain + offset).unflatten(0, (batch, cameras)).transpose(1, 2)
    return out if images.ndim == 6 else out[:, 0]


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
