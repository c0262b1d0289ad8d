"""What a backbone is to a system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

REQUIRED = ...  # a size without a default


class Encoding(NamedTuple):
    """What a backbone saw.

    Args:
        hidden: [B, hidden_size], the state of the learnable token [LRN].
        visual: [B, visual_size], features of the images alone, every camera's in its own columns; None: it has none.
        sequence: [B, N, hidden_size], the last states of all tokens, what an action expert attends to.
        mask: bool [B, N]: which of them are no padding.
        layers: the states after each layer, first the embeddings; None unless asked for.
    """

    hidden: Tensor
    visual: Tensor | None
    sequence: Tensor
    mask: Tensor
    layers: tuple[Tensor, ...] | None = None


class LayerStates(NamedTuple):
    """What each layer of a backbone made of an observation and of learnable queries behind it, which nothing else sees.

    Args:
        seen: [B, N, hidden_size] after each layer: pictures and words, without the queries.
        queries: [B, N_q, hidden_size] after each layer.
        mask: bool [B, N], False at padding.
        patches: bool [N]: which are of pictures.
        visual: as in `Encoding`.
    """

    seen: tuple[Tensor, ...]
    queries: tuple[Tensor, ...]
    mask: Tensor
    patches: Tensor
    visual: Tensor | None


class Backbone(Protocol):
    """A `torch.nn.Module` besides.

    `decoder_only` says whether images, words and [LRN] are one sequence, which `interleave` needs; `generates` whether it has a language
    model of `vocabulary_size` ids for `score` and `generate`. `SIZES` are its keys of `network:` with their defaults.
    """

    SIZES: Mapping[str, object]
    decoder_only: bool
    generates: bool
    hidden_size: int
    visual_size: int

    def __init__(self, cameras: tuple[str, ...], state_width: int, sizes: Mapping[str, object], vocabulary_head: bool = False) -> None:
        """Builds it for views that have one of the names `cameras`, and `state_width` numbers of proprioception.

        `vocabulary_head`: `score` and `generate` will be used, so keep an untied output layer of the language model.
        """

    def encode(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...]) -> Encoding:
        """Returns what the [LRN] of each observation says.

        Args:
            images: float [B, C, 3, H, W] in [-1, 1].
            state: float [B, state_width], or None: it is not read.
            tokens: int64 [B, L], 0 where there is no word.
            cameras: names of the C views; cameras of the backbone that are not among them count as zero.
        """

    def interleave(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...]) -> Encoding:
        """Returns the states [B, W, hidden_size] of the [LRN]s in one sequence words, (observation, [LRN]) x W.

        `images` is [B, W, C, 3, H, W] and `state` [B, W, F]; `visual` belongs to the last observation. Only where `decoder_only`.
        """

    def score(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...], ids: Tensor) -> tuple[Tensor, Encoding]:
        """Returns logits [B, n + 1, vocabulary] of what follows [LRN] and each of `ids` [B, n]. Only where `generates`."""

    def generate(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...], count: int, ids: range) -> Tensor:
        """Returns the `count` likeliest ids [B, count] out of `ids` that follow [LRN], one after the other. Only where `generates`."""
