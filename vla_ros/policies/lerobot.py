"""A LeRobot checkpoint, run by LeRobot itself: `checkpoint: lerobot:FOLDER`. The package is an optional extra.

LeRobot pins versions of torch and others that differ from ours: where they clash, `vla serve lerobot:FOLDER` runs in LeRobot's own
environment and the rig names `openpi://...`; see docs/policies.md.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vla_ros.core.embodiment import Embodiment
from vla_ros.core.errors import NotInstalled, PolicyError, did_you_mean
from vla_ros.core.types import ActionChunk, Inference, Observation, PolicySpec
from vla_ros.policies.foreign import ActionColumns, StateVector, frame_of, option_cameras, option_names, option_number
from vla_ros.policies.images import shrink
from vla_ros.policies.layout import layout_for

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
_PIP = "pip install 'lerobot==0.4.4' (Python 3.11; in an environment of its own, see docs/policies.md)"
_IMAGES, _STATE, _ACTION = "observation.images.", "observation.state", "action"
_DEVICES = ("cpu", "cuda", "mps")


class LeRobot:
    """Implements `core.interfaces.Policy` for policies that look at one observation and answer with a chunk (ACT, SmolVLA, pi0, ...).

    Args:
        embodiment: the robot that it drives.
        folder: what LeRobot's `save_pretrained` wrote, the two processors with it.
        dt_s: time between the rows, 1 / fps of the data it was trained on: the checkpoint does not say.
        actions: "absolute" or "relative" (see `foreign.ActionColumns`).
        channels: a channel for each column of the actions, "skip" for one that drives nothing; the embodiment's own by default.
        state: channels of `observation.state`; the embodiment's own by default.
        cameras: {feature, such as observation.images.top: camera}; by default a camera has the feature of its name.
        device: where it runs, "cpu", "cuda" or "mps"; what the checkpoint says by default.

    Units are ours, rad and m: a checkpoint trained on degrees or on raw servo values must not be run.

    Raises:
        NotInstalled: LeRobot is missing.
        PolicyError: the folder is broken or asks for foreign code, or does not fit the robot or the options.
    """

    def __init__(
        self, embodiment: Embodiment, folder: str, *, dt_s: object = None, actions: object = None, channels: object = None,
        state: object = None, cameras: object = None, device: str | None = None,
    ) -> None:  # fmt: skip
        self._folder = Path(folder).expanduser()
        kind = _read_kind(self._folder)
        if dt_s is None:
            raise PolicyError(f"policy.options.dt_s is missing: {self._folder} does not say at what rate it was trained; give 1 / fps")
        if device is not None and device not in _DEVICES:
            raise PolicyError(f"policy.options.device = {device!r}; {did_you_mean(str(device), _DEVICES)}")
        period_s = option_number("dt_s", dt_s, 0.001, 10)
        with _failures(self._folder):
            self._policy, self._before, self._after = _load(self._folder, kind, device)
        config, usual = self._policy.config, layout_for(embodiment, embodiment.cameras[:1])
        columns = option_names("channels", usual.channels if channels is None else channels)
        self._columns = ActionColumns(columns, actions, embodiment)
        self._expect("channels", len(columns), config.action_feature)
        self._cameras = self._match_cameras(cameras, config.image_features, embodiment)
        self._state = None
        if config.robot_state_feature is not None:
            self._state = StateVector(option_names("state", usual.state if state is None else state), embodiment, "state")
            self._expect("state", len(self._state.channels), config.robot_state_feature)
        needs = [*(self._state.needs if self._state else ()), *self._columns.needs]
        rows = int(getattr(config, "chunk_size", 1))
        used = tuple(dict.fromkeys(camera for camera, _ in self._cameras.values()))
        self.spec = PolicySpec(
            f"lerobot {kind}", embodiment.name, used, tuple(dict.fromkeys(needs)), self._columns.channels, rows, period_s
        )
        self._sequence = 0

    def reset(self) -> None:
        """Clears LeRobot's queues and starts to count chunks from 0."""
        self._policy.reset()
        self._sequence = 0

    def infer(self, observation: Observation) -> Inference:
        """Returns the policy's chunk as absolute targets, stamped with the observation's capture time.

        Raises:
            PolicyError: a camera or state is missing or has another size, LeRobot fails, or its actions are not finite.
        """
        import torch

        began_s = time.perf_counter()
        batch = self._batch(observation, torch)
        with _failures(self._folder), torch.inference_mode():
            chunk = self._policy.predict_action_chunk(self._before(batch))
            rows = self._after(chunk[0]).float().cpu().numpy()  # each row as one action, which is what the processor knows
        data = self._columns.rows(rows, observation.proprioception)
        spec, sequence = self.spec, self._sequence
        self._sequence += 1
        spent_s = time.perf_counter() - began_s
        return Inference(ActionChunk(observation.stamp_ns, spec.dt_s, spec.channels, data, sequence, spec.name, spec.embodiment, spent_s))

    def _batch(self, observation: Observation, torch: object) -> dict[str, object]:
        """LeRobot's names: images float [3, H, W] in 0 .. 1, the state float [S], the instruction as `task`."""
        batch: dict[str, object] = {"task": observation.instruction}
        for feature, (camera, (height, width)) in self._cameras.items():
            picture = shrink(frame_of(observation, camera).image, width, height)
            batch[feature] = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
        if self._state:
            batch[_STATE] = torch.from_numpy(self._state.of(observation.proprioception)).float()
        return batch

    def _expect(self, option: str, given: int, feature: object) -> None:
        wanted = tuple(feature.shape) if feature is not None else ()
        if wanted != (given,):
            raise PolicyError(f"policy.options.{option}: {given} names, but {self._folder / CONFIG} has {list(wanted)} there; name each")

    def _match_cameras(
        self, value: object, features: Mapping[str, object], embodiment: Embodiment
    ) -> dict[str, tuple[str, tuple[int, int]]]:
        """Returns {feature: (camera, (height, width))}."""
        if value is None:
            value = {feature: feature.removeprefix(_IMAGES) for feature in features}
        chosen = option_cameras(value, embodiment)
        for feature in chosen:
            if feature not in features:
                raise PolicyError(f"policy.options.cameras: {self._folder} has no {feature!r}; {did_you_mean(feature, features)}")
        if missing := [feature for feature in features if feature not in chosen]:
            raise PolicyError(f"policy.options.cameras lacks {', '.join(missing)}, which {self._folder} looks at")
        return {feature: (camera, tuple(features[feature].shape[1:])) for feature, camera in chosen.items()}


