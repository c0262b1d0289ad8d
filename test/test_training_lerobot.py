"""LeRobot v3.0 datasets as a source of demonstrations: the right frames, the right numbers, and every mistake named."""

import dataclasses
import json

import lerobot_dataset as written
import numpy as np
import pytest
import torch

from vla_ros.core.errors import ConfigError, DataError
from vla_ros.core.yaml import build, read
from vla_ros.training import lerobot_files
from vla_ros.training.config import load_training
from vla_ros.training.demonstrations import episode_seeds, load_episode
from vla_ros.training.lerobot_import import import_dataset
from vla_ros.training.sources import Names, Source


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def dataset(tmp_path):
    return written.write_dataset(tmp_path / "set")


def source_of(dataset, **changes):
    return dataclasses.replace(Source("franka", written.CAMERAS, dataset=str(dataset)), **changes)


def configuration(source, **changes):
    base = load_training("robovlms_franka", steps=12)
    network = dict(base.network, hidden_size=32, text_width=16, keypoints=4)
    optimisation = dataclasses.replace(base.optimisation, batch=4, warm_up_steps=2, save_every_steps=6, average=0.9)
    check = dataclasses.replace(base.check, every_steps=4)
    values = {"image": {"width": 48, "height": 36}, "horizon": 4, "network": network, "optimisation": optimisation, "check": check}
    return dataclasses.replace(base, sources=(source,), **values | changes)


def imported(dataset, tmp_path, changes=None, **source):
    entry = source_of(dataset, **source)
    folder = import_dataset(configuration(entry, **changes or {}), entry, tmp_path / "data")
    return folder, [load_episode(folder, seed) for seed in episode_seeds(folder)]


def test_frames_numbers_and_sentences_arrive_where_they_belong(dataset, tmp_path):
    folder, episodes = imported(dataset, tmp_path)
    assert folder.parent == tmp_path / "data" and [len(episode) for episode in episodes] == list(written.LENGTHS)
    for index, episode in enumerate(episodes):
        length = len(episode)
        assert episode.instruction == written.TASKS[written.TASK_OF[index]]
        expected = [[written.level(index, i, camera) for camera in written.CAMERAS] for i in range(length)]
        assert episode.frames.shape == (length, 2, 36, 48, 3)
        assert np.abs(episode.frames.mean(axis=(2, 3, 4)) - expected).max() < 2  # the next frame is 8 away, the other camera's 4
        np.testing.assert_allclose(episode.state, written.state_of(index, length), atol=1e-6)
        action = written.action_of(index, length)
        for i in range(length):
            np.testing.assert_allclose(episode.targets[i], action[np.minimum(i + np.arange(4), length - 1)], atol=1e-6)
        assert np.isnan(episode.objects).all() and not episode.stage.any()


def test_a_second_run_reads_nothing_and_a_change_makes_another_folder(dataset, tmp_path, monkeypatch):
    folder, _ = imported(dataset, tmp_path)
    (folder / "1.steps.npz").unlink()
    calls = []
    frames = lerobot_files.LeRobotFolder.frames

    def counted(self, episode, *rest):
        calls.append(episode["episode_index"])
        return frames(self, episode, *rest)

    monkeypatch.setattr(lerobot_files.LeRobotFolder, "frames", counted)
    assert imported(dataset, tmp_path)[0] == folder and calls == [1, 1]
    assert imported(dataset, tmp_path, {"horizon": 5})[0] != folder
    info = dataset / "meta" / "info.json"
    info.write_text(info.read_text() + "\n")
    assert imported(dataset, tmp_path)[0] != folder


def test_a_faster_dataset_is_read_at_whole_steps(tmp_path):
    folder = written.write_dataset(tmp_path / "fast", fps=20)
    _, episodes = imported(folder, tmp_path)
    for index, episode in enumerate(episodes):
        length = written.LENGTHS[index]
        steps = np.arange(0, length, 2)
        levels = [written.level(index, i, "wrist") for i in steps]
        assert np.abs(episode.frames[:, 1].mean(axis=(1, 2, 3)) - levels).max() < 2
        action = written.action_of(index, length)
        np.testing.assert_allclose(episode.targets[0], action[np.minimum(2 * np.arange(4), length - 1)], atol=1e-6)


