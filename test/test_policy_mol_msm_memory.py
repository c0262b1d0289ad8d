"""The meta-skill memory: nearest entries, first in first out, its file and whose it is, growth, and `vla skill memory`."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vla_ros.cli.main import app
from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import DataError, PolicyError
from vla_ros.core.types import Frame, Observation, Proprioception
from vla_ros.policies import load_policy
from vla_ros.policies.checkpoint import CheckpointConfig, write_checkpoint
from vla_ros.policies.layout import layout_for
from vla_ros.policies.mol_msm.memory import Memory, l1_distances
from vla_ros.policies.mol_msm.memory_file import MEMORY, open_memory
from vla_ros.policies.network_policy import make_network
from vla_ros.policies.text import build_tokenizer
from vla_ros.training import run as run_module
from vla_ros.training.closed_loop import Result
from vla_ros.training.config import load_training
from vla_ros.training.demonstrations import Episode, save_episode
from vla_ros.training.growth import grow_memory
from vla_ros.training.train import train

SENTENCE = "pick up the red block and put it on the plate"
HORIZON, CAPACITY = 4, 20
STATISTICS = {
    "state": {"low": [-1.0] * 10, "high": [1.0] * 10},
    "action": {"low": [[-0.1] * 3 + [-0.4] * 3 + [-1.0]] * HORIZON, "high": [[0.1] * 3 + [0.4] * 3 + [1.0]] * HORIZON},
}
NETWORK = {
    "backbone": "layered", "text_length": 8, "text_width": 16, "hidden_size": 16, "layers": 3, "heads": 2, "keypoints": 4, "queries": 2,
    "head_heads": 2, "memory": CAPACITY, "retrieved": 4,
}  # fmt: skip
POSE = np.array([0.3, 0.1, 0.2, 3.1, 0.1, 0.0, 0.05])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def numbered(count, start=0, width=5):
    """Entries that are told apart by their first number."""
    numbers = torch.arange(start, start + count)
    return (value.float() for value in (numbers[:, None].expand(-1, width), numbers[:, None, None].expand(-1, 2, 3))), numbers


def push(memory, count, start=0):
    (keys, chunks), numbers = numbered(count, start)
    memory.push(keys, chunks, numbers)


def make_checkpoint(folder, statistics=STATISTICS, seed=0, stage="skills", robot="piper", entries=9, **changes):
    """An untrained checkpoint whose memory holds random scenes and chunks."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer([SENTENCE])
    layouts = {robot: layout_for(load_embodiment(robot), ("front", "wrist"), statistics)}
    network = NETWORK | changes | {"vocabulary": tokenizer.get_vocab_size()}
    config = CheckpointConfig("mol_msm_vla", "tiny", layouts, {"width": 64, "height": 48}, HORIZON, 0.1, network)
    made = make_network(config, "test")
    made.configure_stage(stage)
    if made.remembers:
        with torch.no_grad():
            made.memory.push(torch.randn(entries, 48), torch.rand(entries, HORIZON, 7) * 2 - 1, torch.arange(entries) // 3)
    write_checkpoint(folder, config, made.state_dict(), tokenizer)
    made.save_memory(folder)
    return made


@pytest.fixture
def folder(tmp_path):
    make_checkpoint(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def load(folder, robot="piper"):
    return load_policy(str(folder), load_embodiment(robot))


def observe(policy, seed=0):
    rng = np.random.default_rng(seed)
    frames = {name: Frame(7, rng.integers(0, 255, (48, 64, 3), dtype=np.uint8), 0, name) for name in ("front", "wrist")}
    return Observation(7, frames, Proprioception(7, policy.spec.state, POSE), SENTENCE)


def actions(policy, seed=0):
    policy.reset()
    return policy.infer(observe(policy, seed)).chunk.data


def rewrite(folder, change):
    """Changes the tensors and the note of a memory as `change(tensors, note)` says."""
    with safe_open(folder / MEMORY, "pt") as file:
        tensors, note = {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["note"])  # noqa: SIM118
    change(tensors, note)
    save_file(tensors, folder / MEMORY, {"note": json.dumps(note)})


def episode_of(seed, success=True, cameras=2, steps=6):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (steps, cameras, 48, 64, 3), dtype=np.uint8)
    state = np.tile(POSE, (steps, 1))
    targets = np.tile(np.append(POSE[:6], 0.0), (steps, HORIZON, 1))
    targets[..., 0] += 0.01 * np.arange(steps)[:, None]
    stage, objects = np.zeros(steps, np.uint8), np.zeros((steps, 7, 3))
    return Episode(frames, state, targets, objects, stage, np.array([0, 3]), SENTENCE, seed, success)


@pytest.mark.parametrize("width", [3, 2688, 100_000])
def test_distances_are_sums_of_absolute_differences(width):
    torch.manual_seed(0)
    queries, keys = torch.randn(2, width), torch.randn(70, width)
    expected = (queries[:, None].double() - keys.double()).abs().sum(-1)
    torch.testing.assert_close(l1_distances(queries, keys).double(), expected, rtol=1e-5, atol=1e-4)


def test_the_nearest_entries_are_those_of_brute_force():
    torch.manual_seed(0)
    memory = Memory(50, 40, 2, 3)
    keys, chunks = torch.randn(80, 40), torch.randn(80, 2, 3)
    memory.push(keys[:47], chunks[:47], torch.arange(47) // 5)
    memory.push(keys[47:], chunks[47:], torch.arange(47, 80) // 5)
    queries, own = torch.randn(6, 40), torch.tensor([6, 7, 8, 9, 99, 15])
    found = memory.nearest(queries, 4, own)
    for query, episode, distances, values, episodes in zip(queries, own, *(found[i] for i in (1, 0, 2)), strict=True):
        order = sorted((float((query - keys[i]).abs().sum()), i) for i in range(30, 80) if i // 5 != int(episode))[:4]
        assert torch.allclose(distances, torch.tensor([distance for distance, _ in order]), atol=1e-4)
        assert torch.equal(values, chunks[[i for _, i in order]]) and episodes.tolist() == [i // 5 for _, i in order]


def test_the_first_in_are_the_first_out():
    memory = Memory(5, 5, 2, 3)
    assert not len(memory)
    for count, kept in ((3, [0, 1, 2]), (3, [1, 2, 3, 4, 5]), (1, [2, 3, 4, 5, 6]), (12, [14, 15, 16, 17, 18])):
        push(memory, count, memory.pushed)
        keys, chunks, episodes = memory.oldest_first()
        assert episodes.tolist() == keys[:, 0].tolist() == chunks[:, 1, 2].tolist() == kept and len(memory) == len(kept)


def test_fewer_entries_than_asked_for_are_infinitely_far():
    memory = Memory(5, 5, 2, 3)
    push(memory, 2)
    found = memory.nearest(torch.zeros(1, 5), 4, torch.tensor([0]))
    assert found.distances.tolist() == [[5.0, torch.inf, torch.inf, torch.inf]] and found.episodes[0, 0] == 1


def test_a_checkpoint_keeps_its_memory_and_acts_as_before(folder, tmp_path):
    before = actions(load(folder))
    assert np.array_equal(actions(load(folder)), before)
    made = make_checkpoint(tmp_path / "again")  # the same weights and entries, in memory and from the file
    tensors, note = open_memory(tmp_path / "again")
    assert all(
        torch.equal(tensors[name], kept) for name, kept in zip(("keys", "chunks", "episodes"), made.memory.oldest_first(), strict=True)
    )
    assert (note.stage, note.embodiment, note.horizon, note.key_width) == ("skills", "piper", HORIZON, 48)
    without = make_checkpoint(tmp_path / "without", memory=0)
    assert without.memory is None and not (tmp_path / "without" / MEMORY).exists()
    shutil.copy(tmp_path / "again" / MEMORY, tmp_path / "without")  # what `memory: 0` says counts
    assert np.abs(actions(load(tmp_path / "without")) - before).max() > 1e-4


def test_what_was_remembered_changes_the_actions(folder):
    before = actions(load(folder))
    rewrite(folder, lambda tensors, note: tensors["chunks"].mul_(-1))
    assert np.abs(actions(load(folder)) - before).max() > 1e-4


def test_a_pretrained_checkpoint_says_that_it_has_none(tmp_path):
    make_checkpoint(tmp_path / "pretrained", stage="pretrain")
    policy = load(tmp_path / "pretrained")
    assert np.isfinite(actions(policy)).all()
    with pytest.raises(PolicyError, match="the stage `pretrain`"):
        policy.remember([observe(policy)], np.append(POSE[:6], 0.0)[None])
    (tmp_path / "pretrained" / MEMORY).unlink()
    with pytest.raises(PolicyError, match=r"no such file.*memory: 0"):
        load(tmp_path / "pretrained")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1}, "made by other weights"),
        ({"statistics": {**STATISTICS, "action": {**STATISTICS["action"], "low": [[-0.2] * 6 + [-1.0]] * HORIZON}}}, "other quantiles"),
        ({"robot": "franka"}, "embodiment franka, the checkpoint piper"),
    ],
)
def test_a_foreign_memory_is_named(folder, tmp_path, other, message):
    make_checkpoint(tmp_path / "other", **other)
    shutil.copy(tmp_path / "other" / MEMORY, folder)
    with pytest.raises(PolicyError, match=f"{MEMORY}: a memory of another checkpoint.*{message}"):
        load(folder)


def shorter_keys(tensors, note):
    tensors["keys"], note["key_width"] = tensors["keys"][:, :40].contiguous(), 40


def other_rows(tensors, note):
    tensors["chunks"], note["horizon"] = tensors["chunks"][:, :3].contiguous(), 3


def nothing(tensors, note):
    for name in tensors:
        tensors[name] = tensors[name][:0].contiguous()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorter_keys, "key_width 40, the checkpoint 48"),
        (other_rows, "horizon 3, the checkpoint 4"),
        (nothing, "the memory is empty"),
        (lambda tensors, note: tensors.pop("episodes"), "holds chunks, keys, expected"),
        (
            lambda tensors, note: tensors.update(keys=tensors["keys"][:5].contiguous()),
            r"chunks is torch.float32 \(9, 4, 7\), expected \(5,",
        ),
        (lambda tensors, note: tensors["keys"].fill_(float("nan")), "NaN"),
        (lambda tensors, note: note.pop("backbone"), "no memory that can be read"),
        (lambda tensors, note: note.update(stage="training"), "no memory that can be read"),
    ],
)
def test_a_memory_that_does_not_fit_is_named(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(PolicyError, match=message) as error:
        load(folder)
    assert str(folder / MEMORY) in str(error.value)


def test_a_missing_or_damaged_memory_is_named(folder):
    whole = (folder / MEMORY).read_bytes()
    for damaged in (b"", b"{}", whole[:100], whole[:-50], whole + b"0", whole.replace(b"note", b"nota")):
        (folder / MEMORY).write_bytes(damaged)
        with pytest.raises(PolicyError, match=rf"{MEMORY}: no memory that can be read.*copy the file again"):
            load(folder)
    (folder / MEMORY).unlink()
    with pytest.raises(PolicyError, match=rf"{MEMORY}: no such file"):
        load(folder)


def test_more_entries_than_the_memory_holds_are_named(folder):
    values = json.loads((folder / "config.json").read_text())
    values["network"]["memory"] = 8
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(PolicyError, match=r"9 entries; network.memory = 8 is too small"):
        load(folder)


def test_an_empty_memory_is_not_saved(tmp_path):
    with pytest.raises(PolicyError, match="the memory is empty"):
        make_checkpoint(tmp_path / "empty", entries=0)


def test_a_rollout_that_succeeded_is_remembered(folder):
    policy = load(folder)
    commands = np.tile(np.append(POSE[:6], 1.0), (3, 1))
    commands[:, 1] += [0.01, 0.02, 0.03]
    policy.remember([observe(policy, seed) for seed in range(3)], commands)
    policy.save_memory(folder)
    tensors, _ = open_memory(folder)
    assert tensors["episodes"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    sideways = tensors["chunks"][-3:, :, 1] * 0.1  # of +- 0.1 m, from where the hand was
    expected = torch.tensor([[0.01, 0.02, 0.03, 0.03], [0.02, 0.03, 0.03, 0.03], [0.03, 0.03, 0.03, 0.03]])
    torch.testing.assert_close(sideways, expected, rtol=0, atol=1e-5)
    assert (tensors["chunks"][-3:, :, 6] == 1).all()
    again = load(folder)
    again.infer(observe(again, 1))
    network = again._network
    inputs, _ = again.inputs([observe(again, 1)])
    found = network.memory.nearest(network.key(network.read(inputs)), 1)
    assert found.episodes.item() == 3 and found.distances.item() < 1e-3
    for wrong in (commands[:2], commands[:, :6], np.full((3, 7), np.nan)):
        with pytest.raises(PolicyError, match="commands"):
            policy.remember([observe(policy, seed) for seed in range(3)], wrong)


def test_the_memory_grows_from_demonstrations_that_succeeded(folder, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for seed, success in ((1, True), (2, False), (3, True)):
        save_episode(data, episode_of(seed, success))
    out = CliRunner().invoke(app, ["skill", "memory", str(folder), "--grow", str(data), "--json"], catch_exceptions=False)
    found = json.loads(out.output)
    assert (found["added_episodes"], found["entries"], found["episodes"], found["capacity"]) == (2, CAPACITY, 5, CAPACITY)
    assert open_memory(folder)[0]["episodes"].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, *[3] * 6, *[4] * 6]
    load(folder)
    save_episode(data, episode_of(4, cameras=3))
    with pytest.raises(DataError, match=r"seed 4 has .* \(3, 7\); piper has \(2, 7\)"):
        grow_memory(folder, "piper", data)
    with pytest.raises(DataError, match="no demonstration that succeeded"):
        grow_memory(folder, "piper", tmp_path)


def test_the_memory_is_shown(folder, tmp_path):
    out = CliRunner().invoke(app, ["skill", "memory", str(folder), "--json"], catch_exceptions=False)
    found = json.loads(out.output)
    assert (found["entries"], found["episodes"], found["capacity"], found["stage"]) == (9, 3, CAPACITY, "skills")
    assert (found["embodiment"], found["horizon"], found["key_width"], len(found["channels"])) == ("piper", HORIZON, 48, 7)
    tensors, _ = open_memory(folder)
    away = torch.cdist(tensors["keys"], tensors["keys"], p=1).masked_fill(tensors["episodes"][:, None] == tensors["episodes"], torch.inf)
    assert found["nearest_distance"] == pytest.approx(float(away.amin(1).median()), abs=0.01) and -1 <= found["correlation"] <= 1
    text = CliRunner().invoke(app, ["skill", "memory", str(folder)], catch_exceptions=False).output
    assert "entries  9\n" in text and "tcp.x, tcp.y" in text
    rewrite(folder, lambda tensors, note: tensors.update(chunks=tensors["keys"][:, : HORIZON * 7].reshape(9, HORIZON, 7).contiguous()))
    alike = json.loads(CliRunner().invoke(app, ["skill", "memory", str(folder), "--json"]).output)
    assert alike["correlation"] > 0.5 > abs(found["correlation"])
    make_checkpoint(tmp_path / "pretrained", stage="pretrain")
    none = json.loads(CliRunner().invoke(app, ["skill", "memory", str(tmp_path / "pretrained"), "--json"]).output)
    assert (none["entries"], none["stage"], none["correlation"]) == (0, "pretrain", None)
    make_checkpoint(tmp_path / "without", memory=0)
    with pytest.raises(PolicyError, match=r"network.memory = 0: this checkpoint does without"):
        CliRunner().invoke(app, ["skill", "memory", str(tmp_path / "without")], catch_exceptions=False)
    with pytest.raises(PolicyError, match="a robovlms, which has no memory"):
        CliRunner().invoke(app, ["skill", "memory", "robovlms_franka"], catch_exceptions=False)


def test_training_in_two_stages_builds_the_memory_saves_it_and_goes_on_with_it(tmp_path, monkeypatch):
    result = Result(1, 0.5, 0.0, 30.0, 8, 0)
    monkeypatch.setattr(run_module, "check_closed_loop", lambda *_, **__: result)  # this is about the files
    data, run = tmp_path / "data", tmp_path / "run"
    (data / "piper").mkdir(parents=True)
    for seed in range(3):
        save_episode(data / "piper", episode_of(seed))
    base = load_training("robovlms_franka", steps=2)
    source = dataclasses.replace(base.sources[0], embodiment="piper", episodes=3, first_seed=0)
    pretrain = dataclasses.replace(
        base, system="mol_msm_vla", image={"width": 64, "height": 48}, horizon=HORIZON, network=NETWORK, sources=(source,),
        optimisation=dataclasses.replace(base.optimisation, batch=4, save_every_steps=3), stage="pretrain",
    )  # fmt: skip
    train(pretrain, data, tmp_path / "pretrained")
    before = load_file(tmp_path / "pretrained" / "best" / "model.safetensors")
    assert not len(open_memory(tmp_path / "pretrained" / "best")[0]["keys"])

    steps = dataclasses.replace(pretrain.optimisation, steps=3)
    skills = dataclasses.replace(pretrain, stage="skills", init=str(tmp_path / "pretrained" / "best"), optimisation=steps)
    train(skills, data, run)
    after = load_file(run / "best" / "model.safetensors")
    kept = {name for name, tensor in after.items() if torch.equal(tensor, before[name])}
    assert {name for name in after if name.startswith("backbone.")} <= kept and "queries" not in kept
    entries, note = open_memory(run / "best")
    assert len(entries["keys"]) == 12 and set(entries["episodes"].tolist()) <= {0, 1, 2}
    assert (note.embodiment, note.stage) == ("piper", "skills") and np.isfinite(actions(load(run / "best"))).all()

    longer = dataclasses.replace(skills, init="", optimisation=dataclasses.replace(steps, steps=4))
    train(longer, data, run, resume=True)
    again, _ = open_memory(run / "latest")
    assert len(again["keys"]) == 16 and torch.equal(again["keys"][:12], entries["keys"])
