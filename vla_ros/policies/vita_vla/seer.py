"""The teacher: a small action model after Seer, without its foresight of images. See `network.Network`; it is a system of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vla_ros.policies.layout import Layout
from vla_ros.policies.network import Batch, Inputs, as_window
from vla_ros.policies.vita_vla.channels import Channels, StateEncoder
from vla_ros.policies.vita_vla.decoder import ActionDecoder, action_loss
from vla_ros.policies.vita_vla.eyes import EYES
from vla_ros.policies.vita_vla.history import Memory, chosen_steps, layout_of, sight, targets_of, tokens_of
from vla_ros.policies.vita_vla.sizes import read_sizes

SIZES: dict[str, object] = {"width": 192, "layers": 3, "heads": 4}


class Seer(nn.Module):
    """Each observation is [words, views, state] and `horizon` action tokens; a transformer, causal in steps, reads `window` of them.

    The tokens of an observation do not depend on others, so a rollout keeps them; the transformer runs over the window anew each time.
    """

    def __init__(self, layouts: Mapping[str, Layout], horizon: int, sizes: Mapping[str, object]) -> None:
        super().__init__()
        eyes, values = read_sizes(sizes, SIZES, "eyes", EYES)
        self.layouts, self.horizon, self.window = dict(layouts), horizon, int(values["window"])
        self.width, self._gripper_weight = int(values["width"]), float(values["gripper_weight"])
        self.channels = Channels(layouts, float(values["open_above"]))
        cameras = tuple(dict.fromkeys(name for layout in layouts.values() for name in layout.cameras))
        self.eyes = eyes(cameras, values)
        self.read_text = nn.Linear(self.eyes.text_width, self.width)
        self.read_views = nn.ModuleList(nn.Linear(self.eyes.width, self.width) for _ in cameras)
        self.places = nn.Parameter(0.02 * torch.randn(len(cameras), self.eyes.tokens, self.width))
        self.state = StateEncoder(self.channels, self.width)
        self.actions = nn.Parameter(0.02 * torch.randn(horizon, self.width))
        self.steps = nn.Parameter(0.02 * torch.randn(self.window, self.width))
        heads, layers = int(values["heads"]), int(values["layers"])
        layer = nn.TransformerEncoderLayer(
            self.width, heads, 4 * self.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, layers, nn.LayerNorm(self.width), enable_nested_tensor=False)
        self.decoder = ActionDecoder(self.channels, self.width)
        self.visual_size, self.hidden_size = self.eyes.width * len(cameras), self.width
        self._memory = Memory(self.window)

    @staticmethod
    def prompt(layout: Layout, instruction: str, horizon: int, dt_s: float) -> str:
        """The instruction alone."""
        return instruction

    def reset(self) -> None:
        """Forgets the history."""
        self._memory.reset()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """See `network.Network.loss`. Each call sees a random number of steps 1 .. window, so that the start of a rollout is known too."""
        targets = targets_of(batch, self.channels)
        layout = layout_of(self.layouts, batch)
        images, state = as_window(batch, chosen_steps(batch, self.window, self.training))
        observed, visual = self._observe(images, state, batch.tokens, layout)
        states = self._think(observed)[:, -1]
        arms, closing = self.channels.own(*self.decoder(states), batch.embodiment)
        return *action_loss(arms, closing, targets, self._gripper_weight), visual, states.float().mean(1)

    def predict(self, inputs: Inputs) -> Tensor:
        """See `network.Network.predict`. A batch that has a window itself leaves the history alone."""
        layout = layout_of(self.layouts, inputs)
        images, state = as_window(inputs, self.window)
        observed, _ = self._observe(images, state, inputs.tokens, layout)
        if inputs.images.ndim == 5:
            observed = self._memory.add(observed[:, -1], inputs.embodiment)
        return self.act(self._think(observed)[:, -1], inputs.embodiment)

    def act(self, states: Tensor, embodiment: str) -> Tensor:
        """States of action tokens [B, T, width] -> normalised actions [B, T, D]."""
        return self.channels.actions(*self.channels.own(*self.decoder(states), embodiment), embodiment)

    def action_states(self, inputs: Inputs) -> Tensor:
        """Returns the states [B, W, T, width] of the action tokens of every step of a window: what the student learns to have."""
        images, state = as_window(inputs, self.window)
        observed, _ = self._observe(images, state, inputs.tokens, layout_of(self.layouts, inputs))
        return self._think(observed, everywhere=True)

    def _observe(self, images: Tensor, state: Tensor, tokens: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Returns the tokens [B, W, n, width] of W observations, and the newest one's visual features [B, visual_size]."""
        batch, steps = images.shape[:2]
        text = self.eyes.read(tokens)
        seen = self._look(images, text, layout.cameras)
        indices = [self.eyes.names.index(name) for name in layout.cameras]
        # A keypoint must stay exact to a tenth of a pixel, which bfloat16 cannot hold.
        with torch.autocast(images.device.type, enabled=False):
            seen = seen.to(self.read_text.weight.dtype)
            views = [self.read_views[i](seen[:, :, at]) + self.places[i] for at, i in enumerate(indices)]
            words = self.read_text(text.to(seen.dtype))[:, None, None].expand(-1, steps, -1, -1)
            state = self.state(*self.channels.state(state, layout.embodiment))[:, :, None]
        pooled = seen[:, -1].float().mean(2)
        visual = pooled.new_zeros(batch, len(self.eyes.names), self.eyes.width)
        visual[:, indices] = pooled
        return torch.cat([words, *views, state], dim=2), visual.flatten(1)

    def _look(self, images: Tensor, text: Tensor, cameras: tuple[str, ...]) -> Tensor:
        """[B, W, C, 3, H, W] -> [B, W, C, n, width of the eyes].

        The newest pictures alone teach the eyes: the older ones' gradients would double what a training step costs.
        """
        seen = [self.eyes.look(images[:, -1], text, cameras)[:, None]]
        if older := images.shape[1] - 1:
            with torch.no_grad():
                before = self.eyes.look(images[:, :-1].flatten(0, 1), text.repeat_interleave(older, 0), cameras)
            seen.insert(0, before.unflatten(0, (-1, older)))
        return torch.cat(seen, dim=1)

    def _think(self, observed: Tensor, everywhere: bool = False) -> Tensor:
        """[B, W, n, width] -> states of the action tokens, [B, W, T, width] of each step or [B, 1, T, width] of the newest."""
        batch, steps, count = observed.shape[:3]
        first = 0 if everywhere else steps - 1
        acting = self.actions.expand(batch, steps, -1, -1)
        tokens = torch.cat([observed, acting], dim=2) + self.steps[:steps, None]
        numbers, acts = tokens_of(steps, count, self.horizon, first, tokens.device)
        there = torch.ones(steps, tokens.shape[2], dtype=torch.bool, device=tokens.device)
        there[:first, count:] = False
        states = self.transformer(tokens[:, there], mask=~sight(numbers, acts, self.window, causal=False))
        return states[:, acts].unflatten(1, (-1, self.horizon))
