"""MoL-MSM VLA: learnable queries and every layer of a backbone, a head that makes noise a chunk, a memory. See `network.Network`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vla_ros.core.errors import ConfigError, PolicyError, did_you_mean
from vla_ros.policies.flow import NoiseSource
from vla_ros.policies.layout import Layout
from vla_ros.policies.mol_msm.head import ActionHead
from vla_ros.policies.mol_msm.memory import Memory, SkillModule
from vla_ros.policies.mol_msm.memory_file import Note, digest, read_memory, write_memory
from vla_ros.policies.mol_msm.sizes import read_sizes
from vla_ros.policies.mol_msm.stages import STAGES
from vla_ros.policies.network import Batch, Inputs
from vla_ros.policies.vlms.backbone import LayerStates


class MolMsm(nn.Module):
    """The system, for the one robot of `layouts`. `sizes` are the keys of `sizes.py` and of the backbone.

    It starts in the stage `skills`, with an empty memory.
    """

    STAGES = STAGES

    def __init__(self, layouts: Mapping[str, Layout], horizon: int, sizes: Mapping[str, object]) -> None:
        super().__init__()
        reader, values = read_sizes(layouts, sizes)
        (self.layout,) = layouts.values()
        self.horizon, self.retrieved, self.mixture = horizon, values["retrieved"], values["mixture"]
        self.backbone = reader(self.layout.cameras, 0, values)
        width, heads, channels = self.backbone.hidden_size, values["head_heads"], len(self.layout.channels)
        if width % heads:
            raise PolicyError(f"network.head_heads = {heads}: the width of the backbone, {width}, is no multiple of it")
        self.hidden_size, self.visual_size = width, self.backbone.visual_size
        self.queries = nn.Parameter(0.02 * torch.randn(values["queries"], width))
        self.head = ActionHead(width, heads, self.backbone.depth, horizon, channels, self.layout.feature_count)
        self.skills = self.memory = None
        if values["memory"]:
            self.skills = SkillModule(width, heads, horizon, channels)
            self.memory = Memory(values["memory"], len(self.key_layers) * width, horizon, channels)
        self.noise = NoiseSource(values["seed"])
        self.configure_stage("skills")

    @property
    def key_layers(self) -> tuple[int, int, int]:
        """The shallow, the middle and the deep layer that a key is made of."""
        depth = self.backbone.depth
        return 0, depth // 2, depth - 1

    @property
    def remembers(self) -> bool:
        """Whether there is a memory in this stage."""
        return self.memory is not None and self.stage.memory

    @staticmethod
    def prompt(layout: Layout, instruction: str, horizon: int, dt_s: float) -> str:
        """The instruction alone."""
        return instruction

    def configure_stage(self, stage: str, tokenizer: object = None) -> None:
        """Gets ready for a stage of `stages.STAGES`: what learns, and whether there is a memory. Raises ConfigError."""
        if stage not in STAGES:
            raise ConfigError(f"stage '{stage}'; {did_you_mean(stage, STAGES)}")
        self.stage = STAGES[stage]
        self.backbone.requires_grad_(self.stage.backbone)
        if self.memory is not None and not self.stage.memory:
            self.memory.clear()

    def reset(self) -> None:
        """Starts the noise anew; what is remembered stays."""
        self.noise.reset()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor | None, Tensor]:
        """See `network.Network.loss`. While training, what the batch shows is remembered, after it has been asked.

        Raises:
            PolicyError: another robot or shape, or no episodes, without which a chunk would be retrieved that is its own label.
        """
        wanted = (len(batch.tokens), self.horizon, len(self.layout.channels))
        if batch.actions is None or tuple(batch.actions.shape) != wanted:
            raise PolicyError(f"actions of shape {None if batch.actions is None else tuple(batch.actions.shape)}, expected {wanted}")
        if self.remembers and batch.episode is None:
            raise PolicyError("a batch without `episode` [B]: a chunk could be retrieved from its own demonstration; fill it in")
        states = self.read(batch)
        actions = self.act(states, batch.state, torch.randn_like(batch.actions), batch.episode)
        if self.remembers and self.training:
            self.memory.push(self.key(states), batch.actions, batch.episode)
        loss = (actions.float() - batch.actions).abs().mean()
        return loss, {"action": loss}, states.visual, states.queries[-1].float().mean(1)

    def predict(self, inputs: Inputs) -> Tensor:
        """See `network.Network.predict`. One pass makes the chunk, so there is no step at which a prefix could guide it."""
        shape = (len(inputs.tokens), self.horizon, len(self.layout.channels))
        noise = self.noise.draw(shape, inputs.tokens.device).to(self.queries.dtype)
        return self.act(self.read(inputs), inputs.state, noise).float()

    def read(self, inputs: Inputs) -> LayerStates:
        """Runs the backbone. Raises PolicyError: another robot, or other cameras than it has."""
        layout = self.layout
        if inputs.embodiment != layout.embodiment:
            raise PolicyError(f"embodiment '{inputs.embodiment}'; {did_you_mean(inputs.embodiment, [layout.embodiment])}")
        if inputs.images.ndim != 5 or inputs.images.shape[1] != len(layout.cameras):
            cameras = ", ".join(layout.cameras)
            raise PolicyError(f"images {tuple(inputs.images.shape)}, expected [B, {len(layout.cameras)}, 3, H, W] of {cameras}")
        return self.backbone.read_layers(inputs.images, inputs.tokens, layout.cameras, self.queries)

    def key(self, states: LayerStates) -> Tensor:
        """Returns what the memory knows an observation by [B, K]: means of three layers' states, each normalised, without the queries'."""
        share = states.mask.float() / states.mask.sum(1, keepdim=True)
        means = [torch.einsum("bn,bnd->bd", share, states.seen[layer].float()) for layer in self.key_layers]
        return torch.cat([nn.functional.layer_norm(mean, mean.shape[-1:]) for mean in means], -1).detach()

    def act(self, states: LayerStates, state: Tensor, noise: Tensor, episode: Tensor | None = None) -> Tensor:
        """Returns the chunk [B, H, A] that noise [B, H, A] becomes; nothing of `episode` [B] is retrieved."""
        refine = None
        if self.remembers and len(self.memory):
            retrieved = self.memory.nearest(self.key(states), self.retrieved, episode)

            def refine(x: Tensor) -> Tensor:
                return self.skills(x, retrieved)

        depth = self.backbone.depth
        layers = range(depth) if self.mixture else [depth - 1] * depth
        visual = [states.seen[layer][:, states.patches] for layer in layers]
        return self.head(noise, state, [states.queries[layer] for layer in layers], visual, refine)

    @torch.no_grad()
    def remember(self, inputs: Inputs, chunks: Tensor) -> None:
        """Adds a further episode: observations and the chunks [B, H, A] that worked there. Raises PolicyError when there is no memory."""
        if not self.remembers:
            raise PolicyError("this network has no memory: `memory: 0`, or the stage `pretrain`")
        episode = self.memory.newest_episode() + 1
        self.memory.push(self.key(self.read(inputs)), chunks, torch.full((len(chunks),), episode))

    def note(self) -> Note:
        """What a memory must agree with to be this network's."""
        layout = self.layout
        stage = next(name for name, stage in STAGES.items() if stage is self.stage)
        return Note(
            stage, layout.embodiment, layout.channels, self.horizon, self.memory.keys.shape[1],
            digest(layout.normalization.get("action")), digest(self.backbone.state_dict()),
        )  # fmt: skip

    def save_memory(self, folder: Path) -> None:
        """Writes the memory beside the weights; nothing with `memory: 0`. Raises PolicyError: it is empty, in a stage that remembers."""
        if self.memory is not None:
            write_memory(folder, self.memory, self.note())

    def load_memory(self, folder: Path) -> None:
        """Reads it again, and enters the stage in which it was written. Raises PolicyError: missing, empty, broken, of another network."""
        if self.memory is not None:
            self.configure_stage(read_memory(folder, self.memory, self.note()))
