"""Runs any network of `SYSTEMS` behind the policy protocol: a checkpoint folder and observations in, absolute targets out."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vla_ros.core.devices import load_device
from vla_ros.core.embodiment import Embodiment
from vla_ros.core.errors import DataError, PolicyError
from vla_ros.core.types import ActionChunk, Inference, Observation, PolicySpec, Prefix, SkillPlan
from vla_ros.policies import SYSTEMS
from vla_ros.policies.checkpoint import CONFIG, CheckpointConfig, read_config, read_tokenizer
from vla_ros.policies.images import shrink
from vla_ros.policies.layout import Layout, layout_for
from vla_ros.policies.network import Inputs, pixels_of
from vla_ros.policies.normalization import Quantiles
from vla_ros.policies.text import encode
from vla_ros.policies.weights import load_network


def make_network(config: CheckpointConfig, origin: str) -> nn.Module:
    """Builds the untrained network that `config` describes. Raises PolicyError that names `origin` for wrong sizes."""
    system = load_device(SYSTEMS, config.system)
    try:
        return system(config.layouts, config.horizon, config.network)
    except PolicyError as error:
        raise PolicyError(f"{origin}: {error}") from error
    except Exception as error:  # sizes of a broken file trip torch and transformers in any way
        raise PolicyError(f"{origin}: network {config.network} cannot be built ({type(error).__name__}: {error})") from error


class NetworkPolicy:
    """The policy (see `core.interfaces.Policy`) of one embodiment. Not for several threads."""

    def __init__(self, config: CheckpointConfig, embodiment: Embodiment, network: nn.Module, tokenizer: object, origin: str) -> None:
        layout = _layout_of(config, embodiment, origin)
        name = f"{config.system} {config.preset}"
        self.spec = PolicySpec(name, embodiment.name, layout.cameras, layout.state, layout.channels, config.horizon, config.dt_s)
        self._layout, self._config, self._network, self._tokenizer = layout, config, network.eval(), tokenizer
        self._state, self._action = layout.statistics(config.horizon, origin)
        self._tokens: dict[str, Tensor] = {}
        self._sequence = 0
        network.reset()

    @classmethod
    def load(cls, folder: Path, embodiment: Embodiment) -> NetworkPolicy:
        """Loads a checkpoint folder for `embodiment`. Raises PolicyError with the file, the value and the fix."""
        torch.set_num_threads(1)  # beside a control loop, more threads wait for each other
        config = read_config(folder)
        origin = f"{folder / CONFIG}"
        _layout_of(config, embodiment, origin)
        network = load_network(folder, lambda: make_network(config, origin))
        return cls(config, embodiment, network, read_tokenizer(folder), origin)

    def reset(self) -> None:
        """Forgets instruction and history and starts to count chunks from 0."""
        self._network.reset()
        self._tokens.clear()
        self._sequence = 0

    def infer(self, observation: Observation) -> Inference:
        """Returns absolute targets for the next `horizon` steps, stamped with the observation's capture time.

        Raises:
            PolicyError: a camera or state channel of `spec` is missing, or the network's output is not finite.
        """
        return self.infer_batch([observation])[0]

    @torch.no_grad()
    def infer_batch(self, observations: list[Observation]) -> list[Inference]:
        """Like `infer` for several observations at once; of a network with a history they must be of one rollout each."""
        if len(observations) > 1 and any(observation.prefix is not None for observation in observations):
            return [self.infer(observation) for observation in observations]  # each continues a chunk in its own way
        start = time.perf_counter()
        inputs, states = self.inputs(observations)
        rows = self.targets(self._network.predict(inputs), states)
        spent_s = time.perf_counter() - start
        chunks = [self._chunk(observation, data, spent_s) for observation, data in zip(observations, rows, strict=True)]
        return [Inference(chunk, plan) for chunk, plan in zip(chunks, self._plans(observations), strict=True)]

    def inputs(self, observations: list[Observation]) -> tuple[Inputs, np.ndarray]:
        """Returns what the network is given, and the measured states [B, S]. Raises PolicyError: see `infer`."""
        states = np.stack([self._measured(observation) for observation in observations])
        features = self._state.normalize(self._layout.features(states), clip=False)
        prefix, weights = self._prefix(observations[0].prefix, states[0]) if len(observations) == 1 else (None, None)
        images = torch.cat([self._images(observation) for observation in observations])
        tokens = torch.cat([self._encode(observation.instruction) for observation in observations])
        return Inputs(self.spec.embodiment, images, torch.from_numpy(features).float(), tokens, prefix, weights), states

    def targets(self, actions: Tensor, states: np.ndarray) -> np.ndarray:
        """Normalised actions [B, T, D] at measured states [B, S] -> absolute targets. Raises PolicyError: an action is not finite."""
        actions = actions.double().numpy()
        if not np.isfinite(actions).all():
            wrong = np.count_nonzero(~np.isfinite(actions))
            raise PolicyError(f"{self.spec.name}: {wrong} of {actions.size} outputs are not finite; proprioception {states.tolist()}")
        return self._layout.absolute(self._action.unnormalize(actions), states)

    def _plans(self, observations: list[Observation]) -> list[SkillPlan | None]:
        """What a network that thinks said of `observations`, which it has just answered; others have no plans."""
        return [None] * len(observations)

    def _chunk(self, observation: Observation, data: np.ndarray, spent_s: float) -> ActionChunk:
        spec, sequence = self.spec, self._sequence
        self._sequence += 1
        return ActionChunk(
            observation.stamp_ns, spec.dt_s, spec.channels, data, sequence,
            policy=spec.name, embodiment=spec.embodiment, inference_s=spent_s,
        )  # fmt: skip

    def _measured(self, observation: Observation) -> np.ndarray:
        try:
            return observation.proprioception.select(self.spec.state)
        except DataError as error:
            raise PolicyError(f"{self.spec.name}: observation does not fit the checkpoint: {error}") from error

    def _prefix(self, prefix: Prefix | None, state: np.ndarray) -> tuple[Tensor | None, Tensor | None]:
        """Committed rows as the network would have predicted them from here."""
        if prefix is None:
            return None, None
        spec = self.spec
        if prefix.channels != spec.channels or abs(prefix.dt_s - spec.dt_s) > 1e-9 or len(prefix.data) > spec.horizon:
            raise PolicyError(f"{spec.name}: prefix of {len(prefix.data)} rows every {prefix.dt_s} s of {', '.join(prefix.channels)}")
        count = len(prefix.data)
        statistics = Quantiles(self._action.low[:count], self._action.high[:count])  # every row has its own
        motion = statistics.normalize(self._layout.relative(prefix.data, state))
        return torch.from_numpy(motion).float()[None], torch.from_numpy(prefix.weights).float()

    def _images(self, observation: Observation) -> Tensor:
        """[1, C, 3, H, W]."""
        missing = [name for name in self.spec.cameras if name not in observation.frames]
        if missing:
            there = ", ".join(observation.frames) or "(none)"
            raise PolicyError(
                f"{self.spec.name}: observation does not fit the checkpoint: camera {', '.join(missing)} is missing; it has {there}"
            )
        size = self._config.image["width"], self._config.image["height"]
        try:
            return pixels_of([shrink(observation.frames[name].image, *size) for name in self.spec.cameras])
        except DataError as error:
            raise PolicyError(f"{self.spec.name}: observation does not fit the checkpoint: {error}") from error

    def _encode(self, instruction: str) -> Tensor:
        if instruction not in self._tokens:
            config = self._config
            prompt = type(self._network).prompt(self._layout, instruction, config.horizon, config.dt_s)
            length = int(config.network["text_length"])
            self._tokens[instruction] = torch.from_numpy(encode(self._tokenizer, prompt, length))[None]
        return self._tokens[instruction]


def _layout_of(config: CheckpointConfig, embodiment: Embodiment, origin: str) -> Layout:
    """Returns the checkpoint's layout for `embodiment`. Raises PolicyError unless it fits the robot."""
    layout = config.layouts.get(embodiment.name)
    if layout is None:
        raise PolicyError(f"{origin}: made for {', '.join(config.layouts)}, not {embodiment.name!r}: choose another checkpoint")
    try:
        expected = layout_for(embodiment, layout.cameras)
    except PolicyError as error:
        raise PolicyError(f"{origin}: {error}") from error
    for key in ("channels", "state"):
        found, wanted = getattr(layout, key), getattr(expected, key)
        if found != wanted:
            raise PolicyError(f"{origin}: layouts.{embodiment.name}.{key} {list(found)}; the robot has {list(wanted)}")
    return layout
