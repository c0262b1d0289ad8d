"""VITA-VLA and its teacher in sizes for tests."""

from __future__ import annotations

import torch

from vla_ros.core.embodiment import load_embodiment
from vla_ros.policies.checkpoint import CheckpointConfig, write_checkpoint
from vla_ros.policies.layout import layout_for
from vla_ros.policies.network import Batch, Inputs
from vla_ros.policies.network_policy import make_network
from vla_ros.policies.text import build_tokenizer

HORIZON, LENGTH, WINDOW, WIDTH = 3, 6, 3, 24
IMAGE = {"width": 64, "height": 48}
FEATURES = {"piper_joints": 7, "piper": 10, "aloha_piper": 14}
SENTENCE = "put the red block on the plate"
TOKENIZER = build_tokenizer([SENTENCE, "green"])
SHARED = {"vocabulary": TOKENIZER.get_vocab_size(), "text_length": LENGTH, "window": WINDOW}
EYES = {"text_width": 16, "keypoints": 4}
TEACHER = {**SHARED, **EYES, "eyes": "convolutional", "width": WIDTH, "layers": 2, "heads": 4}
STUDENT = {
    **SHARED, **EYES, "backbone": "convolutional", "teacher_width": WIDTH,
    "text": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
}  # fmt: skip
INTERNVL = {
    **SHARED, "backbone": "internvl_qwen2_5", "preset": "tiny", "image_size": 64, "teacher_width": WIDTH,
    "text": {"num_hidden_layers": 2}, "vision": {"num_hidden_layers": 1},
}  # fmt: skip


def layout(name="piper_joints", low=-0.1):
    robot = load_embodiment(name)
    cameras = tuple(robot.cameras)
    bare = layout_for(robot, cameras)
    state = {"low": [low] * FEATURES[name], "high": [0.5] * FEATURES[name]}
    row = [-1.0 if gripper else low for gripper in bare.grippers], [1.0 if gripper else 0.5 for gripper in bare.grippers]
    return layout_for(robot, cameras, {"state": state, "action": {"low": [row[0]] * HORIZON, "high": [row[1]] * HORIZON}})


def config(system, sizes, *names, horizon=HORIZON, **changes):
    layouts = {name: layout(name) for name in names or ("piper_joints",)}
    return CheckpointConfig(system, "tiny", layouts, IMAGE, horizon, 0.1, sizes, **changes)


def network(system, sizes, *names, **changes):
    torch.manual_seed(0)
    return make_network(config(system, {**sizes, **changes}, *names), "test")


def write(folder, made, trained, tokenizer=TOKENIZER):
    write_checkpoint(folder, made, trained.state_dict(), tokenizer)
    return str(folder)


def teacher_in(folder):
    """Writes a teacher whose layers all matter, and returns its folder."""
    trained = network("seer", TEACHER)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return write(folder / "teacher", config("seer", TEACHER), trained)


def batch(window=WINDOW, count=2, name="piper_joints", seed=0):
    random = torch.Generator().manual_seed(seed)
    known = layout(name)
    lead = (count,) if window is None else (count, window)
    images = 2 * torch.rand(*lead, len(known.cameras), 3, IMAGE["height"], IMAGE["width"], generator=random) - 1
    tokens = torch.randint(2, SHARED["vocabulary"], (count, LENGTH), generator=random)
    tokens[0, -2:] = 0
    actions = 1.6 * torch.rand(count, HORIZON, len(known.channels), generator=random) - 0.8
    actions[..., torch.from_numpy(known.grippers)] = actions[..., torch.from_numpy(known.grippers)].sign()
    return Batch(name, images, torch.randn(*lead, FEATURES[name], generator=random), tokens, actions=actions)


def at(inputs, step):
    return Inputs(inputs.embodiment, inputs.images[:, step], inputs.state[:, step], inputs.tokens)


def part(inputs, start, stop):
    return Inputs(inputs.embodiment, inputs.images[:, start:stop], inputs.state[:, start:stop], inputs.tokens)


def stream(policy, inputs, steps):
    """What `predict` says to one observation after the other."""
    with torch.no_grad():
        return [policy.predict(at(inputs, step)) for step in range(steps)]


def learns(policy, samples, steps=40, rate=3e-3):
    """Returns the loss on fixed samples before and after some optimisation."""
    losses = []
    optimiser = torch.optim.AdamW([parameter for parameter in policy.parameters() if parameter.requires_grad], rate)
    policy.eval()  # every window whole, so that both losses are of the same
    for _ in range(steps):
        loss = policy.loss(samples)[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses[0], losses[-1]
