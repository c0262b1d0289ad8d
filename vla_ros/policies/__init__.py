"""Policies: `SYSTEMS` and `POLICIES` name them, `load_policy` turns a rig's `policy.checkpoint` into one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vla_ros.core.devices import load_device
from vla_ros.core.embodiment import Embodiment, config_dir
from vla_ros.core.errors import PolicyError, did_you_mean
from vla_ros.core.interfaces import Policy
from vla_ros.core.rig import BRIDGES
from vla_ros.policies.checkpoint import CONFIG, read_config
from vla_ros.policies.construct import construct
from vla_ros.policies.replay import ACTIONS

# Networks of our own, as `system` in a checkpoint's config.json names them.
SYSTEMS = {
    "robovlms": "vla_ros.policies.robo_vlms.network:RoboVlms",
    "qwen_vla": "vla_ros.policies.qwen_vla.network:QwenVla",
    "atomic_vla": "vla_ros.policies.atomic_vla.network:AtomicVla",
    "seer": "vla_ros.policies.vita_vla.seer:Seer",
    "vita_vla": "vla_ros.policies.vita_vla.network:VitaVla",
    "mol_msm_vla": "vla_ros.policies.mol_msm.network:MolMsm",
}
# What runs: a system that is not here is run by `_NETWORK`.
POLICIES = {
    "atomic_vla": "vla_ros.policies.atomic_vla.policy:AtomicPolicy",
    "mol_msm_vla": "vla_ros.policies.mol_msm.policy:MolMsmPolicy",
    "replay": "vla_ros.policies.replay:Replay",
    "script": "vla_ros.sim.script:ScriptPolicy",
    "openpi": "vla_ros.policies.openpi:OpenPi",
    "lerobot": "vla_ros.policies.lerobot:LeRobot",
}
_NETWORK = "vla_ros.policies.network_policy:NetworkPolicy"


def load_policy(checkpoint: str, embodiment: Embodiment, options: Mapping[str, object] | None = None) -> Policy:
    """Loads what a rig's `policy.checkpoint` names.

    Args:
        checkpoint: a folder, the name of one in config/checkpoints, the folder of a rollout (its actions are played again), "script",
            openpi://HOST:PORT, lerobot:FOLDER, or an import path `module:Class` of a class that is called with `embodiment`.
        embodiment: the robot that it will drive.
        options: keyword arguments of "script", a bridge or a class, from the rig's `policy.options`; a folder takes none.

    Raises:
        PolicyError: it does not exist, is broken, or was made for something else; the message names file, value and fix.
    """
    kind, _, where = checkpoint.partition(":")
    if kind in BRIDGES:
        return construct(load_device(POLICIES, kind), kind, embodiment, where, options=options)
    if checkpoint == "script" or ":" in checkpoint:
        return construct(load_device(POLICIES, checkpoint), checkpoint, embodiment, options=options)
    if options:
        raise PolicyError(f"policy.options {', '.join(options)}: checkpoint {checkpoint!r} is a folder, which takes none")
    folder = find_checkpoint(checkpoint)
    if (folder / ACTIONS).is_file():
        return load_device(POLICIES, "replay").load(folder, embodiment)
    system = read_config(folder).system
    if system not in SYSTEMS:
        raise PolicyError(f"{folder / CONFIG}: system {system!r}; {did_you_mean(system, SYSTEMS)}")
    return load_device(POLICIES, system if system in POLICIES else _NETWORK).load(folder, embodiment)


def find_checkpoint(checkpoint: str) -> Path:
    """Returns the folder that `checkpoint` names: in config/checkpoints, else as a path. Raises PolicyError with the names there are."""
    shipped = config_dir() / "checkpoints"
    for folder in (shipped / checkpoint, Path(checkpoint).expanduser()):
        if folder.is_dir():
            return folder
    names = [path.name for path in shipped.glob("*") if path.is_dir()]
    raise PolicyError(f"checkpoint {checkpoint!r}: no such folder, here or in {shipped}; {did_you_mean(checkpoint, ['script', *names])}")
