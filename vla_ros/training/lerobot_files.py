"""Reads a LeRobot v3.0 dataset: JSON and parquet with its rows, and mp4 files that hold the frames of several episodes each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow
from pyarrow import compute, parquet

from vla_ros.core.errors import DataError, did_you_mean

VERSION = "v3.0"
INFO, TASKS, EPISODES = "meta/info.json", "meta/tasks.parquet", "meta/episodes"
INFO_KINDS = {"fps": (int, float), "features": dict, "total_episodes": int, "data_path": str, "video_path": str}
EPISODE_KEYS = ("episode_index", "length", "data/chunk_index", "data/file_index")
DELETE = "delete the episode (lerobot-edit-dataset)"
FRAME_TOLERANCE = 0.25  # of a frame's time: what is farther away is another frame


@dataclass(frozen=True)
class Rows:
    """One episode: state [N, S] and action [N, A] at the dataset's rate, `timestamp` [N] (s, from 0), `instruction`."""

    index: int
    state: np.ndarray
    action: np.ndarray
    timestamp: np.ndarray
    instruction: str


class LeRobotFolder:
    """A dataset on disk.

    Raises:
        DataError: a file is missing or broken, another version of the format, or fewer episodes than it says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = self._read_info()
        self.fps = float(self.info["fps"])
        self.features: dict[str, dict] = self.info["features"]
        self._tasks = self._read_tasks()
        self.episodes = self._read_episodes()
        self._data: tuple[Path | None, pyarrow.Table | None] = (None, None)

    def _read_info(self) -> dict:
        path = self.folder / INFO
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}): dataset: names the folder of a LeRobot {VERSION} dataset") from error
        version = info.get("codebase_version") if isinstance(info, dict) else None
        if version != VERSION:
            raise DataError(f"{path}: codebase_version {version!r}, expected {VERSION!r}: convert the dataset with LeRobot")
        wrong = [key for key, kind in INFO_KINDS.items() if not isinstance(info.get(key), kind)]
        if wrong or not info["fps"] > 0:
            key = wrong[0] if wrong else "fps"
            raise DataError(f"{path}: {key} is {info.get(key)!r:.80}: restore the file (a dataset without videos has no video_path)")
        return info

    def _table(self, path: Path, columns: list[str] | None = None) -> pyarrow.Table:
        try:
            table = parquet.read_table(path, columns=columns, partitioning=None)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(
                f"{path}: cannot be read ({str(error).splitlines()[0]}): copy the file again from where it was recorded"
            ) from error
        missing = [name for name in columns or () if name not in table.column_names]
        if missing:
            raise DataError(f"{path}: no column {', '.join(missing)}; there are {', '.join(table.column_names)}")
        return table

    def _read_tasks(self) -> dict[int, str]:
        table = self._table(self.folder / TASKS)
        sentence = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
        if sentence is None or "task_index" not in table.column_names:
            raise DataError(f"{self.folder / TASKS}: columns {', '.join(table.column_names)}, expected task_index and task")
        return dict(zip(table["task_index"].to_pylist(), table[sentence].to_pylist(), strict=True))

    def _read_episodes(self) -> list[dict]:
        """What `meta/episodes` says of each episode, without its statistics."""
        paths = sorted((self.folder / EPISODES).glob("*/*.parquet"))
        rows = []
        for path in paths:
            table = self._table(path)
            missing = [name for name in EPISODE_KEYS if name not in table.column_names]
            if missing:
                raise DataError(f"{path}: no column {', '.join(missing)}; there are {', '.join(table.column_names)}")
            rows += table.select([name for name in table.column_names if not name.startswith("stats/")]).to_pylist()
        if len(rows) != self.info["total_episodes"] or not rows:
            raise DataError(
                f"{self.folder / EPISODES}: {len(rows)} episodes in {len(paths)} files, {INFO} says {self.info['total_episodes']}: "
                "a file is missing, or the recording was not finished"
            )
        return sorted(rows, key=lambda row: row["episode_index"])

    def columns(self, feature: str) -> list[str]:
        """Names of a feature's numbers, their indices where it has none. Raises DataError: no such feature."""
        names = self.feature(feature).get("names")
        if isinstance(names, dict):  # such as {"motors": [...]}
            names = [name for group in names.values() for name in group]
        return [str(name) for name in names or range(int(np.prod(self.features[feature]["shape"])))]

    def feature(self, name: str) -> dict:
        if name not in self.features:
            raise DataError(f"{self.folder / INFO}: no feature '{name}'; {did_you_mean(name, self.features)}: set names: of the source")
        return self.features[name]

    def rows(self, episode: dict, state: str, action: str) -> Rows:
        """Reads one episode's numbers. Raises DataError: rows are missing, out of step or not finite."""
        index = episode["episode_index"]
        path = self._path("data_path", chunk_index=episode["data/chunk_index"], file_index=episode["data/file_index"])
        if self._data[0] != path:  # several episodes share it
            self._data = path, self._table(path, [state, action, "timestamp", "episode_index", "task_index"])
        table = self._data[1].filter(compute.equal(self._data[1]["episode_index"], index))
        if table.num_rows != episode["length"] or not table.num_rows:
            raise DataError(
                f"{path}: episode {index}: {table.num_rows} rows, {EPISODES} says {episode['length']}: a file is cut or mixed up"
            )
        values = {name: np.array(table[name].to_pylist(), dtype=np.float64) for name in (state, action, "timestamp")}
        for name, value in values.items():
            wrong = np.flatnonzero(~np.isfinite(value.reshape(len(value), -1)).all(axis=1))
            if len(wrong):
                raise DataError(f"{path}: episode {index}: {name} of frame {wrong[0]} is {value[wrong[0]]}: {DELETE}")
        late = np.abs(values["timestamp"] - np.arange(table.num_rows) / self.fps) * self.fps
        if late.max() > FRAME_TOLERANCE:
            frame, found = int(late.argmax()), values["timestamp"][late.argmax()]
            raise DataError(
                f"{path}: episode {index}: frame {frame} is at {found:.4f} s, {self.fps:g} fps puts it at {frame / self.fps:.4f}: {DELETE}"
            )
        task = table["task_index"][0].as_py()
        if task not in self._tasks:
            raise DataError(f"{path}: episode {index}: task_index {task}; {TASKS} has {sorted(self._tasks)}")
        state_rows, action_rows = (values[name].reshape(table.num_rows, -1) for name in (state, action))
        return Rows(index, state_rows, action_rows, values["timestamp"], self._tasks[task])

    def _path(self, key: str, **place: object) -> Path:
        try:
            return self.folder / self.info[key].format(**place)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise DataError(f"{self.folder / INFO}: {key} '{self.info[key]}' is no pattern of {', '.join(place)} ({error!r})") from error

    def frames(self, episode: dict, feature: str, timestamps: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the RGB frames uint8 [H, W, 3] of one camera at ascending `timestamps` (s in the episode). Raises DataError."""
        index, key = episode["episode_index"], f"videos/{feature}"
        if f"{key}/from_timestamp" not in episode:
            raise DataError(f"{self.folder / EPISODES}: episode {index} has no {key}/from_timestamp: restore the file")
        place = {name: episode[f"{key}/{name}"] for name in ("chunk_index", "file_index")}
        path = self._path("video_path", video_key=feature, **place)
        count, start = 0, float(episode[f"{key}/from_timestamp"])
        try:
            for frame in _decode(path, start + timestamps, FRAME_TOLERANCE / self.fps):
                yield frame
                count += 1
        except (OSError, av.FFmpegError) as error:
            raise DataError(
                f"{path}: episode {index}: cannot be decoded ({error}): copy the file again from where it was recorded"
            ) from error
        if count < len(timestamps):
            raise DataError(
                f"{path}: episode {index}: no frame at {start + timestamps[count]:.3f} s (frame {count} of {len(timestamps)}): "
                f"the video is cut or has another frame rate; copy it again, or {DELETE}"
            )


def _decode(path: Path, times: np.ndarray, tolerance_s: float) -> Iterator[np.ndarray]:
    """Yields the frame at each of the ascending `times`; ends at the first that is not there."""
    with av.open(str(path)) as container:
        if not container.streams.video:  # an mp4 that was cut
            return
        stream = container.streams.video[0]
        container.seek(int(max(0.0, times[0] - tolerance_s) / stream.time_base), stream=stream)
        wanted = 0
        for frame in container.decode(stream):
            if frame.time < times[wanted] - tolerance_s:
                continue
            if frame.time > times[wanted] + tolerance_s:
                return
            yield frame.to_ndarray(format="rgb24")
            wanted += 1
            if wanted == len(times):
                return
