"""VITA-VLA, the student: a vision-language model whose action tokens learn to hold what the teacher's hold. See `network.Network`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_ros.core.errors import PolicyError
from vla_ros.policies.layout import Layout
from vla_ros.policies.network import Batch, Inputs, as_window
from vla_ros.policies.text import PAD_ID
from vla_ros.policies.vita_vla.backbones import BACKBONES
from vla_ros.policies.vita_vla.channels import Channels, StateEncoder
from vla_ros.policies.vita_vla.decoder import ActionDecoder, action_loss
from vla_ros.policies.vita_vla.history import apart_from_padding, chosen_steps, layout_of, sight, targets_of, tokens_of
from vla_ros.policies.vita_vla.sizes import read_sizes
from vla_ros.policies.vita_vla.stages import STAGES, configure_stage
from vla_ros.policies.vita_vla.stream import Stream, places
from vla_ros.policies.vita_vla.teacher import Teacher, load_teacher
from vla_ros.policies.vlms.backbone import REQUIRED

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SIZES: dict[str, object] = {
    "teacher": "",  # a checkpoint's name or folder; stages that start from the teacher need it, driving does not
    "teacher_width": REQUIRED,  # d
}


class VitaVla(nn.Module):
    """Each step is [pictures][words][state][action token] x horizon, all copies of one parameter; the last `window` steps are seen.

    `sizes` are the keys of `sizes.SHARED`, of `SIZES` and of the backbone. It starts in the stage `finetune`; see `stages`.
    """

    STAGES = STAGES

    def __init__(self, layouts: Mapping[str, Layout], horizon: int, sizes: Mapping[str, object]) -> None:
        super().__init__()
        backbone, self._sizes = read_sizes(sizes, SIZES, "backbone", BACKBONES)
        self.layouts, self.horizon, self.window = dict(layouts), horizon, int(self._sizes["window"])
        self._gripper_weight, width = float(self._sizes["gripper_weight"]), int(self._sizes["teacher_width"])
        self.channels = Channels(layouts, float(self._sizes["open_above"]))
        cameras = tuple(dict.fromkeys(name for layout in layouts.values() for name in layout.cameras))
        self.backbone = backbone(cameras, self._sizes)
        self.visual_size, self.hidden_size = 0, self.backbone.hidden_size
        self.state = StateEncoder(self.channels, self.hidden_size)
        self.token = nn.Parameter(0.02 * torch.randn(self.hidden_size))
        self.mapper = nn.Sequential(
            nn.Linear(self.hidden_size, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.decoder = ActionDecoder(self.channels, width)
        self._teacher: list[Teacher] = []  # in a list, so that it is no part of this module: not trained, not saved
        self._stream = Stream(self.window)
        configure_stage(self, "finetune")

    @staticmethod
    def prompt(layout: Layout, instruction: str, horizon: int, dt_s: float) -> str:
        """The instruction alone."""
        return instruction

    def configure_stage(self, stage: str, tokenizer: Tokenizer | None = None) -> None:
        """See `stages.configure_stage`."""
        configure_stage(self, stage, tokenizer)

    def attend(self, tokenizer: Tokenizer | None = None) -> Teacher:
        """Loads the teacher that `network.teacher` names and takes over its decoder and heads. Raises PolicyError, see `load_teacher`."""
        teacher = load_teacher(str(self._sizes["teacher"]), self.layouts, self.horizon, self._sizes, tokenizer)
        self.decoder.load_state_dict(teacher.network.decoder.state_dict())
        self.backbone.adopt(teacher.network)
        self._teacher = [teacher]
        return teacher

    def reset(self) -> None:
        """Forgets the history."""
        self._stream.reset()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], None, Tensor]:
        """See `network.Network.loss`; in the stage `align` there need be no actions.

        Otherwise each call sees a random number of steps 1 .. window, so that the start of a rollout is known too.
        """
        if self.stage.aligns:
            return self._alignment(batch)
        targets = targets_of(batch, self.channels)
        states = self.action_states(*as_window(batch, chosen_steps(batch, self.window, self.training)), batch)[:, -1]
        arms, closing = self.channels.own(*self.decoder(self.mapper(states)), batch.embodiment)
        return *action_loss(arms, closing, targets, self._gripper_weight), None, states.float().mean(1)

    def _alignment(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], None, Tensor]:
        if not self._teacher:
            raise PolicyError("stage align without a teacher: call configure_stage(network, 'align') after it was built on a device")
        wanted = self._teacher[0].states(batch)
        states = self.action_states(*as_window(batch, self.window), batch, everywhere=True)
        loss = functional.mse_loss(self.mapper(states).float(), wanted)
        return loss, {"align": loss}, None, states[:, -1].float().mean(1)

    def predict(self, inputs: Inputs) -> Tensor:
        """See `network.Network.predict`. A batch that has a window itself leaves the history alone."""
        images, state = as_window(inputs, self.window)
        if inputs.images.ndim == 6:
            states = self.action_states(images, state, inputs)[:, -1]
        else:
            observed, mask = self._observe(images, state, inputs)
            states = self._stream.advance(self.backbone, observed[:, 0], mask, self._acting(len(mask)), inputs.embodiment)
        own = self.channels.own(*self.decoder(self.mapper(states)), inputs.embodiment)
        return self.channels.actions(*own, inputs.embodiment)

    def action_states(self, images: Tensor, state: Tensor, inputs: Inputs, everywhere: bool = False) -> Tensor:
        """Reads a window in one pass.

        Args:
            images, state: see `network.as_window`.
            inputs: the tokens, and whose observations they are.
            everywhere: whether every step has action tokens, or the newest alone.

        Returns:
            Their last states [B, W, T, hidden_size], or [B, 1, T, hidden_size].
        """
        observed, mask = self._observe(images, state, inputs)
        batch, steps, count = observed.shape[:3]
        first = 0 if everywhere else steps - 1
        numbers, acts = tokens_of(steps, count, self.horizon, first, observed.device)
        there = torch.ones(steps, count + self.horizon, dtype=torch.bool, device=observed.device)
        there[:first, count:] = False
        offsets, taken = places(mask, self.horizon)
        positions = taken[:, None, None] * torch.arange(steps, device=mask.device)[:, None] + offsets[:, None]
        real = functional.pad(mask, (0, self.horizon), value=True)[:, None].expand(-1, steps, -1)[:, there]
        seen = apart_from_padding(sight(numbers, acts, self.window, causal=True), real)
        acting = self._acting(batch).to(observed.dtype)[:, None].expand(-1, steps, -1, -1)
        states = self.backbone.run(torch.cat([observed, acting], dim=2)[:, there], seen, positions[:, there])
        return states[:, acts].unflatten(1, (-1, self.horizon))

    def _observe(self, images: Tensor, state: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Returns the tokens [B, W, n, hidden_size] of W observations, and which are no padding, bool [B, n], the same in each."""
        layout, steps = layout_of(self.layouts, inputs), images.shape[1]
        with torch.no_grad():  # the vision learns in no stage
            shown = self.backbone.look(images.flatten(0, 1), inputs.tokens.repeat_interleave(steps, 0), layout.cameras)
        shown = shown.unflatten(0, images.shape[:2])
        words = self.backbone.embed(inputs.tokens)[:, None].expand(-1, steps, -1, -1)
        arm = self.state(*self.channels.state(state, layout.embodiment))[:, :, None]
        words_there = inputs.tokens != PAD_ID
        mask = torch.cat([words_there.new_ones(len(shown), shown.shape[2]), words_there, words_there.new_ones(len(shown), 1)], dim=1)
        return torch.cat([shown, words, arm], dim=2), mask

    def _acting(self, batch: int) -> Tensor:
        return self.token.expand(batch, self.horizon, -1)
