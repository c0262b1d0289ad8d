"""RoboVLMs, one-step continuous formulation: Backbone.encode(observation, text) -> [LRN] -> head -> chunk of TCP poses and gripper."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vla_ros.core.embodiment import Embodiment
from vla_ros.core.errors import DataError, PolicyError, did_you_mean
from vla_ros.core.types import ActionChunk, Inference, Observation, PolicySpec
from vla_ros.policies.backbones import BACKBONES, Encoding
from vla_ros.policies.checkpoint import CheckpointConfig, read_config, read_tokenizer, read_weights
from vla_ros.policies.heads import HEADS
from vla_ros.policies.images import shrink
from vla_ros.policies.normalization import Quantiles
from vla_ros.policies.poses import STATE_WIDTH, absolute_poses, state_features
from vla_ros.policies.text import encode

POSE_CHANNELS = ("tcp.x", "tcp.y", "tcp.z", "tcp.rx", "tcp.ry", "tcp.rz")
STATE_CHANNELS = (*POSE_CHANNELS, "gripper.width")
ACTION_CHANNELS = (*POSE_CHANNELS, "gripper.closed")
NETWORK_KEYS = ("backbone", "head", "vocabulary", "text_length", "text_width", "hidden_size", "blocks", "keypoints")


class RoboVlmsNetwork(nn.Module):
    """A backbone and a head from their tables."""

    def __init__(self, cameras: int, horizon: int, network: dict[str, object]) -> None:
        super().__init__()
        sizes = dict(network)
        backbone, head = sizes.pop("backbone"), sizes.pop("head")
        self.backbone = BACKBONES[backbone](cameras=cameras, state_width=STATE_WIDTH, **sizes)
        self.head = HEADS[head](self.backbone.hidden_size, horizon, len(POSE_CHANNELS))

    def forward(self, images: Tensor, state: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Encoding]:
        """Returns normalised poses [B, T, 6], gripper logits [B, T] (positive = closed) and the encoding (see `backbones`)."""
        encoding = self.backbone.encode(images, state, tokens)
        return *self.head(encoding.hidden), encoding


def make_network(config: CheckpointConfig, origin: str) -> RoboVlmsNetwork:
    """Builds the network that `config` describes. Raises PolicyError that names `origin` for unknown or missing sizes."""
    missing = [key for key in NETWORK_KEYS if key not in config.network]
    foreign = [key for key in config.network if key not in NETWORK_KEYS]
    if missing or foreign:
        raise PolicyError(f"{origin}: network lacks {missing}, has unknown {foreign}; expected {', '.join(NETWORK_KEYS)}")
    for key, table in (("backbone", BACKBONES), ("head", HEADS)):
        if config.network[key] not in table:
            raise PolicyError(f"{origin}: network.{key} = {config.network[key]!r}; {did_you_mean(config.network[key], table)}")
    try:
        return RoboVlmsNetwork(len(config.cameras), config.horizon, config.network)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise PolicyError(f"{origin}: network {config.network} cannot be built ({error})") from error


def to_pixels(images: Tensor) -> Tensor:
    """uint8 [..., H, W, 3] -> float [..., 3, H, W] in [-1, 1]."""
    return images.movedim(-1, -3).float() / 127.5 - 1


class RoboVlms:
    """The policy (see `core.interfaces.Policy`). One thread of a 2020s CPU runs the tiny preset in about 5 ms."""

    def __init__(self, config: CheckpointConfig, network: RoboVlmsNetwork, tokenizer: object, origin: str) -> None:
        self.spec = PolicySpec(config.system, config.embodiment, config.cameras, config.state, config.channels, config.horizon, config.dt_s)
        self._network = network.eval()
        self._tokenizer = tokenizer
        self._image = config.image
        self._text_length = int(config.network["text_length"])
        self._state = Quantiles.from_json(config.normalization.get("state"), (STATE_WIDTH,), f"{origin}: normalization.state")
        self._pose = Quantiles.from_json(
            config.normalization.get("pose"), (config.horizon, len(POSE_CHANNELS)), f"{origin}: normalization.pose"
        )
        self._tokens: dict[str, Tensor] = {}
        self._sequence = 0

    @classmethod
    def load(cls, folder: Path, embodiment: Embodiment) -> RoboVlms:
        """Loads a checkpoint folder for `embodiment`. Raises PolicyError with the file, the value and the fix."""
        torch.set_num_threads(1)  # beside a control loop, more threads wait for each other
        config = read_config(folder)
        origin = f"{folder / 'config.json'}"
        check_fits(config, embodiment, origin)
        network = make_network(config, origin)
        read_weights(folder, network)
        return cls(config, network, read_tokenizer(folder), origin)

    def reset(self) -> None:
        """Forgets the instruction and starts to count chunks from 0; the one-step formulation has no further history."""
        self._tokens.clear()
        self._sequence = 0

    @torch.inference_mode()
    def infer(self, observation: Observation) -> Inference:
        """Returns absolute targets in `base_link` for the next `horizon` steps, stamped with the observation's capture time.

        Raises:
            PolicyError: a camera or state channel of `spec` is missing, or the network's output is not finite.
        """
        start = time.perf_counter()
        try:
            state = observation.proprioception.select(self.spec.state)
            images = self._images(observation)
        except DataError as error:
            raise PolicyError(f"{self.spec.name}: observation does not fit the checkpoint: {error}") from error
        features = self._state.normalize(state_features(state[:6], state[6]), clip=False)
        pose, closed, _ = self._network(images, torch.from_numpy(features).float()[None], self._encode(observation.instruction))
        motion = self._pose.unnormalize(pose[0].double().numpy())
        data = np.concatenate([absolute_poses(motion, state[:6]), (closed[0].numpy() > 0)[:, None]], axis=1)
        if not np.isfinite(data).all():
            raise PolicyError(
                f"{self.spec.name}: {np.count_nonzero(~np.isfinite(data))} of {data.size} outputs are not finite; proprioception {state}"
            )
        chunk = ActionChunk(
            observation.stamp_ns, self.spec.dt_s, self.spec.channels, data, self._sequence,
            policy=self.spec.name, embodiment=self.spec.embodiment, inference_s=time.perf_counter() - start,
        )  # fmt: skip
        self._sequence += 1
        return Inference(chunk)

    def _images(self, observation: Observation) -> Tensor:
        missing = [name for name in self.spec.cameras if name not in observation.frames]
        if missing:
            raise DataError(f"camera {', '.join(missing)} is missing; it has {', '.join(observation.frames) or '(none)'}")
        frames = [shrink(observation.frames[name].image, self._image["width"], self._image["height"]) for name in self.spec.cameras]
        return to_pixels(torch.from_numpy(np.stack(frames)))[None]

    def _encode(self, instruction: str) -> Tensor:
        if instruction not in self._tokens:
            self._tokens[instruction] = torch.from_numpy(encode(self._tokenizer, instruction, self._text_length))[None]
        return self._tokens[instruction]


def check_fits(config: CheckpointConfig, embodiment: Embodiment, origin: str) -> None:
    """Raises PolicyError unless the checkpoint belongs to `embodiment` and to this system."""
    if config.embodiment != embodiment.name:
        raise PolicyError(f"{origin}: made for embodiment {config.embodiment!r}, not {embodiment.name!r}: choose another checkpoint")
    absent = [name for name in config.cameras if name not in embodiment.cameras]
    if absent or not config.cameras:
        raise PolicyError(f"{origin}: cameras {list(config.cameras)}; {embodiment.name} has {list(embodiment.cameras)}")
    for key, found, expected in (("channels", config.channels, ACTION_CHANNELS), ("state", config.state, STATE_CHANNELS)):
        if found != expected:
            raise PolicyError(f"{origin}: {key} {list(found)}, robovlms uses {list(expected)}")
    if not {"width", "height"} == set(config.image) or min(config.image.values()) < 32:
        raise PolicyError(f"{origin}: image {config.image}, expected width and height >= 32 px")
    if config.horizon < 1 or not config.dt_s > 0:
        raise PolicyError(f"{origin}: horizon {config.horizon}, dt_s {config.dt_s}, expected >= 1 and > 0")
