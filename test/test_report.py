"""The report of a rollout, from made-up data: files are opened again and looked at."""

import json

import av
import cv2
import numpy as np
import pytest
import synthetic_rollout as synthetic

from vla_ros.cli import video
from vla_ros.cli.record import RolloutRecord
from vla_ros.cli.report import write_plots
from vla_ros.cli.rollout import write_report
from vla_ros.cli.video import write_video
from vla_ros.core.errors import DataError

DEMO_KEYS = {
    "success", "instruction", "seed", "duration_s", "chunks", "inference_ms", "observation_age_ms", "tick_late_ms", "boundary_jump_rad",
    "frames", "holds", "rejected",
}  # fmt: skip


def decoded(path):
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)], file.streams.video[0].average_rate


def test_json_has_the_keys_of_the_issue(tmp_path):
    write_report(synthetic.record(0.3), synthetic.outcome(), tmp_path, tmp_path / "copy" / "demo.json")
    content = json.loads((tmp_path / "copy" / "demo.json").read_text())
    assert set(content) >= DEMO_KEYS
    assert content["success"] is True
    assert set(content["inference_ms"]) == {"p50", "p99"}
    assert set(content["tick_late_ms"]) == {"p50", "p99", "max"}
    assert content["frames"]["wrist"] == {"published": 60, "received": 59, "lost": 1}
    assert json.loads((tmp_path / "rollout.json").read_text()) == content


def test_percentile_of_nothing_is_null(tmp_path):
    statistics = synthetic.STATISTICS | {"boundary_jump_rad": {"p50": float("nan"), "p99": float("nan")}}
    write_report(RolloutRecord(), synthetic.outcome("aborted", statistics=statistics), tmp_path)
    content = json.loads((tmp_path / "rollout.json").read_text(), parse_constant=pytest.fail)
    assert content["boundary_jump_rad"] == {"p50": None, "p99": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rollout.json"]


def test_missing_figure_is_named():
    statistics = {name: value for name, value in synthetic.STATISTICS.items() if name != "frames"}
    with pytest.raises(DataError, match="lacks frames"):
        synthetic.outcome(statistics=statistics).as_json()


@pytest.mark.parametrize(("word", "code"), [("success", 0), ("failure", 1), ("time_limit", 1), ("aborted", 2), ("canceled", 2)])
def test_exit_codes(word, code):
    assert synthetic.outcome(word).exit_code == code


def test_video_shows_both_cameras_and_moves(tmp_path):
    record = synthetic.record(2.0)
    write_video(record, synthetic.outcome(duration_s=2.0), tmp_path / "v.mp4")
    frames, rate = decoded(tmp_path / "v.mp4")
    assert rate == video.RATE_HZ
    assert len(frames) == int((2.0 + video.END_S) * video.RATE_HZ)
    assert frames[0].shape == (video.HEIGHT + video.CAPTION, 2 * video.WIDTH + video.GAP, 3)
    # A corner that the disc does not reach has the ground's colour: red on the left (front), blue on the right (wrist).
    left, right = frames[10][320, 20].astype(int), frames[10][320, 900].astype(int)
    assert left[0] > left[2] + 80
    assert right[2] > right[0] + 80
    difference = np.abs(frames[5][: video.HEIGHT].astype(int) - frames[25][: video.HEIGHT]).mean()
    assert difference > 1.0
    caption = frames[10][video.HEIGHT :]
    assert caption.max() > 200 and caption.std() > 10  # something bright is written on the dark ground


def test_video_ends_with_the_outcome(tmp_path):
    for word in ("success", "failure"):
        write_video(synthetic.record(0.5), synthetic.outcome(word, duration_s=0.5), tmp_path / f"{word}.mp4")
    corner = (slice(video.HEIGHT, video.HEIGHT + 34), slice(-160, None))
    good, bad = (decoded(tmp_path / f"{word}.mp4")[0][-1][corner].reshape(-1, 3).astype(int) for word in ("success", "failure"))
    assert (good[:, 1] - good[:, 0]).max() > 60  # green
    assert (bad[:, 0] - bad[:, 1]).max() > 60  # red


def test_one_camera_is_enough(tmp_path):
    record = synthetic.record(0.5)
    del record.frames["wrist"]
    write_video(record, synthetic.outcome(duration_s=0.5), tmp_path / "v.mp4")
    assert decoded(tmp_path / "v.mp4")[0][0].shape == (video.HEIGHT + video.CAPTION, video.WIDTH, 3)


def test_no_pictures_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no camera picture"):
        write_video(RolloutRecord(frames={"front": []}), synthetic.outcome(), tmp_path / "v.mp4")


def test_plot_is_readable_and_shows_the_data(tmp_path):
    write_plots(synthetic.record(), synthetic.outcome(), tmp_path / "full.png")
    bare = synthetic.record()
    bare.executed, bare.proprioception, bare.status = [], [], []
    bare.chunks, bare.chunk_arrival_ns = bare.chunks[:1], bare.chunk_arrival_ns[:1]
    write_plots(bare, synthetic.outcome(), tmp_path / "bare.png")
    full, bare = (cv2.imread(str(tmp_path / name)) for name in ("full.png", "bare.png"))
    assert full.shape[0] > 600 and full.shape[1] > 1000

    def coloured(image):
        return np.count_nonzero(image.max(axis=2).astype(int) - image.min(axis=2) > 60)

    assert coloured(full) > coloured(bare) + 5000


def test_plot_of_joint_chunks(tmp_path):
    record = synthetic.record(1.0)
    names = tuple(f"fr3_joint{k}.position" for k in range(1, 8))
    record.chunks = [type(c)(c.stamp_ns, c.dt_s, names, c.data, c.sequence) for c in record.chunks]
    write_plots(record, synthetic.outcome(), tmp_path / "joints.png")
    assert cv2.imread(str(tmp_path / "joints.png")) is not None
