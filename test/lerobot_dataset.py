"""Writes a small LeRobot v3.0 dataset exactly as the format says, with pyarrow and PyAV: two tasks, three episodes, two cameras.

Every frame is plain grey of the level `level(episode, frame, camera)`, every number says where it stands: `state_of`, `action_of`.
"""

import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
from pyarrow import parquet

TASKS = ("wipe the table", "pick up the red block and put it on the plate")
LENGTHS, TASK_OF = (6, 9, 5), (0, 1, 0)
os.environ.setdefault("SVT_LOG", "1")  # errors only
CAMERAS = ("front", "wrist")
# of each camera: the mp4 in which each episode lies
FILE_OF = {"front": (0, 0, 0), "wrist": (0, 0, 1)}
STATE = ("tcp.x", "tcp.y", "tcp.z", "tcp.rx", "tcp.ry", "tcp.rz", "gripper.width")
ACTION = (*STATE[:6], "gripper.closed")
FPS, WIDTH, HEIGHT = 10, 64, 48
PLACE = "chunk-{chunk_index:03d}/file-{file_index:03d}"


def level(episode, frame, camera):
    return 20 + 8 * (sum(LENGTHS[:episode]) + frame) + 4 * CAMERAS.index(camera)


def state_of(episode, length):
    rows = np.tile([0.5, 0.0, 0.3, 3.0, 0.0, 0.0, 0.08], (length, 1))
    rows[:, 0] += 0.001 * np.arange(length)
    rows[:, 1] += 0.1 * episode
    return rows.astype(np.float32)


def action_of(episode, length):
    rows = state_of(episode, length)
    rows[:, 2] = 0.2 + 0.01 * np.arange(length)
    rows[:, 6] = np.arange(length) >= 3
    return rows.astype(np.float32)


def write_dataset(folder: Path, fps=FPS, names=True, version="v3.0", lengths=LENGTHS, bad_row=None):
    """`bad_row`: (episode, frame) whose state becomes NaN."""
    features = _features(fps, names)
    rows, episodes, start = [], [], 0
    clock = {camera: [0.0, 0.0] for camera in CAMERAS}
    for episode, length in enumerate(lengths):
        state, action = state_of(episode, length), action_of(episode, length)
        if bad_row and bad_row[0] == episode:
            state[bad_row[1], 2] = np.nan
        rows += [(state[i], action[i], i / fps, i, episode, start + i, TASK_OF[episode]) for i in range(length)]
        entry = {
            "episode_index": episode, "tasks": [TASKS[TASK_OF[episode]]], "length": length, "data/chunk_index": 0, "data/file_index": 0,
            "dataset_from_index": start, "dataset_to_index": start + length, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
        }  # fmt: skip
        for camera in CAMERAS:
            key, file = f"videos/observation.images.{camera}", FILE_OF[camera][episode]
            begin = clock[camera][file]
            clock[camera][file] = begin + length / fps
            entry |= {f"{key}/chunk_index": 0, f"{key}/file_index": file, f"{key}/from_timestamp": begin}
            entry |= {f"{key}/to_timestamp": clock[camera][file]}
        for name, value in (("observation.state", state), ("action", action)):
            entry |= {f"stats/{name}/{kind}": number for kind, number in _statistics(value).items()}
        episodes.append(entry)
        start += length
    info = {
        "codebase_version": version, "robot_type": "franka", "total_episodes": len(lengths), "total_frames": start,
        "total_tasks": len(TASKS), "chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"}, "data_path": f"data/{PLACE}.parquet", "video_path": f"videos/{{video_key}}/{PLACE}.mp4",
        "features": features,
    }  # fmt: skip
    _write_tables(folder, info, rows, episodes)
    for camera in CAMERAS:
        for file in sorted(set(FILE_OF[camera])):
            levels = [level(e, i, camera) for e, n in enumerate(lengths) if FILE_OF[camera][e] == file for i in range(n)]
            _write_video(
                folder / info["video_path"].format(video_key=f"observation.images.{camera}", chunk_index=0, file_index=file), levels, fps
            )
    return folder


def _features(fps, names):
    video = {"video.height": HEIGHT, "video.width": WIDTH, "video.codec": "av1", "video.pix_fmt": "yuv420p", "video.fps": fps}
    video |= {"video.channels": 3, "video.is_depth_map": False, "has_audio": False}
    cameras = {
        f"observation.images.{camera}": {
            "dtype": "video",
            "shape": [HEIGHT, WIDTH, 3],
            "names": ["height", "width", "channels"],
            "info": video,
        }
        for camera in CAMERAS
    }
    numbers = {
        name: {"dtype": "float32", "shape": [7], "names": list(columns) if names else None}
        for name, columns in (("observation.state", STATE), ("action", ACTION))
    }
    indices = {name: {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_index", "episode_index", "index", "task_index")}
    return numbers | cameras | {"timestamp": {"dtype": "float32", "shape": [1], "names": None}} | indices


def _statistics(values):
    marks = {f"q{q:02d}": np.quantile(values, q / 100, axis=0) for q in (1, 10, 50, 90, 99)}
    all_of = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0), **marks}
    return {name: np.asarray(value, float).tolist() for name, value in all_of.items()} | {"count": [len(values)]}


def _write_tables(folder, info, rows, episodes):
    data = folder / info["data_path"].format(chunk_index=0, file_index=0)
    meta = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    for path in (data, meta):
        path.parent.mkdir(parents=True)
    columns = list(zip(*rows, strict=True))
    vector = pa.list_(pa.float32(), 7)
    arrays = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(columns[i]), pa.float32()), type=vector)
        for i, name in enumerate(("observation.state", "action"))
    }
    arrays["timestamp"] = pa.array(columns[2], pa.float32())
    for i, name in enumerate(("frame_index", "episode_index", "index", "task_index"), 3):
        arrays[name] = pa.array(columns[i], pa.int64())
    of = {
        name: {"feature": {"dtype": "float32", "_type": "Value"}, "length": 7, "_type": "List"} for name in ("observation.state", "action")
    }
    of |= {"timestamp": {"dtype": "float32", "_type": "Value"}}
    of |= {name: {"dtype": "int64", "_type": "Value"} for name in ("frame_index", "episode_index", "index", "task_index")}
    parquet.write_table(pa.table(arrays).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": of}})}), data)
    parquet.write_table(pa.Table.from_pylist(episodes), meta)
    pandas = {"index_columns": ["task"], "column_indexes": [], "pandas_version": "2.2.0", "columns": [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None},
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None}]}  # fmt: skip
    tasks = pa.table({"task_index": pa.array(range(len(TASKS)), pa.int64()), "task": list(TASKS)})
    parquet.write_table(tasks.replace_schema_metadata({"pandas": json.dumps(pandas)}), folder / "meta" / "tasks.parquet")
    (folder / "meta" / "info.json").write_text(json.dumps(info, indent=4))
    image = {name: [[[value]]] * 3 for name, value in (("min", 0.0), ("max", 1.0), ("mean", 0.5), ("std", 0.2))} | {"count": [len(rows)]}
    stats = {name: _statistics(np.stack(columns[i])) for i, name in enumerate(("observation.state", "action"))}
    stats |= {f"observation.images.{camera}": image for camera in CAMERAS}
    (folder / "meta" / "stats.json").write_text(json.dumps(stats, indent=4))


def _write_video(path, levels, fps):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libsvtav1", rate=fps, options={"g": "2", "crf": "30", "preset": "12", "svtav1-params": "lp=1"})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = WIDTH, HEIGHT, "yuv420p", Fraction(1, fps)
        for index, grey in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), grey, np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
