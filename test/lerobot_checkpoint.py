"""Writes a tiny ACT checkpoint with LeRobot's own code, and what LeRobot itself predicts with it. Run in LeRobot's environment.

python lerobot_checkpoint.py FOLDER      an untrained ACT for the franka embodiment: state 7, action 7, cameras front and wrist
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def main(folder: Path) -> None:
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    torch.manual_seed(0)
    torch.set_num_threads(1)
    pictures = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 48, 64)) for name in ("front", "wrist")}
    config = ACTConfig(
        input_features={**pictures, "observation.state": PolicyFeature(FeatureType.STATE, (7,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
        device="cpu", chunk_size=8, n_action_steps=8, dim_model=32, n_heads=2, dim_feedforward=64, n_encoder_layers=1, n_decoder_layers=1,
        n_vae_encoder_layers=1, latent_dim=8, pretrained_backbone_weights=None, vision_backbone="resnet18",
    )  # fmt: skip
    policy = ACTPolicy(config).eval()
    statistics = {
        **{name: {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)} for name in pictures},
        "observation.state": {"mean": torch.linspace(0, 0.6, 7), "std": torch.full((7,), 0.3)},
        "action": {"mean": torch.linspace(0.1, 0.7, 7), "std": torch.full((7,), 0.05)},
    }
    before, after = make_pre_post_processors(config, dataset_stats=statistics)
    config.pretrained_backbone_weights = "ResNet18_Weights.IMAGENET1K_V1"  # as LeRobot saves it by default
    policy.save_pretrained(folder)
    before.save_pretrained(folder)
    after.save_pretrained(folder)
    random = np.random.default_rng(0)
    images = {name: random.integers(0, 255, (48, 64, 3), dtype=np.uint8) for name in pictures}
    state = np.linspace(0.1, 0.7, 7, dtype=np.float32)
    batch = {name: torch.from_numpy(image).permute(2, 0, 1).float() / 255 for name, image in images.items()}
    policy.reset()
    rows = []
    with torch.inference_mode():
        for _ in range(8):  # the way LeRobot rolls a policy out: one action after the other
            rows.append(after(policy.select_action(before({**batch, "observation.state": torch.from_numpy(state), "task": "stay"})))[0])
    (folder / "expected.json").write_text(json.dumps(torch.stack(rows).tolist()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
