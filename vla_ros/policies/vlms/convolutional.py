"""The tiny backbone that is the practical default without a GPU: small convolutions, a word encoder and a residual trunk."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_ros.core.errors import PolicyError
from vla_ros.policies.text import PAD_ID
from vla_ros.policies.vlms.backbone import REQUIRED, Encoding


class TextEncoder(nn.Module):
    """Word tokens [B, L] -> one transformer layer -> pooled over the words by attention [B, width].

    A plain mean would drown the one word that names the colour among a dozen that only make the sentence.
    """

    def __init__(self, vocabulary: int, width: int, length: int, heads: int = 4) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(heads, width))
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.pool(self.words(tokens), tokens)

    def words(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, L, width]."""
        return self.layer(self.embed(tokens) + self.position[: tokens.shape[1]], src_key_padding_mask=tokens == PAD_ID)

    def pool(self, words: Tensor, tokens: Tensor) -> Tensor:
        """[B, L, width] -> [B, width]."""
        scores = (words @ self.query.T).masked_fill((tokens == PAD_ID).unsqueeze(-1), float("-inf"))
        slices = words.unflatten(-1, (self.query.shape[0], -1))
        return self.norm((scores.softmax(1).unsqueeze(-1) * slices).sum(1).flatten(1))


class Film(nn.Module):
    """Scales and shifts channels by the instruction: x * (1 + gamma) + beta."""

    def __init__(self, text_width: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Linear(text_width, 2 * channels)
        nn.init.normal_(self.project.weight, std=0.2 / text_width**0.5)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        gamma, beta = self.project(text).chunk(2, dim=-1)
        if x.ndim == 4:
            gamma, beta = gamma[:, :, None, None], beta[:, :, None, None]
        return x * (1 + gamma) + beta


def spatial_softmax(scores: Tensor) -> Tensor:
    """Returns the expected image position of each map: [B, K, H, W] -> [B, 2K] in [-1, 1], x first."""
    height, width = scores.shape[-2:]
    weights = scores.float().flatten(2).softmax(-1).unflatten(2, (height, width))
    x = (weights.sum(2) * torch.linspace(-1, 1, width, device=scores.device)).sum(-1)
    y = (weights.sum(3) * torch.linspace(-1, 1, height, device=scores.device)).sum(-1)
    return torch.cat([x, y], dim=-1)


class CameraEncoder(nn.Module):
    """One camera [B, 3, H, W] in [-1, 1] -> keypoints and a global pool [B, 2 * keypoints + 64], conditioned by the instruction."""

    def __init__(self, text_width: int, keypoints: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 8, stride=4, padding=2)
        self.widen = nn.Conv2d(24, 32, 3, padding=1)
        self.down = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.residual = nn.ModuleList([nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)])
        self.films = nn.ModuleList([Film(text_width, channels) for channels in (32, 64, 64)])
        self.keypoints = nn.Conv2d(64, keypoints, 1)
        self.features_width = 64
        self.width = 2 * keypoints + self.features_width
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # no normalisation follows: keep the signal's size from layer to layer
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        x = self.look(image, text)
        return torch.cat([spatial_softmax(self.keypoints(x)), x.float().mean((2, 3))], dim=-1)

    def look(self, image: Tensor, text: Tensor) -> Tensor:
        """Returns the features [B, 64, H / 8, W / 8]."""
        x = functional.relu(self.stem(image))
        x = functional.relu(self.films[0](self.widen(x), text))
        x = functional.relu(self.films[1](self.down(x), text))
        return functional.relu(x + self.films[2](self.residual[1](functional.relu(self.residual[0](x))), text))


class TrunkBlock(nn.Module):
    """x + MLP(x), the hidden layer conditioned by the instruction."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.film = Film(text_width, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        return x + self.down(functional.gelu(self.film(self.up(self.norm(x)), text)))


class ConvolutionalBackbone(nn.Module):
    """Camera encoders and proprioception write into the residual stream that starts as [LRN]."""

    SIZES: Mapping[str, object] = {
        "vocabulary": REQUIRED,
        "text_length": REQUIRED,
        "text_width": 128,
        "hidden_size": 512,
        "blocks": 2,
        "keypoints": 32,  # per camera
    }
    decoder_only = False
    generates = False

    def __init__(self, cameras: tuple[str, ...], state_width: int, sizes: Mapping[str, object], vocabulary_head: bool = False) -> None:
        super().__init__()
        text_width, hidden_size = int(sizes["text_width"]), int(sizes["hidden_size"])
        self.names = tuple(cameras)
        self.text = TextEncoder(int(sizes["vocabulary"]), text_width, int(sizes["text_length"]))
        self.cameras = nn.ModuleList([CameraEncoder(text_width, int(sizes["keypoints"])) for _ in self.names])
        visual = sum(camera.width for camera in self.cameras)
        self.lrn = nn.Parameter(0.02 * torch.randn(hidden_size))
        self.read_visual = nn.Linear(visual, hidden_size)
        self.read_state = nn.Linear(state_width, hidden_size)
        self.read_text = nn.Linear(text_width, hidden_size)
        self.blocks = nn.ModuleList([TrunkBlock(hidden_size, text_width) for _ in range(int(sizes["blocks"]))])
        self.norm = nn.LayerNorm(hidden_size)
        self.visual_size, self.hidden_size = visual, hidden_size

    def encode(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...]) -> Encoding:
        """See `backbone.Backbone`. Each camera name has an encoder of its own; the sequence is [LRN] alone."""
        text = self.text(tokens)
        visual = torch.cat(
            [
                encoder(images[:, cameras.index(name)], text) if name in cameras else text.new_zeros(len(text), encoder.width).float()
                for name, encoder in zip(self.names, self.cameras, strict=True)
            ],
            dim=-1,
        )
        if state is None:
            state = visual.new_zeros(len(visual), self.read_state.in_features)
        # A keypoint must stay exact to a tenth of a pixel, which bfloat16 cannot hold.
        with torch.autocast(images.device.type, enabled=False):
            hidden = self._read(visual.float(), state, text.float())
        return Encoding(hidden, visual, hidden[:, None], torch.ones(len(hidden), 1, dtype=torch.bool, device=hidden.device))

    def _read(self, visual: Tensor, state: Tensor, text: Tensor) -> Tensor:
        x = self.lrn + self.read_visual(visual) + self.read_state(state) + self.read_text(text)
        for block in self.blocks:
            x = block(x, text)
        return self.norm(x)

    def interleave(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...]) -> Encoding:
        """Raises PolicyError: it has no sequence."""
        raise PolicyError("the convolutional backbone has no sequence to interleave observations in; use policy_head")
