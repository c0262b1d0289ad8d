"""Decoder-only vision-language models: images, words, proprioception and [LRN] are one sequence of one language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_ros.policies.text import PAD_ID
from vla_ros.policies.vlms.backbone import Encoding, LayerStates
from vla_ros.policies.vlms.pixels import Pixels, prepare
from vla_ros.policies.vlms.presets import SIZES, load_model


class Part(NamedTuple):
    """A stretch of the sequence.

    Args:
        embeds: [B, n, W].
        mask: bool [B, n], False at padding.
        step: tokens see those of their own step and of earlier ones where a model's prefix is bidirectional.
        grid: rows and columns where they are patches of an image.
    """

    embeds: Tensor
    mask: Tensor
    step: int
    grid: tuple[int, int] | None = None


class DecoderOnly(nn.Module, ABC):
    """Base of the families; each says how its vision tower and its language model are called.

    `self.vlm` is the transformers model without its language head. A tied head is the embedding itself, and an untied one is kept only for
    discrete actions, so that no tensor is in the state dict twice.
    """

    SIZES: Mapping[str, object] = SIZES
    family = ""
    delimiters: tuple[tuple[int, ...], tuple[int, ...]] = (), ()  # ids before and after an image, where the model knows them
    decoder_only = True
    generates = True

    def __init__(self, cameras: tuple[str, ...], state_width: int, sizes: Mapping[str, object], vocabulary_head: bool = False) -> None:
        super().__init__()
        self.cameras = tuple(cameras)
        self._load(sizes, vocabulary_head)
        embedding = self._embedding()
        self.vocabulary_size, self.hidden_size = embedding.weight.shape
        self.visual_size = self.hidden_size * len(self.cameras)
        self.lrn = nn.Parameter(0.02 * torch.randn(self.hidden_size))
        self.read_state = nn.Linear(state_width, self.hidden_size) if state_width and sizes["use_state"] else None
        self.pixels = self._pixels()

    def encode(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...], layers: bool = False) -> Encoding:
        """See `backbone.Backbone`; `layers` fills `Encoding.layers`."""
        parts, visual = self._observation(images, state, tokens, cameras)
        output = self._run(parts, output_hidden_states=layers)
        sequence = output.last_hidden_state.float()
        return Encoding(sequence[:, -1], visual, sequence, _mask(parts), output.hidden_states if layers else None)

    def read_layers(self, images: Tensor, tokens: Tensor, cameras: tuple[str, ...], queries: Tensor) -> LayerStates:
        """Returns the states of all `depth` layers; see `encode`, and `queries` [N_q, hidden_size] take the place of [LRN]."""
        features = self._look(images)
        parts = [*self._views(features, 0), self._words(tokens, 0)]
        mask = _mask(parts)
        count = mask.shape[1]
        of_pictures = [part.grid is not None for part in parts for _ in range(part.mask.shape[1])]
        asking = queries.expand(len(tokens), -1, -1)
        parts.append(Part(asking, mask.new_ones(asking.shape[:2]), 1))
        states = [layer.float() for layer in self._run(parts, output_hidden_states=True).hidden_states[1:]]
        return LayerStates(
            tuple(layer[:, :count] for layer in states), tuple(layer[:, count:] for layer in states),
            mask, torch.tensor(of_pictures, device=mask.device), self._pooled(features, cameras),
        )  # fmt: skip

    def interleave(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...]) -> Encoding:
        """See `backbone.Backbone`."""
        steps = images.shape[1]
        looked = [self._look(images[:, step]) for step in range(steps)]
        parts, ends = [self._words(tokens, 0)], []
        for step, features in enumerate(looked):
            parts += [*self._views(features, 2 * step), *self._proprioception(None if state is None else state[:, step], 2 * step)]
            parts.append(self._learnable(len(images), 2 * step + 1))
            ends.append(sum(part.mask.shape[1] for part in parts) - 1)
        sequence = self._run(parts).last_hidden_state.float()
        return Encoding(sequence[:, ends], self._pooled(looked[-1], cameras), sequence, _mask(parts))

    def score(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...], ids: Tensor) -> tuple[Tensor, Encoding]:
        """See `backbone.Backbone`."""
        parts, visual = self._observation(images, state, tokens, cameras)
        last = parts[-1].step
        parts += [self._ids(ids[:, i : i + 1], last + 1 + i) for i in range(ids.shape[1])]
        sequence = self._run(parts).last_hidden_state
        start = sequence.shape[1] - ids.shape[1] - 1
        seen, mask = sequence[:, : start + 1].float(), _mask(parts)[:, : start + 1]
        return self._vocabulary(sequence[:, start:]), Encoding(seen[:, -1], visual, seen, mask)

    @torch.no_grad()
    def generate(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...], count: int, ids: range) -> Tensor:
        """See `backbone.Backbone`. The observation is read once; each id costs one token."""
        parts, _ = self._observation(images, state, tokens, cameras)
        mask, positions = _mask(parts), self._positions(parts)
        output = self._run(parts, use_cache=True)
        chosen: list[Tensor] = []
        while True:
            logits = self._vocabulary(output.last_hidden_state[:, -1])
            chosen.append(logits[:, ids.start : ids.stop].argmax(-1) + ids.start)
            if len(chosen) == count:
                return torch.stack(chosen, dim=1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = positions[..., -1:] + 1
            output = self._language(
                self._embed(chosen[-1][:, None]), mask, None, positions, past_key_values=output.past_key_values, use_cache=True
            )

    def _observation(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...]) -> tuple[list[Part], Tensor]:
        """The sequence of one observation, and `Encoding.visual`."""
        features = self._look(images)
        parts = [*self._views(features, 0), self._words(tokens, 0), *self._proprioception(state, 0), self._learnable(len(images), 1)]
        return parts, self._pooled(features, cameras)

    def _run(self, parts: list[Part], **options: object) -> object:
        dtype = self._embedding().weight.dtype
        embeds = torch.cat([part.embeds.to(dtype) for part in parts], dim=1)
        steps = torch.tensor([part.step for part in parts for _ in range(part.mask.shape[1])], device=embeds.device)
        return self._language(embeds, _mask(parts), steps, self._positions(parts), **options)

    def _look(self, images: Tensor) -> Tensor:
        """[B, C, 3, H, W] -> the language model's view of it [B, C, n, W]."""
        dtype = self._embedding().weight.dtype
        features = self._features(prepare(images.flatten(0, 1), self.pixels).to(dtype))
        return features.unflatten(0, images.shape[:2])

    def _views(self, features: Tensor, step: int) -> list[Part]:
        before, after = self.delimiters
        parts = []
        for view in features.unbind(1):
            side = round(view.shape[1] ** 0.5)
            grid = (side, view.shape[1] // side)
            shown = Part(view, view.new_ones(view.shape[:2], dtype=torch.bool), step, grid)
            parts += [*self._marks(before, view, step), shown, *self._marks(after, view, step)]
        return parts

    def _marks(self, ids: tuple[int, ...], view: Tensor, step: int) -> list[Part]:
        if not ids or max(ids) >= self._embedding().weight.shape[0]:
            return []
        return [self._ids(torch.tensor([ids], device=view.device).expand(len(view), -1), step)]

    def _words(self, tokens: Tensor, step: int) -> Part:
        return Part(self._embed(tokens), tokens != PAD_ID, step)

    def _ids(self, ids: Tensor, step: int) -> Part:
        return Part(self._embed(ids), torch.ones_like(ids, dtype=torch.bool), step)

    def _proprioception(self, state: Tensor | None, step: int) -> list[Part]:
        if state is None or self.read_state is None:
            return []
        return [
            Part(self.read_state(state.to(self.read_state.weight.dtype))[:, None], state.new_ones(len(state), 1, dtype=torch.bool), step)
        ]

    def _learnable(self, batch: int, step: int) -> Part:
        return Part(self.lrn.expand(batch, 1, -1), torch.ones(batch, 1, dtype=torch.bool, device=self.lrn.device), step)

    def _pooled(self, features: Tensor, cameras: tuple[str, ...]) -> Tensor:
        means = features.float().mean(2)
        absent = torch.zeros_like(means[:, 0])
        return torch.cat([means[:, cameras.index(name)] if name in cameras else absent for name in self.cameras], dim=-1)

    def _positions(self, parts: list[Part]) -> Tensor:
        """[B, N], without gaps at padding."""
        return (_mask(parts).long().cumsum(1) - 1).clamp(min=0)

    def _vocabulary(self, hidden: Tensor) -> Tensor:
        logits = self.lm_head(hidden) if self.lm_head is not None else functional.linear(hidden, self._embedding().weight)
        return logits.float()

    def _embed(self, ids: Tensor) -> Tensor:
        return self._embedding()(ids)

    # What the families differ in.

    @property
    def depth(self) -> int:
        """Layers of the language model."""
        return self.vlm.config.get_text_config().num_hidden_layers

    def _load(self, sizes: Mapping[str, object], vocabulary_head: bool) -> None:
        """Sets `vlm` and `lm_head`."""
        model = load_model(self.family, sizes)
        head = model.get_output_embeddings()
        tied = head.weight is model.get_input_embeddings().weight
        self.vlm, self.lm_head = model.model, head if vocabulary_head and not tied else None

    def _embedding(self) -> nn.Embedding:
        return self.vlm.get_input_embeddings()

    @abstractmethod
    def _pixels(self) -> Pixels:
        """What the vision tower expects."""

    @abstractmethod
    def _features(self, pixels: Tensor) -> Tensor:
        """[N, 3, size, size] -> [N, n, W]."""

    def _language(self, embeds: Tensor, mask: Tensor, steps: Tensor | None, positions: Tensor, **options: object) -> object:
        """Runs the language model. `mask` is bool [B, past + N]; `steps` [N] belong to `Part.step`, None while generating."""
        return self.vlm.language_model(inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions, **options)


def _mask(parts: list[Part]) -> Tensor:
    return torch.cat([part.mask for part in parts], dim=1)
