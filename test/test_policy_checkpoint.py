"""A checkpoint as a policy: shapes, frames, determinism, that it looks and reads, several robots, and strict loading."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import PolicyError
from vla_ros.core.types import Frame, Observation, Proprioception
from vla_ros.policies import load_policy
from vla_ros.policies.checkpoint import CheckpointConfig, copy_checkpoint, read_config, write_checkpoint
from vla_ros.policies.layout import layout_for
from vla_ros.policies.navigation import navigation_layout
from vla_ros.policies.network_policy import make_network
from vla_ros.policies.normalization import Quantiles
from vla_ros.policies.poses import absolute_poses, relative_poses, state_features
from vla_ros.policies.text import build_tokenizer
from vla_ros.policies.weights import Allowance

SENTENCE = "put the red block on the plate"
NETWORK = {
    "backbone": "convolutional", "formulation": "one_step_continuous", "head": "mlp",
    "text_length": 8, "text_width": 16, "hidden_size": 32, "blocks": 1, "keypoints": 4,
}  # fmt: skip
CAMERAS = {"franka": ("front", "wrist"), "aloha": ("front", "left_wrist", "right_wrist")}
STATISTICS = {
    "franka": {
        "state": {"low": [-1.0] * 10, "high": [1.0] * 10},
        "action": {"low": [[-0.1] * 3 + [-0.4] * 3 + [-1.0]] * 16, "high": [[0.1] * 3 + [0.4] * 3 + [1.0]] * 16},
    },
    "aloha": {
        "state": {"low": [-1.0] * 14, "high": [1.0] * 14},
        "action": {"low": [([-0.2] * 6 + [-1.0]) * 2] * 16, "high": [([0.2] * 6 + [1.0]) * 2] * 16},
    },
}
LAYOUTS = {name: layout_for(load_embodiment(name), cameras, STATISTICS[name]) for name, cameras in CAMERAS.items()}
STATE_CHANNELS, ACTION_CHANNELS = LAYOUTS["franka"].state, LAYOUTS["franka"].channels


GREEDY = """
import json, resource, sys
from pathlib import Path
from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import PolicyError
from vla_ros.policies import load_policy, network_policy

