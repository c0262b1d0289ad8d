"""RoboVLMs: shapes, frames, determinism, that it looks and reads, and strict checkpoints."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import PolicyError
from vla_ros.core.types import Frame, Observation, Proprioception
from vla_ros.policies import load_policy
from vla_ros.policies.checkpoint import CheckpointConfig, write_checkpoint
from vla_ros.policies.normalization import Quantiles
from vla_ros.policies.poses import SMALLEST_POSE_RANGE, absolute_poses, relative_poses, state_features
from vla_ros.policies.robovlms import ACTION_CHANNELS, STATE_CHANNELS, make_network
from vla_ros.policies.text import build_tokenizer

SENTENCE = "put the red block on the plate"
NETWORK = {"backbone": "convolutional", "head": "mlp", "text_length": 8, "text_width": 16, "hidden_size": 32, "blocks": 1, "keypoints": 4}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path):
    """A small untrained checkpoint."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer([SENTENCE, "green"])
    statistics = {
        "state": {"low": [-1.0] * 10, "high": [1.0] * 10},
        "pose": {"low": [[-0.1] * 3 + [-0.4] * 3] * 16, "high": [[0.1] * 3 + [0.4] * 3] * 16},
    }
    network = dict(NETWORK, vocabulary=tokenizer.get_vocab_size())
    config = CheckpointConfig(
        "robovlms",
        "tiny",
        "franka",
        ("front", "wrist"),
        {"width": 64, "height": 48},
        STATE_CHANNELS,
        ACTION_CHANNELS,
        16,
        0.1,
        network,
        statistics,
    )
    write_checkpoint(tmp_path / "checkpoint", config, make_network(config, "test").state_dict(), tokenizer)
    return tmp_path / "checkpoint"


def load(folder):
    return load_policy(str(folder), load_embodiment("franka"))


def observe(seed=0, sentence=SENTENCE, cameras=("front", "wrist"), pose=(0.5, 0.1, 0.2, 3.1, 0.1, 0.0), size=(640, 480)):
    rng = np.random.default_rng(seed)
    frames = {name: Frame(7, rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8), 0, name) for name in cameras}
    return Observation(123_456_789, frames, Proprioception(7, STATE_CHANNELS, np.array([*pose, 0.08])), sentence)


def edit(folder, change):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_chunk_has_the_stamp_channels_and_shape_of_the_spec(folder):
    policy = load(folder)
    first, second = policy.infer(observe()).chunk, policy.infer(observe()).chunk
    assert first.stamp_ns == 123_456_789 and first.dt_s == 0.1
    assert first.channels == policy.spec.channels == ACTION_CHANNELS
    assert first.data.shape == (policy.spec.horizon, 7)
    assert set(first.data[:, 6]) <= {0.0, 1.0}
    assert (first.sequence, second.sequence) == (0, 1)
    assert np.array_equal(first.data, second.data)


def test_targets_are_absolute_and_within_the_quantiles_of_the_measured_pose(folder):
    data = load(folder).infer(observe()).chunk.data
    motion = relative_poses(data[:, :6], np.array([0.5, 0.1, 0.2, 3.1, 0.1, 0.0]))
    assert np.abs(motion[:, :3]).max() <= 0.1 + 1e-9 and np.abs(motion[:, 3:]).max() <= 0.4 + 1e-9


def test_image_instruction_and_state_all_change_the_chunk(folder):
    policy = load(folder)
    base = policy.infer(observe()).chunk.data
    assert not np.allclose(base, policy.infer(observe(seed=1)).chunk.data)
    assert not np.allclose(base, policy.infer(observe(sentence="put the green block on the plate")).chunk.data)
    moved = policy.infer(observe(pose=(0.6, 0.1, 0.2, 3.1, 0.1, 0.0))).chunk.data
    assert not np.allclose(base[:, 0] + 0.1, moved[:, 0])


def test_missing_camera_and_stretched_frame_are_named(folder):
    policy = load(folder)
    with pytest.raises(PolicyError, match="wrist"):
        policy.infer(observe(cameras=("front",)))
    with pytest.raises(PolicyError, match="640x640"):
        policy.infer(observe(size=(640, 640)))