def test_a_frame_rate_that_does_not_fit_is_refused_with_the_numbers(tmp_path):
    with pytest.raises(DataError, match=r"15 fps is 1\.5 frames.*dt_s = 0\.1.*multiple of 0\.06667.*multiple of 10 fps"):
        imported(written.write_dataset(tmp_path / "set", fps=15), tmp_path)


def test_foreign_names_and_units(tmp_path):
    dataset = written.write_dataset(tmp_path / "set", names=False)
    columns = {name: i for i, name in enumerate(written.STATE)}
    names = Names({"front": "observation.images.wrist"}, state_channels=columns, action_channels=dict(columns | {"gripper.closed": 6}))
    del names.action_channels["gripper.width"]
    units = {"tcp.r*": "deg", "tcp.z": "cm", "gripper.width": "open_share", "gripper.closed": "open_share"}
    _, episodes = imported(dataset, tmp_path, names=names, units=units, cameras=("front",))
    state = written.state_of(0, written.LENGTHS[0])
    np.testing.assert_allclose(episodes[0].state[:, 3], np.deg2rad(state[:, 3]), rtol=1e-6)
    np.testing.assert_allclose(episodes[0].state[:, 2], state[:, 2] / 100, rtol=1e-6)
    np.testing.assert_allclose(episodes[0].state[:, 6], 0.08 * state[:, 6], rtol=1e-6)
    assert (episodes[0].targets[:, 0, 6] == (np.arange(6) < 3)).all()
    assert np.abs(episodes[0].frames[:, 0].mean(axis=(1, 2, 3)) - [written.level(0, i, "wrist") for i in range(6)]).max() < 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"names": Names({"front": "observation.images.frnt"})}, r"info\.json: no feature .*frnt'; did you mean '.*images.front'"),
        ({"names": Names({"front": "action"})}, r"'action' is float32, expected video; videos: observation.images.front, .*wrist"),
        ({"names": Names(state="state")}, "no feature 'state'"),
        ({"names": Names(state_channels={"tcp.x": "tcp_x"})}, r"observation.state has no 'tcp_x' for tcp.x; did you mean 'tcp.x'"),
        ({"names": Names(action_channels={"elbow": "x"})}, "names for elbow; franka has tcp.x"),
        ({"units": {"tcp.x": "deg"}}, r"tcp.x: 'deg'; .*valid: cm, m, mm"),
        ({"embodiment": "kinova", "units": {"*.velocity": "deg"}}, r"\*\.velocity is none of the channels of kinova"),
        ({"embodiment": "aloha", "cameras": ("front",)}, "for left.waist.position"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_what_is_there(dataset, tmp_path, source, message):
    with pytest.raises((DataError, ConfigError), match=message):
        imported(dataset, tmp_path, **source)


def test_other_versions_and_missing_files(dataset, tmp_path):
    old = written.write_dataset(tmp_path / "old", version="v2.1")
    with pytest.raises(DataError, match=r"codebase_version 'v2\.1', expected 'v3\.0'"):
        imported(old, tmp_path)
    with pytest.raises(DataError, match=r"nowhere.*info\.json: cannot be read"):
        imported(tmp_path / "nowhere", tmp_path)
    for path in sorted(path for path in dataset.rglob("*") if path.is_file() and path.name != "stats.json"):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(DataError, match=rf"{path.name}|meta/episodes: 0 episodes"):
            imported(dataset, tmp_path)
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=path.name):
            imported(dataset, tmp_path)
        path.write_bytes(content)


