"""Mutated checkpoints and configuration files: each loads, or ends in a VlaError that names the file. Nothing else, and no code runs."""

import copy
import json
import random
import sys
import types
from pathlib import Path

import pytest
import torch
from test_policy_checkpoint import CAMERAS, LAYOUTS, NETWORK, SENTENCE

from vla_ros.core import yaml
from vla_ros.core.embodiment import config_dir, load_embodiment
from vla_ros.core.errors import VlaError
from vla_ros.core.rig import RigFile
from vla_ros.policies import load_policy
from vla_ros.policies.checkpoint import CheckpointConfig, write_checkpoint
from vla_ros.policies.network_policy import make_network
from vla_ros.policies.presets import PolicyFile
from vla_ros.policies.text import build_tokenizer
from vla_ros.training.config import TrainingConfig

QWEN = {
    "backbone": "convolutional", "text_length": 8, "text_width": 16, "hidden_size": 32, "blocks": 1, "keypoints": 4,
    "state_width": 14, "expert_width": 16, "expert_blocks": 1, "expert_heads": 2,
}  # fmt: skip
ATOMIC = {
    "backbone": "convolutional", "text_length": 8, "text_width": 16, "hidden_size": 32, "blocks": 1, "keypoints": 4,
    "writer_width": 16, "writer_layers": 1, "writer_heads": 2, "expert_width": 16, "expert_hidden": 16, "expert_layers": 1,
    "expert_head_size": 8, "skills": [{"name": "pick", "sigma": 10.0, "text": "grasp"}, {"name": "place", "sigma": 50.0}],
}  # fmt: skip
SEER = {"eyes": "convolutional", "text_length": 8, "text_width": 16, "keypoints": 4, "width": 16, "layers": 1, "heads": 2, "window": 2}
VITA = {
    "backbone": "convolutional", "text_length": 8, "text_width": 16, "keypoints": 4, "teacher_width": 16, "window": 2,
    "text": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1},
}  # fmt: skip
MOL_MSM = {
    "backbone": "layered", "text_length": 8, "text_width": 16, "hidden_size": 16, "layers": 2, "heads": 2, "keypoints": 4, "queries": 2,
    "head_heads": 2, "memory": 8, "retrieved": 2,
}  # fmt: skip
SYSTEMS = {"robovlms": NETWORK, "qwen_vla": QWEN, "atomic_vla": ATOMIC, "seer": SEER, "vita_vla": VITA, "mol_msm_vla": MOL_MSM}
ROBOTS = {"mol_msm_vla": ("franka",)}  # which drive one robot
VALUES = [
    None, True, -1, 0, 5.5, 1e300, float("nan"), float("inf"), 10**9, 10**30, "", "\ud800", "x" * 5000, [], {}, [[]], {"a": {}},
    "canary:run", "canary", 8192, "torch:save",
]  # fmt: skip
CONFIGS, WEIGHTS, TOKENIZERS, MEMORIES, YAMLS = 100, 50, 20, 50, 200  # of each system; of all YAML files


@pytest.fixture(scope="module", params=SYSTEMS)
def checkpoint(request, tmp_path_factory):
    """(folder, its files as they should be)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = build_tokenizer([SENTENCE])
    network = dict(SYSTEMS[request.param], vocabulary=tokenizer.get_vocab_size())
    layouts = {name: LAYOUTS[name] for name in ROBOTS.get(request.param, LAYOUTS)}
    config = CheckpointConfig(request.param, "tiny", layouts, {"width": 64, "height": 48}, 16, 0.1, network)
    folder = tmp_path_factory.mktemp(request.param)
    made = make_network(config, "test")
    write_checkpoint(folder, config, made.state_dict(), tokenizer)
    if request.param == "mol_msm_vla":
        made.memory.push(torch.randn(5, 48), torch.rand(5, 16, 7), torch.arange(5))
        made.save_memory(folder)
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def canary(monkeypatch):
    """A module that must never be asked for anything."""
    module = types.ModuleType("canary")
    module.run = lambda *_, **__: pytest.fail("a file chose code that ran")
    monkeypatch.setitem(sys.modules, "canary", module)


def spots(node, path=()):
    """Every key and place of plain data, of a long list the first three."""
    items = node.items() if isinstance(node, dict) else enumerate(node[:3]) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from spots(value, (*path, key))


def mutated(data, rng):
    """`data` with one to three values replaced, keys renamed or removed."""
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 3)):
        *path, last = rng.choice(list(spots(data)) or [("",)])
        place = data
        for key in path:
            place = place[key]
        if isinstance(place, dict) and rng.random() < 0.25:
            value = place.pop(last, None)
            if rng.random() < 0.5:
                place[f"{last}s"] = value
        elif isinstance(place, dict | list):
            place[last] = rng.choice(VALUES)
    return data


def damaged(data: bytes, rng) -> bytes:
    """Bytes flipped (most in the head of the file), cut off, added or doubled."""
    kind = rng.randrange(6)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        return data + data[: rng.randrange(len(data))]
    if kind == 2:  # the length of a safetensors header
        return rng.choice([0, 1, 2**31, 2**63]).to_bytes(8, "little") + data[8:]
    if kind == 3:
        return data.replace(rng.choice([b"F32", b"dtype", b"shape", b"backbone"]), rng.choice([b"F64", b"I8", b"", b"x" * 9]), 1)
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        out[rng.randrange(rng.choice([10, 2000, len(out)]) % len(out) or 1)] = rng.randrange(256)
    return bytes(out)


def attempt(folder, name):
    for embodiment in CAMERAS:
        try:
            load_policy(str(folder), load_embodiment(embodiment))
        except VlaError as error:
            assert str(folder) in str(error), f"{name} is not named: {error}"


@pytest.mark.parametrize(
    ("name", "count"),
    [("config.json", CONFIGS), ("model.safetensors", WEIGHTS), ("tokenizer.json", TOKENIZERS), ("memory.safetensors", MEMORIES)],
)
def test_a_damaged_checkpoint_loads_or_is_named(checkpoint, name, count):
    folder, files = checkpoint
    if name not in files:
        return  # this system has no such file
    rng = random.Random(name)
    for _ in range(count):
        if name.endswith(".json") and rng.random() < 0.8:
            data = json.dumps(mutated(json.loads(files[name]), rng)).encode()
        else:
            data = damaged(files[name], rng)
        (folder / name).write_bytes(data)
        attempt(folder, name)
    (folder / name).write_bytes(files[name])
    load_policy(str(folder), load_embodiment("franka"))  # the files themselves are good


def test_damaged_yaml_loads_or_is_named(tmp_path):
    rng = random.Random(0)
    kinds = {"training": TrainingConfig, "policies": PolicyFile, "rigs": RigFile}
    files = [(path, kind) for folder, kind in kinds.items() for path in sorted((config_dir() / folder).glob("*.yaml"))]
    for number in range(YAMLS):
        source, kind = files[number % len(files)]
        path = tmp_path / "mutated.yaml"
        data = yaml.read(source).plain()
        text = json.dumps(mutated(data, rng)).encode() if number % 4 else damaged(Path(source).read_bytes(), rng)
        path.write_bytes(text)
        try:
            yaml.load(path, kind)
        except VlaError as error:
            assert "mutated.yaml" in str(error), str(error)