pages = lambda field: int(Path("/proc/self/statm").read_text().split()[field])
limit = pages(0) * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_policy(sys.argv[1], load_embodiment("franka"))
except PolicyError as error:
    print(json.dumps([str(error), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024]))
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path):
    """A small untrained checkpoint."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer([SENTENCE, "green"])
    network = dict(NETWORK, vocabulary=tokenizer.get_vocab_size())
    config = CheckpointConfig("robovlms", "tiny", LAYOUTS, {"width": 64, "height": 48}, 16, 0.1, network)
    write_checkpoint(tmp_path / "checkpoint", config, make_network(config, "test").state_dict(), tokenizer)
    return tmp_path / "checkpoint"


def load(folder, embodiment="franka"):
    return load_policy(str(folder), load_embodiment(embodiment))


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


def test_the_same_weights_drive_two_arms_in_their_joints(folder):
    policy = load(folder, "aloha")
    frames = {name: Frame(7, np.full((48, 64, 3), 90, np.uint8), 0, name) for name in CAMERAS["aloha"]}
    state = np.linspace(-0.3, 0.3, 14)
    chunk = policy.infer(Observation(5, frames, Proprioception(7, LAYOUTS["aloha"].state, state), SENTENCE)).chunk
    assert chunk.channels[0] == "left.waist.position" and chunk.channels[13] == "right.gripper.closed" and chunk.embodiment == "aloha"
    joints = [i for i in range(14) if i not in (6, 13)]
    assert np.abs(chunk.data[:, joints] - state[joints]).max() <= 0.2 + 1e-9
    assert set(chunk.data[:, [6, 13]].flat) <= {0.0, 1.0}


def test_a_batch_is_answered_like_its_observations(folder):
    policy = load(folder)
    one, two = observe(), observe(seed=1)
    batch = [inference.chunk.data for inference in policy.infer_batch([one, two])]
    assert np.allclose(batch[0], policy.infer(one).chunk.data, atol=1e-6) and np.allclose(batch[1], policy.infer(two).chunk.data, atol=1e-6)


@pytest.mark.parametrize("name", CAMERAS)
def test_a_layout_inverts_what_it_makes_relative(name):
    layout, rng = LAYOUTS[name], np.random.default_rng(0)
    width = len(layout.channels)
    state, targets = rng.uniform(-1, 1, (5, width)), rng.uniform(-1, 1, (5, 16, width))
    targets[..., layout.grippers] = rng.integers(0, 2, (5, 16, len(layout.arms)))
    back = layout.absolute(layout.relative(targets, state), state)
    assert np.allclose(layout.relative(back, state), layout.relative(targets, state), atol=1e-9)
    assert np.array_equal(back[..., layout.grippers], targets[..., layout.grippers])


def test_a_layout_of_waypoints_comes_back(folder):
    bare = navigation_layout("rover", ("front",))
    measured = bare.measure(np.zeros((50, 0)), np.random.default_rng(0).normal(size=(50, 16, 3)))
    rover = dataclasses.replace(bare, normalization=measured)
    config = dataclasses.replace(read_config(folder), layouts={**LAYOUTS, "rover": rover})
    write_checkpoint(folder, config, load_file(folder / "model.safetensors"), build_tokenizer(["go"]))
    found = read_config(folder).layouts
    assert found == config.layouts and type(found["rover"]) is type(rover) and type(found["franka"]) is type(LAYOUTS["franka"])
    state, action = found["rover"].statistics(16, "test")
    assert state.low.shape == (0,) and action.low.shape == (16, 3)
    steps = np.array([[[0.2, 0.0, 0.1]]])
    assert np.array_equal(found["rover"].absolute(found["rover"].relative(steps, np.zeros((1, 0))), np.zeros((1, 0))), steps)


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
    least = np.array([0.02, 0.02, 0.02, 0.1, 0.1, 0.1])
    statistics = Quantiles.measure(samples, least)
    assert statistics.low.shape == (2, 6)
    assert np.allclose(statistics.high[:, 5] - statistics.low[:, 5], least[5])
    inside = np.clip(samples, statistics.low, statistics.high)
    assert np.allclose(statistics.unnormalize(statistics.normalize(inside)), inside)
    assert np.abs(statistics.normalize(samples * 100)).max() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["layouts"].pop("franka"), "made for aloha, not 'franka'"),
        (lambda c: c.update(layouts={}), "layouts"),
        (lambda c: c["layouts"]["franka"].update(cameras=["front", "left_wrist"]), "left_wrist"),
        (lambda c: c["layouts"]["franka"].update(cameras=[]), "cameras"),
        (lambda c: c["layouts"]["franka"].update(cameras="front"), "list of names"),
        (lambda c: c["layouts"]["franka"].update(channels=c["layouts"]["franka"]["channels"][::-1]), "channels"),
        (lambda c: c["layouts"]["franka"].update(state=["tcp.x"]), "state"),
        (lambda c: c.update(system="robovlm"), "did you mean 'robovlms'"),
        (lambda c: c.update(system="script"), "system 'script'; valid: "),
        (lambda c: c.update(system=["robovlms"]), "expected a name"),
        (lambda c: c.update(horizn=3), "did you mean 'horizon'"),
        (lambda c: c.update(horizon="16"), "horizon '16'"),
        (lambda c: c.update(image={"width": 64}), "image"),
        (lambda c: c.pop("dt_s"), "dt_s"),
        (lambda c: c["layouts"]["franka"]["normalization"].pop("action"), "normalization.action"),
        (lambda c: c["layouts"]["franka"]["normalization"].update(state={"low": [0] * 10, "high": [0] * 10}), "high <= low"),
        (lambda c: c["layouts"]["franka"]["normalization"].update(state={"low": [0], "high": [1]}), "shape"),
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


def test_sizes_that_are_terabytes_together_are_refused_before_they_are_allocated(folder):
    """In a process of its own that may have no more than 1 GB beyond what it has already."""
    edit(folder, lambda config: config["network"].update(hidden_size=16384, blocks=128))  # 275 GB, each tensor 1 GB
    result = subprocess.run([sys.executable, "-c", GREEDY, str(folder)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    message, grown_mb = json.loads(result.stdout)
    assert "model.safetensors: missing 1016 ['backbone.blocks.1.down.bias'" in message, message
    assert grown_mb < 250, "most of it is torch's compiler, which the meta device imports"


def test_shapes_that_differ_are_named_with_both(folder):
    edit(folder, lambda config: config["network"].update(hidden_size=2048, text_length=4096))
    with pytest.raises(PolicyError, match=r"backbone.lrn is \(32,\), expected \(2048,\); .* and \d+ more: not the weights") as caught:
        load(folder)
    assert len(str(caught.value)) < 500


def test_a_network_may_have_only_so_many_numbers():
    with Allowance(100) as allowance:
        torch.nn.Linear(9, 9), torch.zeros(2, 2), torch.full((2,), 1.0), torch.randn(size=(1,))
        assert allowance.left == 100 - 81 - 9 - 4 - 2 - 1
        with pytest.raises(MemoryError):
            torch.empty(10**12, 10**12)


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


def test_a_copy_does_not_touch_what_somebody_has_open(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, content in ((old, b"old"), (new, b"newer")):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(content)
    with (old / "model.safetensors").open("rb") as opened:
        copy_checkpoint(new, old)
        assert opened.read() == b"old", "a running policy has its weights mapped"
    assert (old / "model.safetensors").read_bytes() == b"newer" and [path.name for path in old.iterdir()] == ["model.safetensors"]