def _read_kind(folder: Path) -> str:
    """Returns "act" and the like after looking for what LeRobot would trip over, or obey.

    Its processors may name any class of any module, which it then imports and calls; only those that it knows by name are let through.
    """
    for name in (CONFIG, WEIGHTS, *PROCESSORS):
        if not (folder / name).is_file():
            hint = "; LeRobot before 0.4 kept them in the weights: python -m lerobot.processor.migrate_policy_normalization"
            raise PolicyError(f"{folder / name}: no such file; a LeRobot checkpoint has it{hint if name in PROCESSORS else ''}")
    for name in PROCESSORS:
        steps = _json(folder / name).get("steps")
        if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
            raise PolicyError(f"{folder / name}: steps {steps!r:.60}, expected a list of objects")
        for step in steps:
            if "class" in step or not isinstance(step.get("registry_name"), str):
                raise PolicyError(f"{folder / name}: a step names the class {step.get('class')!r:.80}; code of a checkpoint is never run")
            if not isinstance(step.get("state_file", ""), str) or Path(step.get("state_file", "")).name != step.get("state_file", ""):
                raise PolicyError(f"{folder / name}: state_file {step['state_file']!r:.80}, expected a file of the folder")
    kind = _json(folder / CONFIG).get("type")
    if not isinstance(kind, str):
        raise PolicyError(f"{folder / CONFIG}: type {kind!r:.60}, expected the name of a LeRobot policy, such as act")
    return kind


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PolicyError(f"{path}: not JSON ({error}): restore the file") from None
    if not isinstance(content, dict):
        raise PolicyError(f"{path}: holds a {type(content).__name__}, expected an object")
    return content


def _load(folder: Path, kind: str, device: str | None) -> tuple[object, object, object]:
    """Returns LeRobot's policy and its two processors. Nothing is downloaded."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when LeRobot is imported
    try:
        import torch
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    except ImportError as error:
        raise NotInstalled(f"lerobot policies need the package lerobot ({error}): {_PIP}") from error
    torch.set_num_threads(1)  # beside a control loop, more threads wait for each other
    config = PreTrainedConfig.from_pretrained(folder, local_files_only=True)
    if device is not None:
        config.device = device
    if hasattr(config, "pretrained_backbone_weights"):
        config.pretrained_backbone_weights = None  # the checkpoint holds them; LeRobot would fetch them first
    if config.n_obs_steps != 1:
        raise PolicyError(f"{folder / CONFIG}: {kind} looks at {config.n_obs_steps} observations at a time; this bridge gives one")
    policy = get_policy_class(kind).from_pretrained(folder, config=config, local_files_only=True, strict=True)
    moved = {"device_processor": {"device": config.device}}
    before, after = make_pre_post_processors(config, str(folder), preprocessor_overrides=moved)
    return policy, before, after


@contextmanager
def _failures(folder: Path) -> Iterator[None]:
    """LeRobot fails in many ways; each becomes one sentence."""
    try:
        yield
    except (PolicyError, NotInstalled):
        raise
    except Exception as error:
        text = (str(error).strip().splitlines() or ["(no reason given)"])[0]
        raise PolicyError(f"{folder}: LeRobot: {type(error).__name__}: {text[:300]}") from error
