"""Qwen-VLA on Qwen3.5: tags around the pictures, places in them, no picture at all in T2A, the text's loss, the paper's size."""

import pytest

pytest.importorskip("transformers", reason="the vision-language models need transformers: make setup")

import torch

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import PolicyError
from vla_ros.policies.flow import solve
from vla_ros.policies.layout import layout_for
from vla_ros.policies.qwen_vla.network import AnsweredBatch, QwenVla
from vla_ros.policies.qwen_vla.stages import configure_stage

LENGTH, VOCABULARY, HORIZON = 8, 20, 5
LAYOUTS = {
    "franka": layout_for(load_embodiment("franka"), ("front", "wrist")),
    "aloha": layout_for(load_embodiment("aloha"), ("front", "left_wrist", "right_wrist")),
}
EXPERT = {"expert_width": 48, "expert_blocks": 2, "expert_heads": 3, "channels": 16, "theta": 10_000.0}
SIZES = {"backbone": "qwen3_5", "vocabulary": VOCABULARY, "state_width": 0, "euler_steps": 4, "draws": 1, "seed": 0, **EXPERT}
SMALL = {"text_length": LENGTH, "text": {"num_hidden_layers": 4}, "vision": {"depth": 1}}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = QwenVla(LAYOUTS, HORIZON, SIZES | SMALL)
    for parameter in network.expert.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture(autouse=True)
def fresh(network):
    configure_stage(network, "sft")
    network.zero_grad()
    network.reset()


def batch_of(embodiment, answer=None, images=True):
    generator = torch.Generator().manual_seed(0)
    layout = LAYOUTS[embodiment]
    pictures = torch.rand(2, len(layout.cameras) if images else 0, 3, 64, 64, generator=generator) * 2 - 1
    tokens = torch.randint(4, VOCABULARY, (2, LENGTH), generator=generator)
    tokens[1, 5:] = 0
    state = torch.zeros(2, 10 if embodiment == "franka" else 14)
    actions = torch.rand(2, HORIZON, len(layout.channels), generator=generator) * 2 - 1
    return AnsweredBatch(embodiment, pictures, state, tokens, actions=actions, answer=answer)


def test_the_same_weights_serve_two_and_three_cameras(network):
    with torch.no_grad():
        for embodiment, channels in (("franka", 7), ("aloha", 14)):
            actions = network.predict(batch_of(embodiment))
            assert actions.shape == (2, HORIZON, channels)
            assert actions.isfinite().all()


def test_cached_is_uncached(network):
    batch = batch_of("aloha")
    with torch.no_grad():
        context = network.context(batch)
        noise = torch.where(context.mask, torch.randn(2, HORIZON, 16), 0.0)

        def whole(rows, tau):
            reading = network.context(batch).reading
            return torch.where(context.mask, network.expert(reading.sequence, reading.mask, rows, tau, reading.positions), 0.0)

        assert (solve(network.velocity(context), noise, 4) - solve(whole, noise, 4)).abs().max() < 1e-5


def test_every_picture_stands_between_its_camera_s_tags_and_has_places(network):
    batch = batch_of("franka")
    with torch.no_grad():
        reading = network.context(batch).reading
        views = [part for part in network.backbone._observation(batch.images, None, batch.tokens, ("front", "wrist"))[0] if part.grid]
        assert [part.grid for part in views] == [(4, 4), (4, 4)]
        # tag, vision start, 16 patches, vision end, tag for each view; the words; [LRN]
        assert reading.sequence.shape[1] == 2 * (1 + 1 + 16 + 1 + 1) + LENGTH + 1
        time, height, width = reading.positions[0, :, 2:18] - reading.positions[0, :, 2:3]
        assert (time == 0).all()
        assert height.tolist() == [i // 4 for i in range(16)]
        assert width.tolist() == [i % 4 for i in range(16)]
        before = network.predict(batch)
        network.reset()
        tags = network.backbone.tags.clone()
        network.backbone.tags[network.backbone.cameras.index("wrist")] += 1.0
        assert not torch.equal(network.predict(batch), before)
        network.backbone.tags.copy_(tags)
        network.reset()
        network.backbone.tags[network.backbone.cameras.index("left_wrist")] += 1.0  # it has no such camera
        assert torch.equal(network.predict(batch), before)
        network.backbone.tags.copy_(tags)


def test_text_to_action_reads_text_alone(network):
    configure_stage(network, "t2a")
    with pytest.raises(PolicyError, match="2 images of franka"):
        network.loss(batch_of("franka"))
    loss, parts, _, _ = network.loss(batch_of("franka", images=False, answer=torch.full((2, 3), 5)))
    assert set(parts) == {"flow"}
    loss.backward()
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert all(parameter.grad is not None for parameter in network.expert.parameters())


def test_supervised_tuning_also_learns_the_answer(network):
    answer = torch.tensor([[5, 6, 7], [8, 9, 0]])
    torch.manual_seed(0)
    loss, parts, _, _ = network.loss(batch_of("franka", answer))
    torch.testing.assert_close(loss, parts["flow"] + 0.1 * parts["text"])
    logits = network.context(batch_of("franka", answer)).reading.logits
    said = logits.log_softmax(-1)
    expected = -(said[0, 0, 5] + said[0, 1, 6] + said[0, 2, 7] + said[1, 0, 8] + said[1, 1, 9]) / 5
    torch.testing.assert_close(parts["text"], expected)
    torch.manual_seed(0)
    silent = network.loss(batch_of("franka"))[1]
    assert set(silent) == {"flow"}
    torch.testing.assert_close(silent["flow"], parts["flow"], atol=1e-5, rtol=1e-5)  # the actions do not see the answer
    parts["text"].backward()
    assert network.backbone._embedding().weight.grad.abs().sum() > 0
    configure_stage(network, "cpt")
    assert set(network.loss(batch_of("franka", answer))[1]) == {"flow"}


def test_a_backbone_without_a_language_model_refuses_answers():
    small = {"backbone": "convolutional", "text_length": LENGTH, "text_width": 16, "hidden_size": 32, "keypoints": 4}
    network = QwenVla(LAYOUTS, HORIZON, SIZES | small)
    configure_stage(network, "sft")
    with pytest.raises(PolicyError, match="no language model"):
        network.loss(batch_of("franka", torch.full((2, 3), 5)))


def test_the_paper_s_network_has_the_paper_s_size():
    paper = {"expert_width": 1536, "expert_blocks": 16, "expert_heads": 12, "channels": 64, "theta": 1e7, "preset": "paper"}
    with torch.device("meta"):
        network = QwenVla(LAYOUTS, 16, SIZES | paper | {"vocabulary": 0, "text_length": LENGTH})
    expert = sum(parameter.numel() for parameter in network.expert.parameters())
    assert expert == pytest.approx(1.149e9, rel=0.01)
    assert network.backbone.hidden_size == 2560
    assert len(network.backbone.vlm.language_model.layers) == 32
    assert sum(parameter.numel() for parameter in network.backbone.parameters()) == pytest.approx(4.5e9, rel=0.05)
