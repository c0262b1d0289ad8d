"""The small backbone with layers: convolutions find points in the pictures, a transformer makes points and words sense, queries read along.

It is what a tiny MoL-MSM needs: states of every layer like a vision-language model's, quick enough on a CPU, trained from scratch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vla_ros.core.errors import PolicyError
from vla_ros.policies.mol_msm.attention import attend
from vla_ros.policies.text import PAD_ID
from vla_ros.policies.vlms.backbone import REQUIRED, LayerStates
from vla_ros.policies.vlms.convolutional import CameraEncoder, TextEncoder, spatial_softmax

_OCTAVES = 5  # of the sines and cosines of a point's place, without which bfloat16 would lose a tenth of a pixel
_PLACE = 2 * (1 + 2 * _OCTAVES)


class Layer(nn.Module):
    """One transformer layer for two streams: what is seen sees itself, the queries see both."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, seen: Tensor, queries: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both streams, [B, N, d] and [B, N_q, d]; `mask` bool [B, N] is False at padding."""
        query, key, value = self.qkv(self.norm(seen)).chunk(3, -1)
        asking, own_key, own = self.qkv(self.norm(queries)).chunk(3, -1)
        found = attend(query, key, value, self.heads, mask)
        every = torch.cat([mask, mask.new_ones(queries.shape[:2])], 1)
        told = attend(asking, torch.cat([key, own_key], 1), torch.cat([value, own], 1), self.heads, every)
        return self._add(seen, found), self._add(queries, told)

    def _add(self, x: Tensor, found: Tensor) -> Tensor:
        x = x + self.output(found)
        return x + self.mlp(self.norm_mlp(x))


class LayeredReader(nn.Module):
    """A camera's tokens are its points: where each one is, and the features there."""

    SIZES: Mapping[str, object] = {
        "vocabulary": REQUIRED,
        "text_width": 128,
        "hidden_size": 128,
        "layers": 5,
        "heads": 4,
        "keypoints": 24,  # per camera
    }

    def __init__(self, cameras: tuple[str, ...], state_width: int, sizes: Mapping[str, object]) -> None:
        super().__init__()
        text_width, width, points = (int(sizes[name]) for name in ("text_width", "hidden_size", "keypoints"))
        if width % int(sizes["heads"]):
            raise PolicyError(f"network.heads = {sizes['heads']}: hidden_size = {width} is no multiple of it")
        self.names, self.hidden_size, self.depth = tuple(cameras), width, int(sizes["layers"])
        self.text = TextEncoder(int(sizes["vocabulary"]), text_width, int(sizes["text_length"]))
        self.cameras = nn.ModuleList(CameraEncoder(text_width, points) for _ in self.names)
        self.visual_size = sum(camera.width for camera in self.cameras)
        self.read_points = nn.ModuleList(nn.Linear(_PLACE + camera.features_width, width) for camera in self.cameras)
        self.points = nn.Parameter(0.02 * torch.randn(len(self.names), points, width))
        self.read_words = nn.Linear(text_width, width)
        self.layers = nn.ModuleList(Layer(width, int(sizes["heads"])) for _ in range(self.depth))

    def read_layers(self, images: Tensor, tokens: Tensor, cameras: tuple[str, ...], queries: Tensor) -> LayerStates:
        """See `vlms.backbone.LayerStates`.

        Args:
            images: float [B, C, 3, H, W] in [-1, 1].
            tokens: int64 [B, L], 0 where there is no word.
            cameras: names of the C views.
            queries: [N_q, hidden_size].
        """
        words = self.text.words(tokens)
        text = self.text.pool(words, tokens)
        views = [self._view(images[:, cameras.index(name)], text, index) for index, name in enumerate(self.names)]
        x = torch.cat([*(points for points, _ in views), self.read_words(words).float()], 1)
        count = sum(points.shape[1] for points, _ in views)
        mask = torch.cat([tokens.new_ones(len(tokens), count, dtype=torch.bool), tokens != PAD_ID], 1)
        asking = queries.expand(len(tokens), -1, -1)
        seen, asked = [], []
        for layer in self.layers:
            x, asking = layer(x, asking, mask)
            seen.append(x)
            asked.append(asking)
        patches = torch.arange(x.shape[1], device=x.device) < count
        return LayerStates(tuple(seen), tuple(asked), mask, patches, torch.cat([visual for _, visual in views], -1))

    def _view(self, image: Tensor, text: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """One camera's tokens [B, keypoints, d], and what the auxiliary losses read of it [B, V]."""
        camera = self.cameras[index]
        features = camera.look(image, text).float()
        with torch.autocast(image.device.type, enabled=False):  # places in a picture, which bfloat16 is too coarse for
            scores = camera.keypoints(features)
            places = spatial_softmax(scores)
            there = torch.einsum("bkp,bcp->bkc", scores.flatten(2).softmax(-1), features.flatten(2))
            points = self.read_points[index](torch.cat([_waves(places.unflatten(-1, (2, -1)).transpose(1, 2)), there], -1))
        return points + self.points[index], torch.cat([places, features.mean((2, 3))], -1)


def _waves(places: Tensor) -> Tensor:
    """[B, K, 2] in [-1, 1] -> [B, K, _PLACE]."""
    turns = places[..., None] * (math.pi * 2.0 ** torch.arange(_OCTAVES, device=places.device))
    return torch.cat([places, turns.sin().flatten(2), turns.cos().flatten(2)], -1)
