"""Small AtomicVLA networks and their batches, for its tests."""

import torch

from vla_ros.core.embodiment import load_embodiment
from vla_ros.policies.atomic_vla.network import AtomicVla, PlannedBatch
from vla_ros.policies.layout import layout_for
from vla_ros.policies.network import Inputs

HORIZON, LENGTH, VOCABULARY = 5, 8, 30
LAYOUTS = {"franka": layout_for(load_embodiment("franka"), ("front", "wrist"))}
SKILLS = [{"name": "pick", "sigma": 10.0}, {"name": "place", "sigma": 31.6}, {"name": "turn", "sigma": 100.0}]
LAYERS, STEPS = 2, 4
SIZES = {
    "backbone": "convolutional", "vocabulary": VOCABULARY, "text_length": LENGTH, "text_width": 16, "hidden_size": 32, "blocks": 1,
    "keypoints": 4, "writer_width": 16, "writer_layers": 1, "writer_heads": 2, "plan_length": 24, "skills": SKILLS,
    "expert_width": 32, "expert_layers": LAYERS, "expert_hidden": 48, "expert_heads": 4, "expert_key_heads": 1, "expert_head_size": 8,
    "euler_steps": STEPS,
}  # fmt: skip
PALIGEMMA = {key: value for key, value in SIZES.items() if key not in ("text_width", "hidden_size", "blocks", "keypoints")}
PALIGEMMA = {key: value for key, value in PALIGEMMA.items() if not key.startswith("writer")} | {
    "backbone": "paligemma", "preset": "tiny", "use_state": False, "expert_head_size": 32,
    "text": {"num_hidden_layers": LAYERS}, "vision": {"num_hidden_layers": 1},
}  # fmt: skip


def make(sizes=SIZES, **changes):
    """A network all of whose weights are moved, so that nothing is hidden behind one that starts as zero."""
    torch.manual_seed(0)
    return shaken(AtomicVla(LAYOUTS, HORIZON, {**sizes, **changes}).eval())


def shaken(module, scale=0.1):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def inputs_of(batch=1, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, 2, 3, 32, 32, generator=generator) * 2 - 1
    tokens = torch.randint(2, VOCABULARY, (batch, LENGTH), generator=generator)
    tokens[:, -2:] = 0
    return Inputs("franka", images, torch.randn(batch, 10, generator=generator), tokens, **more)


def batch_of(skills, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    count = len(skills)
    actions = torch.rand(count, HORIZON, 7, generator=generator) * 2 - 1
    plan = torch.randint(2, VOCABULARY, (count, 6), generator=generator)
    plan[0, 4:] = 0
    think = torch.arange(count) % 2 == 0
    parts = {"actions": actions, "skill": torch.tensor(skills), "think": think, "plan": plan}
    return PlannedBatch(**{**vars(inputs_of(count, seed)), **parts, **changes})


def act(network, inputs, *skills):
    """Actions of the given skills out of the same noise each time."""
    network.reset()
    with torch.no_grad():
        return network.act(network.context(inputs), skills, inputs)
