"""Qwen-VLA: a backbone reads pictures and the embodiment prompt, the action expert turns noise into a chunk. See `network.Network`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from vla_ros.core.errors import DataError, PolicyError, did_you_mean
from vla_ros.policies.flow import TAU_SAMPLERS, NoiseSource, Velocity, flow_loss, guidance, guided, solve
from vla_ros.policies.layout import Layout
from vla_ros.policies.network import Batch, Inputs
from vla_ros.policies.qwen_vla.expert import ActionExpert, Prefix
from vla_ros.policies.qwen_vla.prompt import embodiment_prompt
from vla_ros.policies.qwen_vla.reader import Reading
from vla_ros.policies.qwen_vla.sizes import read_sizes
from vla_ros.policies.qwen_vla.stages import STAGES, configure_stage
from vla_ros.policies.text import PAD_ID

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EXPERT_SIZES = ("expert_width", "expert_blocks", "expert_heads", "channels", "theta")


class Context(NamedTuple):
    """All that does not change while one observation's noise becomes a chunk.

    `mask` bool [K] is True in the robot's own channels.
    """

    reading: Reading
    prefix: Prefix
    mask: Tensor


@dataclass(frozen=True)
class AnsweredBatch(Batch):
    """A batch with text that the language model learns to say: `answer` int64 [B, n], 0 after its end. Read in SFT."""

    answer: Tensor | None = None


class QwenVla(nn.Module):
    """One set of weights for all robots of `layouts`: the prompt says which one it is, its channels are the leading ones of K.

    `sizes` are the keys of `sizes.py` and of the backbone. It starts in the stage `cpt`.
    """

    STAGES = STAGES

    def __init__(self, layouts: Mapping[str, Layout], horizon: int, sizes: Mapping[str, object]) -> None:
        super().__init__()
        reader, values = read_sizes(layouts, sizes)
        self.layouts, self.horizon, self.channels = dict(layouts), horizon, values["channels"]
        self.state_width, self.euler_steps, self.draws = values["state_width"], values["euler_steps"], values["draws"]
        cameras = tuple(sorted({camera for layout in layouts.values() for camera in layout.cameras}))
        self.backbone = reader(cameras, self.state_width, values)
        expert = {key.removeprefix("expert_"): values[key] for key in EXPERT_SIZES}
        self.expert = ActionExpert(self.backbone.hidden_size, **expert)
        self.visual_size, self.hidden_size = self.backbone.visual_size, self.backbone.hidden_size
        self.noise = NoiseSource(values["seed"])
        self.stage = STAGES["cpt"]

    @staticmethod
    def prompt(layout: Layout, instruction: str, horizon: int, dt_s: float) -> str:
        """See `prompt.embodiment_prompt`."""
        return embodiment_prompt(layout, instruction, horizon, dt_s)

    def configure_stage(self, stage: str, tokenizer: Tokenizer | None = None) -> None:
        """See `stages.configure_stage`."""
        configure_stage(self, stage)

    @property
    def whole_trajectories(self) -> bool:
        return self.stage.horizon is None

    def reset(self) -> None:
        """Starts the noise anew; there is no history."""
        self.noise.reset()

    def context(self, inputs: Inputs) -> Context:
        """Reads an observation. Raises PolicyError: an unknown embodiment, or images that the layout or the stage does not have."""
        layout = self._layout(inputs.embodiment)
        images, cameras = self._images(inputs, layout)
        answer = inputs.answer if self.stage.text_weight and isinstance(inputs, AnsweredBatch) else None
        reading = self.backbone.read(images, self._state(inputs.state), inputs.tokens, cameras, answer)
        mask = torch.arange(self.channels, device=inputs.tokens.device) < len(layout.channels)
        return Context(reading, self.expert.prefill(reading.sequence, reading.mask, reading.positions), mask)

    def velocity(self, context: Context, steps: Tensor | None = None) -> Velocity:
        """Returns the flow at one observation; channels beyond the robot's own are neither read nor moved.

        Args:
            context: see `context`.
            steps: bool [B, T], False past the end of a trajectory.
        """

        def velocity(rows: Tensor, tau: Tensor) -> Tensor:
            found = self.expert.velocity(context.prefix, torch.where(context.mask, rows, 0.0), tau, steps)
            return torch.where(context.mask, found.float(), 0.0)

        return velocity

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """See `network.Network.loss`. Rows of `actions` past the end of a trajectory are NaN; T may be any.

        Raises:
            PolicyError: see `context`; or there are no actions, or they have other channels than the layout.
            DataError: a row of actions is finite only in part.
        """
        actions, valid = self._targets(batch)
        context = self.context(batch)
        if self.draws > 1:
            actions, valid = (tensor.repeat_interleave(self.draws, 0) for tensor in (actions, valid))
        flow = self.velocity(context._replace(prefix=context.prefix.repeat(self.draws)), valid)
        tau = TAU_SAMPLERS[self.stage.tau](len(actions)).to(actions)
        mask = valid[..., None] & context.mask
        parts = {"flow": flow_loss(flow, actions, tau, torch.randn_like(actions), mask)}
        loss = parts["flow"]
        if context.reading.logits is not None:
            parts["text"] = text_loss(context.reading.logits, batch.answer)
            loss = loss + self.stage.text_weight * parts["text"]
        return loss, parts, context.reading.visual, context.reading.hidden

    def predict(self, inputs: Inputs) -> Tensor:
        """Returns normalised actions [B, horizon, D]; with `inputs.prefix` they continue it (real-time chunking)."""
        context = self.context(inputs)
        flow = self.velocity(context)
        noise = self.noise.draw((len(inputs.tokens), self.horizon, self.channels), inputs.tokens.device)
        if inputs.prefix is not None:
            flow = guided(flow, guidance(inputs.prefix, inputs.prefix_weights, tuple(noise.shape)))
        return solve(flow, noise, self.euler_steps)[..., : len(self._layout(inputs.embodiment).channels)]

    def _layout(self, embodiment: str) -> Layout:
        if embodiment not in self.layouts:
            raise PolicyError(f"embodiment '{embodiment}'; {did_you_mean(embodiment, self.layouts)}")
        return self.layouts[embodiment]

    def _images(self, inputs: Inputs, layout: Layout) -> tuple[Tensor, tuple[str, ...]]:
        count = 0 if inputs.images is None else inputs.images.shape[1]
        if not self.stage.images:
            if count:
                raise PolicyError(f"{count} images of {layout.embodiment}: this stage learns from text alone (T2A); leave them out")
            return inputs.state.new_zeros(len(inputs.tokens), 0, 3, 1, 1), ()
        if count != len(layout.cameras):
            raise PolicyError(f"{count} images; {layout.embodiment} has the cameras {', '.join(layout.cameras)}")
        return inputs.images, layout.cameras

    def _state(self, state: Tensor) -> Tensor | None:
        """[B, F] -> [B, state_width]."""
        if not self.state_width:
            return None
        return nn.functional.pad(state, (0, self.state_width - state.shape[1]))

    def _targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns actions [B, T, K] and which rows are valid, bool [B, T]."""
        wanted = len(self._layout(batch.embodiment).channels)
        if batch.actions is None or batch.actions.shape[-1] != wanted:
            shape = None if batch.actions is None else tuple(batch.actions.shape)
            raise PolicyError(f"actions of shape {shape} for {batch.embodiment}, expected [B, T, {wanted}]")
        finite = batch.actions.isfinite()
        valid = finite.all(-1)
        if not torch.equal(valid, finite.any(-1)):
            raise DataError(f"{batch.embodiment}: a row of actions is finite only in part; rows past the end are NaN as a whole")
        return nn.functional.pad(batch.actions, (0, self.channels - wanted)), valid


def text_loss(logits: Tensor, answer: Tensor) -> Tensor:
    """Cross-entropy of the next word: logits [B, n + 1, V] begin before the first of `answer` int64 [B, n]; padding does not count."""
    losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), answer, ignore_index=PAD_ID, reduction="sum")
    return losses / (answer != PAD_ID).sum().clamp(min=1)