def test_relative_poses_are_small_across_the_wrap_at_pi_and_invert():
    current = np.array([0.5, 0.0, 0.2, np.pi - 0.01, 0.0, 0.0])
    target = np.array([[0.5, 0.0, 0.2, -np.pi + 0.01, 0.0, 0.0], [0.4, 0.1, 0.3, 2.9, 0.6, 0.1]])
    motion = relative_poses(target, current)
    assert np.abs(motion[0, 3:]).max() == pytest.approx(0.02, abs=1e-9)
    back = absolute_poses(motion, current)
    assert np.allclose(relative_poses(back, target[1]), relative_poses(target, target[1]), atol=1e-9)


def test_state_features_do_not_jump_at_pi():
    near, beyond = np.array([0, 0, 0, np.pi - 1e-6, 0, 0]), np.array([0, 0, 0, -np.pi + 1e-6, 0, 0])
    assert np.allclose(state_features(near, np.array(0.04)), state_features(beyond, np.array(0.04)), atol=1e-5)


def test_quantiles_map_clip_and_widen():
    samples = np.random.default_rng(0).normal(size=(5000, 2, 6))
    samples[..., 5] = 0
    statistics = Quantiles.measure(samples, SMALLEST_POSE_RANGE)
    assert statistics.low.shape == (2, 6)
    assert np.allclose(statistics.high[:, 5] - statistics.low[:, 5], SMALLEST_POSE_RANGE[5])
    inside = np.clip(samples, statistics.low, statistics.high)
    assert np.allclose(statistics.unnormalize(statistics.normalize(inside)), inside)
    assert np.abs(statistics.normalize(samples * 100)).max() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(embodiment="aloha"), "aloha"),
        (lambda c: c.update(cameras=["front", "left_wrist"]), "left_wrist"),
        (lambda c: c.update(channels=c["channels"][::-1]), "channels"),
        (lambda c: c.update(state=["tcp.x"]), "state"),
        (lambda c: c.update(system="robovlm"), "did you mean 'robovlms'"),
        (lambda c: c.update(horizn=3), "did you mean 'horizon'"),
        (lambda c: c.pop("dt_s"), "dt_s"),
        (lambda c: c["normalization"].pop("pose"), "normalization.pose"),
        (lambda c: c["normalization"].update(state={"low": [0] * 10, "high": [0] * 10}), "high <= low"),
        (lambda c: c["normalization"].update(state={"low": [0], "high": [1]}), "shape"),
        (lambda c: c["network"].update(backbone="kosmos"), "convolutional"),
        (lambda c: c["network"].update(hidden_size=64), "expected"),
        (lambda c: c["network"].update(layers=64), "layers"),
    ],
)
def test_wrong_config_is_refused_with_the_file_and_the_value(folder, change, message):
    edit(folder, change)
    with pytest.raises(PolicyError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_missing_and_foreign_weights_are_refused(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    lrn = tensors.pop("backbone.lrn")
    save_file(tensors, path)
    with pytest.raises(PolicyError, match=r"backbone\.lrn"):
        load(folder)
    save_file(tensors | {"backbone.lrn": lrn, "backbone.extra": lrn.clone()}, path)
    with pytest.raises(PolicyError, match=r"backbone\.extra"):
        load(folder)
    save_file(tensors | {"backbone.lrn": lrn * torch.nan}, path)
    with pytest.raises(PolicyError, match="NaN"):
        load(folder)


def test_truncated_weights_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PolicyError, match="truncated"):
        load(folder)


def test_a_pickle_is_never_opened(folder):
    path = folder / "model.safetensors"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(PolicyError, match="pickle"):
        load(folder)
    path.rename(folder / "pytorch_model.bin")
    with pytest.raises(PolicyError, match=r"pytorch_model\.bin is a pickle"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_each_missing_or_broken_file_is_named(folder, name):
    (folder / name).write_text("{")
    with pytest.raises(PolicyError, match=name):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(PolicyError, match=name):
        load(folder)


def test_unknown_checkpoint_lists_what_there_is(folder):
    shutil.rmtree(folder)
    with pytest.raises(PolicyError, match=str(folder)):
        load(folder)
    with pytest.raises(PolicyError, match="did you mean 'robovlms_franka'"):
        load("robovlms_frank")