def test_wrong_rows_are_named(tmp_path):
    with pytest.raises(DataError, match=r"episode 1: observation\.state of frame 4 is .*nan"):
        imported(written.write_dataset(tmp_path / "nan", bad_row=(1, 4)), tmp_path)
    short = written.write_dataset(tmp_path / "short")
    longer = written.write_dataset(tmp_path / "longer", lengths=(6, 10, 5))
    meta = "meta/episodes/chunk-000/file-000.parquet"
    (short / meta).write_bytes((longer / meta).read_bytes())
    with pytest.raises(DataError, match=r"file-000\.parquet: episode 1: 9 rows, meta/episodes says 10"):
        imported(short, tmp_path)
    info = json.loads((longer / "meta" / "info.json").read_text()) | {"total_episodes": 4}
    (longer / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"3 episodes in 1 files, meta/info\.json says 4"):
        imported(longer, tmp_path)
    video = "videos/observation.images.front/chunk-000/file-000.mp4"
    cut = written.write_dataset(tmp_path / "cut")
    fewer = written.write_dataset(tmp_path / "fewer", lengths=(6, 4, 5))
    (cut / video).write_bytes((fewer / video).read_bytes())
    with pytest.raises(DataError, match=r"file-000\.mp4: episode 2: no frame at 1\.500 s \(frame 0 of 5\)"):
        imported(cut, tmp_path)


def test_numbers_in_a_foreign_unit_are_not_taken_for_metres(tmp_path, monkeypatch):
    metres = written.state_of
    monkeypatch.setattr(written, "state_of", lambda episode, length: metres(episode, length) * np.float32([1000] * 3 + [1] * 4))
    dataset = written.write_dataset(tmp_path / "set")
    with pytest.raises(DataError, match=r"episode 0: tcp\.x reaches 505, expected m .*units"):
        imported(dataset, tmp_path)
    _, episodes = imported(dataset, tmp_path, units={"tcp.[xyz]": "mm"})
    np.testing.assert_allclose(episodes[2].state, metres(2, written.LENGTHS[2]), atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fps": "ten"}, r"info\.json: fps is 'ten'"),
        ({"fps": 0}, r"info\.json: fps is 0"),
        ({"video_path": None}, r"info\.json: video_path is None: .*without videos"),
        ({"data_path": "data/{file}.parquet"}, r"info\.json: data_path 'data/\{file\}\.parquet' is no pattern of chunk_index, file_index"),
        ({"features": []}, r"info\.json: features is \[\]"),
    ],
)
def test_a_wrong_description_is_named(dataset, tmp_path, values, message):
    info = dataset / "meta" / "info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | values))
    with pytest.raises(DataError, match=message):
        imported(dataset, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{embodiment: franka, cameras: [front], dataset: d, episodes: 3}", "episodes: only for a simulator"),
        ("{embodiment: franka, cameras: [front], dataset: d, validation_share: 1.0}", "validation_share: 1.0"),
        ("{embodiment: franka, cameras: [front], dataset: d, names: {cameras: {side: x}}}", "'side'"),
        ("{embodiment: franka, cameras: [front]}", "simulator: the key is missing"),
        (
            "{embodiment: franka, cameras: [front], simulator: a:B, episodes: 1, first_seed: 0, kinds: {place: 1.0}, processes: 1,"
            " units: {tcp.x: mm}}",
            "units: only for a dataset",
        ),
    ],
)
def test_a_source_is_a_simulator_or_a_dataset(tmp_path, text, message):
    path = tmp_path / "source.yaml"
    path.write_text(f"source: {text}\n")
    with pytest.raises(ConfigError, match=rf"source\.yaml:1: .*{message}"):
        build(read(path).value["source"], Source, "source")


def test_the_example_configuration_reads_a_dataset(dataset, tmp_path):
    config = load_training("robovlms_lerobot")
    source = dataclasses.replace(config.sources[0], dataset=str(dataset))
    episode = load_episode(import_dataset(config, source, tmp_path / "data"), 1)
    assert episode.frames.shape == (9, 2, 96, 128, 3) and episode.targets.shape == (9, 16, 7)
    np.testing.assert_allclose(episode.state, written.state_of(1, 9), atol=1e-6)
