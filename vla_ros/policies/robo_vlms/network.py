"""RoboVLMs: a backbone says what one observation, or a window of them, means; a head names the chunk."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vla_ros.core.errors import PolicyError
from vla_ros.policies.columns import action_columns, state_columns
from vla_ros.policies.layout import Layout
from vla_ros.policies.network import Batch, Inputs, as_window
from vla_ros.policies.robo_vlms.bins import Vocabulary
from vla_ros.policies.robo_vlms.flow_head import FlowHead
from vla_ros.policies.robo_vlms.heads import HEADS, BinHead, Seen
from vla_ros.policies.robo_vlms.sizes import read_sizes
from vla_ros.policies.vlms.backbone import Encoding


class RoboVlms(nn.Module):
    """The system (see `network.Network`).

    With a history (`window` > 1: interleaved, policy_head) an observation that lacks earlier ones counts as if it had been there all the
    time: at the start of a rollout, and in training batches without a window.
    """

    def __init__(self, layouts: Mapping[str, Layout], horizon: int, sizes: Mapping[str, object]) -> None:
        super().__init__()
        backbone, values = read_sizes(sizes)
        self._layouts, self.horizon = dict(layouts), horizon
        self._states, self._actions = state_columns(layouts), action_columns(layouts)
        self.formulation, self.window = str(values["formulation"]), int(values["window"])
        cameras = tuple(dict.fromkeys(name for layout in layouts.values() for name in layout.cameras))
        writes = values["head"] == "discrete" and backbone.generates
        self.backbone = backbone(cameras, self._states.width, values, vocabulary_head=writes)
        self.hidden_size, self.visual_size = self.backbone.hidden_size, self.backbone.visual_size
        self._vocabulary = self.head = None
        if writes:
            self._vocabulary = Vocabulary(self.backbone.vocabulary_size, int(values["vocabulary"]))
        else:
            self.head = self._head(values)
        self.reset()

    def _head(self, values: Mapping[str, object]) -> nn.Module:
        name = values["head"]
        # An MLP behind an interleaved sequence needs no other [LRN] than the last, which has seen the others.
        window = 1 if name == "mlp" and self.formulation == "interleaved" else self.window
        arguments = self.hidden_size, self.horizon, self._actions.width, window, values
        if name == "discrete":
            return BinHead(*arguments)
        if name in ("flow", "expert"):
            return FlowHead(*arguments, state_width=self._states.width if name == "expert" else 0)
        return HEADS[name](*arguments)

    @staticmethod
    def prompt(layout: Layout, instruction: str, horizon: int, dt_s: float) -> str:
        """The instruction alone."""
        return instruction

    def reset(self) -> None:
        """Forgets the history and starts the noise anew."""
        self._history: list[tuple[Tensor, ...]] = []
        self._history_of = ""
        if isinstance(self.head, FlowHead):
            self.head.reset()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor | None, Tensor | None]:
        """See `network.Network`."""
        if batch.actions is None:
            raise PolicyError("a training batch needs actions [B, T, D]")
        layout = self._layout(batch)
        if self._vocabulary is not None:
            state = self._states.spread(batch.state, batch.embodiment)
            loss, parts, encoding = self._vocabulary.loss(self.backbone, batch, state, layout.cameras, batch.actions)
            return loss, parts, encoding.visual, encoding.hidden
        images, state = as_window(batch, self.window)
        encoding, window = self._encode(images, state, batch)
        loss, parts = self.head.loss(self._seen(encoding, window, state[:, -1], batch), batch.actions)
        return loss, parts, encoding.visual, window[:, -1]

    def predict(self, inputs: Inputs) -> Tensor:
        """See `network.Network`. A batch that has a window itself leaves the history alone."""
        layout = self._layout(inputs)
        if self._vocabulary is not None:
            state = self._states.spread(inputs.state, inputs.embodiment)
            shape = self.horizon, len(layout.channels)
            return self._vocabulary.predict(self.backbone, inputs, state, layout.cameras, shape)
        images, state = as_window(inputs, self.window)
        if self.formulation == "interleaved" and inputs.images.ndim == 5:
            images, state = self._remember(inputs, images[:, -1], state[:, -1])
        encoding, window = self._encode(images, state, inputs)
        if self.formulation == "policy_head" and inputs.images.ndim == 5:
            (window,) = self._remember(inputs, window[:, -1])
        seen = self._seen(encoding, window, state[:, -1], inputs)
        if isinstance(self.head, FlowHead):
            return self.head.predict(seen, inputs.prefix, inputs.prefix_weights)
        return self.head.predict(seen)

    def _layout(self, inputs: Inputs) -> Layout:
        self._actions.of(inputs.embodiment)
        layout = self._layouts[inputs.embodiment]
        if inputs.images.shape[-4] != len(layout.cameras):
            raise PolicyError(f"{inputs.embodiment}: {inputs.images.shape[-4]} images, expected {', '.join(layout.cameras)}")
        if self.window == 1 and inputs.images.ndim != 5:
            raise PolicyError(f"images {tuple(inputs.images.shape)}: formulation {self.formulation} reads one observation [B, C, 3, H, W]")
        return layout

    def _encode(self, images: Tensor, state: Tensor, inputs: Inputs) -> tuple[Encoding, Tensor]:
        """Returns the encoding of the newest observation, and the [LRN]s [B, W, hidden_size]."""
        cameras, state = self._layouts[inputs.embodiment].cameras, self._states.spread(state, inputs.embodiment)
        if self.formulation == "interleaved":
            encoding = self.backbone.interleave(_filled(images, self.window), _filled(state, self.window), inputs.tokens, cameras)
            return encoding, encoding.hidden
        batch, steps = images.shape[:2]
        tokens = inputs.tokens.repeat_interleave(steps, dim=0)
        every = self.backbone.encode(images.flatten(0, 1), state.flatten(0, 1), tokens, cameras)
        newest = slice(steps - 1, None, steps)
        visual = None if every.visual is None else every.visual[newest]
        encoding = Encoding(every.hidden[newest], visual, every.sequence[newest], every.mask[newest])
        return encoding, _filled(every.hidden.unflatten(0, (batch, steps)), self.window)

    def _seen(self, encoding: Encoding, window: Tensor, state: Tensor, inputs: Inputs) -> Seen:
        grippers = torch.from_numpy(self._layouts[inputs.embodiment].grippers).to(window.device)
        if self.formulation == "interleaved" and isinstance(self.head, HEADS["mlp"]):
            window = window[:, -1:]
        spread = self._states.spread(state, inputs.embodiment)
        dtype = next(self.head.parameters()).dtype
        window, sequence, spread = (part.to(dtype) for part in (window, encoding.sequence, spread))
        return Seen(window, sequence, encoding.mask, spread, self._actions.of(inputs.embodiment), grippers)

    def _remember(self, inputs: Inputs, *newest: Tensor) -> tuple[Tensor, ...]:
        """Adds [B, ...] to the history and returns all of it, [B, W, ...] each."""
        if self._history and (self._history_of != inputs.embodiment or self._history[0][0].shape != newest[0].shape):
            raise PolicyError(
                f"the history holds {len(self._history[0][0])} x {self._history_of}, now come {len(newest[0])} x {inputs.embodiment}: "
                "call reset() before another rollout"
            )
        self._history_of = inputs.embodiment
        self._history = [*self._history, tuple(part.detach() for part in newest)][-self.window :]
        return tuple(_filled(torch.stack(parts, dim=1), self.window) for parts in zip(*self._history, strict=True))


def _filled(values: Tensor, window: int) -> Tensor:
    """[B, W, ...] -> [B, window, ...]: what came before the first is taken to be like it."""
    missing = window - values.shape[1]
    return values if missing <= 0 else torch.cat([values[:, :1].expand(-1, missing, *values.shape[2:]), values], dim=1)
