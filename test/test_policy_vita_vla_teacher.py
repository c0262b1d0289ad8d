"""The teacher of VITA-VLA: it learns, remembers a window, and its action tokens are seen by nobody."""

from dataclasses import replace

import pytest
import torch
from small_vita_vla import FEATURES, HORIZON, SHARED, TEACHER, WIDTH, WINDOW, at, batch, learns, network, part, stream

from vla_ros.core.errors import PolicyError
from vla_ros.policies.vita_vla.channels import Channels
from vla_ros.policies.vita_vla.history import sight, tokens_of

MAE = {
    **SHARED, "eyes": "vit_mae", "width": WIDTH, "layers": 1, "heads": 4, "latents": 2, "resampler_layers": 1,
    "vision": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32},
    "text": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4},
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("sizes", [TEACHER, MAE], ids=["convolutional", "vit_mae"])
@pytest.mark.parametrize("name", FEATURES)
def test_it_learns_a_fixed_batch_and_predicts(sizes, name):
    teacher, samples = network("seer", sizes, name), batch(name=name)
    first, last = learns(teacher, samples, steps=30)
    assert last < 0.8 * first
    with torch.no_grad():
        found = teacher.predict(samples)
    assert found.shape == samples.actions.shape and found.abs().max() <= 1
    _, parts, visual, hidden = teacher.loss(samples)
    assert set(parts) == {"arm", "gripper"} and visual.shape == (2, teacher.visual_size) and hidden.shape == (2, WIDTH)


def test_one_set_of_weights_for_several_robots():
    teacher = network("seer", TEACHER, *FEATURES)
    for name in FEATURES:
        assert teacher.predict(batch(name=name)).shape == batch(name=name).actions.shape
    loss = sum(teacher.loss(batch(name=name))[0] for name in FEATURES)
    loss.backward()
    assert all(parameter.grad is not None for parameter in teacher.parameters())
    with pytest.raises(PolicyError, match="'franka'"):
        teacher.predict(replace(batch(), embodiment="franka"))
    with pytest.raises(PolicyError, match="2 images, expected front, left_wrist, right_wrist"):
        teacher.predict(replace(batch(), embodiment="aloha_piper"))


def test_a_rollout_is_the_window_of_its_last_observations():
    teacher, samples = network("seer", TEACHER).eval(), batch(window=WINDOW + 2)
    found = stream(teacher, samples, WINDOW + 2)
    for step, rows in enumerate(found):
        with torch.no_grad():
            window = teacher.predict(part(samples, max(0, step + 1 - WINDOW), step + 1))
        assert torch.allclose(rows, window, atol=1e-6)
    with torch.no_grad():
        assert (found[-1] - teacher.predict(part(samples, 0, WINDOW))).abs().max() > 1e-4
        teacher.reset()
        assert torch.allclose(teacher.predict(at(samples, 0)), found[0], atol=1e-6)
        with pytest.raises(PolicyError, match=r"2 x piper_joints, now come 1 .* reset"):
            teacher.predict(at(batch(count=1), 0))


def test_every_step_of_a_window_is_the_newest_of_its_own():
    teacher, samples = network("seer", TEACHER).eval(), batch()
    with torch.no_grad():
        every = teacher.action_states(samples)
        for step in range(WINDOW):
            alone = teacher.action_states(part(samples, 0, step + 1))[:, -1]
            assert torch.allclose(every[:, step], alone, atol=1e-5)


def test_nobody_sees_an_action_token():
    teacher, samples, seen = network("seer", TEACHER).eval(), batch(), []
    teacher.transformer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        teacher.action_states(samples)
        teacher.actions[1] += 5.0
        teacher.action_states(samples)
    _, acting = tokens_of(WINDOW, seen[0].shape[1] // WINDOW - HORIZON, HORIZON)
    changed = (seen[0] - seen[1]).abs().amax((0, 2)) > 1e-6
    assert changed.nonzero().flatten().tolist() == acting.nonzero().flatten()[1::HORIZON].tolist()


def test_sight_is_causal_in_steps_and_ends_with_the_window():
    steps, acting = tokens_of(3, 2, 1)
    seen = sight(steps, acting, window=2, causal=False)
    assert seen[6].tolist() == [False, False, False, True, True, False, True, True, False]
    assert seen[8].tolist() == [False, False, False, True, True, False, True, True, True]
    assert not sight(steps, acting, window=2, causal=True)[6, 7]


def test_a_short_window_is_trained_too():
    teacher, samples = network("seer", TEACHER).train(), batch()
    torch.manual_seed(0)
    losses = {round(teacher.loss(samples)[0].item(), 6) for _ in range(20)}
    assert len(losses) == WINDOW


def test_only_the_newest_picture_teaches_the_eyes():
    teacher, samples = network("seer", TEACHER).eval(), batch()
    images = samples.images.clone().requires_grad_()
    teacher.loss(replace(samples, images=images))[0].backward()
    assert images.grad[:, :-1].abs().max() == 0 and images.grad[:, -1].abs().max() > 0


def test_arms_and_grippers_are_told_apart():
    teacher = network("seer", TEACHER, *FEATURES)
    channels: Channels = teacher.channels
    assert (channels.arm_state.width, channels.width_state.width) == (6 + 9 + 12, 1 + 1 + 2)
    assert (channels.arms.width, channels.grippers.width) == (6 + 6 + 12, 1 + 1 + 2)
    state = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9]])
    arms, grippers = channels.state(state, "piper_joints")
    assert torch.equal(arms[:, :6], state[:, :6]) and not arms[:, 6:].any()
    opened, closed = grippers.chunk(2, dim=-1)
    assert opened.tolist() == [[1, 0, 0, 0]] and not closed.any()
    held = channels.state(state * 0.5, "piper_joints")[1]  # a block between the fingers
    assert held.tolist() == [[0, 0, 0, 0, 1, 0, 0, 0]]
    actions = batch(name="aloha_piper").actions
    own, closing = channels.targets(actions, "aloha_piper")
    assert torch.equal(own, torch.cat([actions[..., :6], actions[..., 7:13]], -1)) and set(closing.unique().tolist()) <= {0.0, 1.0}
    assert torch.allclose(channels.actions(own, 100 * (closing - 0.5), "aloha_piper"), actions)
    with pytest.raises(PolicyError, match="3 features of the state, expected 7"):
        channels.state(state[:, :3], "piper_joints")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eyes": "vitmae"}, r"network.eyes = 'vitmae'.*vit_mae"),
        ({"eyes": "os:system"}, r"network.eyes = 'os:system'"),
        ({"widht": 4}, r"unknown key 'widht'.*width"),
        ({"width": 25}, r"width = 25 is no multiple of heads = 4"),
        ({"window": 0}, r"network.window = 0, expected a whole number 1 .. 256"),
        ({"gripper_weight": -1.0}, r"gripper_weight = -1.0, expected 0"),
        ({"text_length": ...}, r"lacks text_length"),
    ],
)
def test_wrong_sizes_are_named(changes, message):
    with pytest.raises(PolicyError, match=message):
        network("seer", TEACHER, **changes)


def test_it_runs_in_bfloat16():
    teacher, samples = network("seer", TEACHER), batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = teacher.loss(samples)[0]
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    whole = network("seer", MAE).to(torch.bfloat16).eval()
    with torch.no_grad():
        assert whole.predict(samples).isfinite().all()
