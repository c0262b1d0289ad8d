"""Brings a LeRobot v3.0 dataset into the training's data folder: frames as small as the policy sees them, targets as chunks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from vla_ros.core.channels import GRIPPERS, split
from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, DataError
from vla_ros.policies.images import shrink
from vla_ros.policies.layout import layout_for
from vla_ros.training.config import TrainingConfig
from vla_ros.training.demonstrations import BEFORE_GRASP, OBJECTS, Episode, episode_seeds, save_episode
from vla_ros.training.lerobot_channels import Channels
from vla_ros.training.lerobot_files import INFO, LeRobotFolder, Rows
from vla_ros.training.progress import Progress
from vla_ros.training.sources import Names, Source

IMPLAUSIBLE = 10.0  # m or rad: no arm reaches so far; degrees and millimetres do


def import_dataset(config: TrainingConfig, source: Source, data: Path) -> Path:
    """Reads the dataset of `source` once and keeps it as episodes; another dataset, mapping or image size has another folder.

    Returns:
        The folder in `data`, for `dataset.Demonstrations`.

    Raises:
        DataError: the dataset is broken, does not fit the embodiment or the policy's `dt_s`; or the disk is full.
    """
    dataset = LeRobotFolder(Path(source.dataset).expanduser())
    importer = Importer(config, source, dataset)
    folder = data / f"{source.embodiment}-{_digest(config, source, dataset.folder)}"
    done = set(episode_seeds(folder))
    missing = [episode for episode in dataset.episodes if episode["episode_index"] not in done]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Progress(len(dataset.episodes), len(done), f"{source.embodiment} from {dataset.folder.name}") as progress:
            for count, episode in enumerate(missing, len(done) + 1):
                save_episode(folder, importer.read(episode))
                if count % 10 == 0 or count == len(dataset.episodes):
                    progress.advance(count, {})
    except OSError as error:
        raise DataError(f"{folder}: cannot write ({error}): free some space and run again; finished episodes are kept") from error
    return folder


def _digest(config: TrainingConfig, source: Source, folder: Path) -> str:
    """Names everything that the imported episodes depend on."""
    files = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()]
    names = asdict(source.names or Names())
    policy = config.image, config.horizon, config.dt_s
    parts = str(folder.resolve()), sorted(files), source.cameras, names, source.units, policy
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


class Importer:
    """Makes an `Episode` of each of a dataset's.

    Raises:
        DataError: features, units or frame rate do not fit.
    """

    def __init__(self, config: TrainingConfig, source: Source, dataset: LeRobotFolder) -> None:
        embodiment = load_embodiment(source.embodiment)
        layout = layout_for(embodiment, source.cameras)
        names, units = source.names or Names(), source.units or {}
        unused = [pattern for pattern in units if not any(fnmatch(channel, pattern) for channel in layout.state + layout.channels)]
        if unused:
            channels = ", ".join(dict.fromkeys(layout.state + layout.channels))
            raise ConfigError(f"sources: units: {', '.join(unused)} is none of the channels of {embodiment.name}: {channels}")
        self._config, self._dataset, self._layout = config, dataset, layout
        self._state, self._action = names.state, names.action
        self._states = Channels(dataset, names.state, layout.state, names.state_channels, units, embodiment)
        self._actions = Channels(dataset, names.action, layout.channels, names.action_channels, units, embodiment)
        self._cameras = [self._camera(names.cameras.get(name, f"observation.images.{name}")) for name in source.cameras]
        self._stride = self._steps()

    def _camera(self, feature: str) -> str:
        found = self._dataset.feature(feature).get("dtype")
        if found != "video":
            videos = [name for name, value in self._dataset.features.items() if value.get("dtype") == "video"]
            raise DataError(
                f"{self._dataset.folder / INFO}: '{feature}' is {found}, expected video; videos: {', '.join(videos) or '(none)'}"
            )
        return feature

    def _steps(self) -> int:
        """How many of the dataset's frames one policy step is."""
        fps, dt_s = self._dataset.fps, self._config.dt_s
        steps = round(fps * dt_s)
        if steps < 1 or abs(fps * dt_s - steps) > 1e-3:
            raise DataError(
                f"{self._dataset.folder / INFO}: {fps:g} fps is {fps * dt_s:.4g} frames for each step of dt_s = {dt_s:g} s, expected a "
                f"whole number: set dt_s to a multiple of {1 / fps:.4g}, or export at a multiple of {1 / dt_s:.4g} fps"
            )
        return steps

    def read(self, episode: dict) -> Episode:
        """Reads one episode at the policy's rate. Raises DataError."""
        rows = self._dataset.rows(episode, self._state, self._action)
        steps = np.arange(0, len(rows.state), self._stride)
        state = self._plausible(rows, self._layout.state, self._states.convert(rows.state))
        action = self._plausible(rows, self._layout.channels, self._actions.convert(rows.action))
        ahead = steps[:, None] + self._stride * np.arange(self._config.horizon)
        return Episode(
            frames=self._frames(episode, rows.timestamp[steps]),
            state=state[steps],
            targets=action[np.minimum(ahead, len(action) - 1)],  # the last one is repeated
            objects=np.full((len(steps), len(OBJECTS), 3), np.nan),  # a dataset does not say where they are
            stage=np.full(len(steps), BEFORE_GRASP, np.uint8),
            roles=np.zeros((len(steps), 2), np.int64),
            instruction=rows.instruction,
            seed=rows.index,
            success=True,
        )

    def _plausible(self, rows: Rows, channels: tuple[str, ...], values: np.ndarray) -> np.ndarray:
        for channel, column in zip(channels, values.T, strict=True):
            limit = 1.0 if split(channel)[1] in GRIPPERS else IMPLAUSIBLE
            if np.abs(column).max() > limit:
                raise DataError(
                    f"{self._dataset.folder}: episode {rows.index}: {channel} reaches {np.abs(column).max():.4g}, expected m or rad below "
                    f"{limit:g}: set units: of the source, such as {{{channel}: {'mm' if limit == 1.0 else 'deg'}}}"
                )
        return values

    def _frames(self, episode: dict, timestamps: np.ndarray) -> np.ndarray:
        """uint8 [T, cameras, H, W, 3] as the policy sees them."""
        width, height = self._config.image["width"], self._config.image["height"]
        out = np.empty((len(timestamps), len(self._cameras), height, width, 3), np.uint8)
        for camera, feature in enumerate(self._cameras):
            for step, frame in enumerate(self._dataset.frames(episode, feature, timestamps)):
                try:
                    out[step, camera] = shrink(frame, width, height)
                except DataError as error:
                    raise DataError(f"{self._dataset.folder}: {feature}: {error}") from error
        return out
