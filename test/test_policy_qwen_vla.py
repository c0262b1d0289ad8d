"""Qwen-VLA: size of the paper, one set of weights for every robot, masks, stages, cache, seeds, real-time chunking."""

import dataclasses

import numpy as np
import pytest
import torch

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, DataError, PolicyError
from vla_ros.policies.flow import solve
from vla_ros.policies.layout import layout_for
from vla_ros.policies.navigation import navigation_layout, path_along, waypoints
from vla_ros.policies.network import Batch, Inputs
from vla_ros.policies.qwen_vla.expert import ActionExpert
from vla_ros.policies.qwen_vla.network import QwenVla
from vla_ros.policies.qwen_vla.prompt import camera_tag, tagged
from vla_ros.policies.qwen_vla.stages import configure_stage

HORIZON, LENGTH, VOCABULARY = 6, 12, 20
LAYOUTS = {
    "franka": layout_for(load_embodiment("franka"), ("front", "wrist")),
    "aloha": layout_for(load_embodiment("aloha"), ("front", "left_wrist", "right_wrist")),
    "rover": navigation_layout("rover", ("front",)),
}
FEATURES = {"franka": 10, "aloha": 14, "rover": 0}
SIZES = {
    "backbone": "convolutional", "vocabulary": VOCABULARY, "text_length": LENGTH, "text_width": 16, "hidden_size": 32, "keypoints": 4,
    "expert_width": 48, "expert_blocks": 2, "expert_heads": 3, "channels": 16, "theta": 10_000.0,
    "state_width": 20, "euler_steps": 4, "draws": 2, "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return shaken(QwenVla(LAYOUTS, HORIZON, SIZES))


def shaken(module, scale=0.1):
    """Moves all weights, so that nothing is hidden behind one that starts as zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def inputs_of(embodiment, batch=2, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    layout = LAYOUTS[embodiment]
    images = torch.rand(batch, len(layout.cameras), 3, 32, 32, generator=generator) * 2 - 1
    tokens = torch.randint(1, VOCABULARY, (batch, LENGTH), generator=generator)
    return Inputs(embodiment, images, torch.randn(batch, FEATURES[embodiment], generator=generator), tokens, **more)


def batch_of(embodiment, batch=2, seed=0, rows=HORIZON, **changes):
    inputs = inputs_of(embodiment, batch, seed)
    actions = torch.rand(batch, rows, len(LAYOUTS[embodiment].channels), generator=torch.Generator().manual_seed(seed + 1)) * 2 - 1
    return dataclasses.replace(Batch(**vars(inputs), actions=actions), **changes)


def loss_of(network, batch, seed=0):
    torch.manual_seed(seed)
    return network.loss(batch)[0]


def test_the_paper_s_expert_has_the_paper_s_size():
    with torch.device("meta"):
        expert = ActionExpert(context=2560, width=1536, blocks=16, heads=12, channels=64, theta=1e7)

    def millions(*names):
        return sum(parameter.numel() for name in names for parameter in getattr(expert, name).parameters()) / 1e6

    assert millions("blocks") / 16 == pytest.approx(70.8, rel=0.01)
    assert millions("read_context") == pytest.approx(3.93, rel=0.01)
    assert millions("time") == pytest.approx(2.76, rel=0.01)
    assert millions("output_modulation") == pytest.approx(4.72, rel=0.01)
    assert millions("read_actions", "write_actions") == pytest.approx(4.9, rel=0.01)
    assert sum(parameter.numel() for parameter in expert.parameters()) == pytest.approx(1.149e9, rel=0.01)


def test_the_prompt_is_the_paper_s():
    one = QwenVla.prompt(LAYOUTS["franka"], "put the red block on the plate", 16, 0.1)
    assert one == (
        "The robot is franka with single arm. The control frequency is 10 Hz. "
        "Please predict the next 16 control actions to execute the following task: put the red block on the plate."
    )
    two = QwenVla.prompt(LAYOUTS["aloha"], " Open the box.", 50, 0.02)
    assert two.startswith("The robot is aloha with dual arms. The control frequency is 50 Hz. Please predict the next 50 control actions")
    assert two.endswith("task: Open the box.")
    assert "rover with mobile base. The control frequency is 2 Hz. Please predict the next 8 waypoints" in QwenVla.prompt(
        LAYOUTS["rover"], "go to the door", 8, 0.5
    )
    with pytest.raises(PolicyError, match="dt_s 0"):
        QwenVla.prompt(LAYOUTS["franka"], "go", 16, 0.0)


def test_cameras_have_the_paper_s_tags():
    assert [camera_tag(name) for name in LAYOUTS["aloha"].cameras] == ["ego", "cam_left_wrist", "cam_right_wrist"]
    assert tagged("front") == "<|ego_start|><image><|ego_end|>"


@pytest.mark.parametrize("embodiment", LAYOUTS)
def test_the_same_weights_serve_every_robot(network, embodiment):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        actions = network.predict(inputs_of(embodiment))
    assert actions.shape == (2, HORIZON, len(LAYOUTS[embodiment].channels))
    assert actions.isfinite().all()
    loss_of(network, batch_of(embodiment)).backward()
    assert all(parameter.grad is not None for parameter in network.expert.parameters())  # no part belongs to one robot alone
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_cached_is_uncached(network):
    inputs = inputs_of("aloha")
    context = network.context(inputs)
    noise = torch.where(context.mask, torch.randn(2, HORIZON, network.channels), 0.0)

    def whole(rows, tau):
        reading = network.context(inputs).reading
        found = network.expert(reading.sequence, reading.mask, rows, tau)
        return torch.where(context.mask, found, 0.0)

    with torch.no_grad():
        cached, uncached = solve(network.velocity(context), noise, 4), solve(whole, noise, 4)
    assert (cached - noise).abs().max() > 0.1
    assert (cached - uncached).abs().max() < 1e-5


def test_cached_is_uncached_with_padding_and_places_in_the_picture():
    torch.manual_seed(0)
    expert = shaken(ActionExpert(context=24, width=48, blocks=3, heads=3, channels=8, theta=10_000.0))
    sequence, rows, tau = torch.randn(2, 9, 24), torch.randn(2, 5, 8), torch.tensor([0.9, 0.2])
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    places = torch.stack([torch.arange(9), torch.arange(9) // 3, torch.arange(9) % 3]).expand(2, 3, 9)
    with torch.no_grad():
        for positions in (None, places):
            cached = expert.velocity(expert.prefill(sequence, mask, positions), rows, tau)
            assert (cached - expert(sequence, mask, rows, tau, positions)).abs().max() < 1e-5
        assert (cached - expert.velocity(expert.prefill(sequence, mask), rows, tau)).abs().max() > 1e-4  # places matter
        nonsense = torch.where(mask[..., None], sequence, 100.0)
        assert torch.equal(cached, expert.velocity(expert.prefill(nonsense, mask, places), rows, tau))  # padding does not


def test_padded_targets_move_nothing(network):
    whole, batch = batch_of("franka", rows=8), batch_of("franka", rows=8)
    ended = whole.actions.clone()
    ended[1, 5:] = float("nan")
    batch = dataclasses.replace(whole, actions=ended)
    assert not torch.equal(loss_of(network, whole), loss_of(network, batch))
    kept = []
    for padding in (0.0, 9.0):
        actions, valid = network._targets(batch)
        actions = torch.where(valid[..., None], actions, padding)
        actions[..., 7:] = padding
        network._targets = lambda batch, targets=(actions, valid): targets
        kept.append(loss_of(network, batch))
        del network._targets
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], loss_of(network, batch))


def test_masked_entries_get_exactly_no_gradient(network):
    outputs = []

    def keep(module, arguments, output):
        output.retain_grad()
        outputs.append(output)

    network.expert.write_actions.register_forward_hook(keep)
    actions = batch_of("franka", rows=8).actions.clone()
    actions[1, 5:] = float("nan")
    loss_of(network, batch_of("franka", rows=8, actions=actions)).backward()
    gradient = outputs[0].grad.unflatten(0, (2, SIZES["draws"]))
    assert (gradient[..., 7:] == 0).all()
    assert (gradient[1, :, 5:] == 0).all()
    assert (gradient[0, ..., :7] != 0).all()
    assert (gradient[1, :, :5, :7] != 0).all()


def test_rows_past_the_end_are_not_seen(network):
    context = network.context(inputs_of("franka"))
    rows, tau = torch.randn(2, 8, network.channels), torch.tensor([0.5, 0.5])
    steps = torch.ones(2, 8, dtype=torch.bool)
    steps[:, 5:] = False
    other = rows.clone()
    other[:, 5:] = 3.0
    with torch.no_grad():
        found, again = (network.velocity(context, steps)(each, tau)[:, :5] for each in (rows, other))
        longer = network.velocity(context)(other, tau)[:, :5]
    assert torch.equal(found, again)
    assert not torch.equal(found, longer)


def test_text_to_action_sees_no_pictures_and_leaves_the_backbone_alone(network):
    assert configure_stage(network, "t2a").tau == "sigmoid_normal"
    with pytest.raises(PolicyError, match="2 images of franka"):
        network.loss(batch_of("franka"))
    for images in (None, torch.zeros(2, 0, 3, 32, 32)):
        network.zero_grad()
        loss_of(network, batch_of("franka", images=images, rows=23)).backward()  # a whole trajectory
        assert all(parameter.grad is None for parameter in network.backbone.parameters())
        assert all(parameter.grad is not None for parameter in network.expert.parameters())


def test_later_stages_train_both_and_need_their_pictures(network):
    configure_stage(network, "t2a")
    for name, weight in (("cpt", 0.0), ("sft", 0.1)):
        stage = configure_stage(network, name)
        assert (stage.tau, stage.text_weight) == ("beta", weight)
        network.zero_grad()
        loss_of(network, batch_of("aloha")).backward()
        silent = [name for name, parameter in network.backbone.named_parameters() if parameter.grad is None]
        assert all("network.cameras.3" in name or "read_views.3" in name for name in silent), silent  # only `wrist`, which it lacks
    with pytest.raises(PolicyError, match="0 images; aloha has the cameras front, left_wrist, right_wrist"):
        network.loss(batch_of("aloha", images=None))
    with pytest.raises(ConfigError, match="did you mean 'sft'"):
        configure_stage(network, "stf")


def test_tau_comes_from_the_stage_s_sampler(network):
    seen = []
    plain = network.expert.velocity
    network.expert.velocity = lambda prefix, rows, tau, steps: (seen.append(tau), plain(prefix, rows, tau, steps))[1]
    means = {}
    for stage in ("t2a", "cpt"):
        configure_stage(network, stage)
        seen.clear()
        loss_of(network, batch_of("franka", batch=200, rows=1, **({"images": None} if stage == "t2a" else {})))
        means[stage] = float(seen[0].mean())
    assert means["t2a"] == pytest.approx(0.5, abs=0.04)
    assert means["cpt"] == pytest.approx(0.6, abs=0.04)


def test_a_seed_means_the_same_actions(network):
    inputs = inputs_of("franka")
    with torch.no_grad():
        network.reset()
        first, second = network.predict(inputs), network.predict(inputs)
        network.reset()
        assert torch.equal(network.predict(inputs), first)
        other = QwenVla(LAYOUTS, HORIZON, dict(SIZES, seed=1))
        other.load_state_dict(network.state_dict())
        assert not torch.equal(other.predict(inputs), first)
    assert not torch.equal(first, second)
    assert torch.equal(loss_of(network, batch_of("franka")), loss_of(network, batch_of("franka")))
    assert not torch.equal(loss_of(network, batch_of("franka")), loss_of(network, batch_of("franka"), seed=1))


def test_it_looks_and_reads_and_feels(network):
    inputs = inputs_of("franka")
    with torch.no_grad():
        actions = network.predict(inputs)
        for change in ({"images": -inputs.images}, {"tokens": inputs.tokens.flip(1)}, {"state": -inputs.state}):
            network.reset()
            assert not torch.equal(network.predict(dataclasses.replace(inputs, **change)), actions), change.keys()
        network.reset()
        without = QwenVla(LAYOUTS, HORIZON, dict(SIZES, state_width=0))
        first = without.predict(inputs)
        without.reset()
        assert torch.equal(without.predict(dataclasses.replace(inputs, state=-inputs.state)), first)


def test_a_prefix_is_continued(network):
    inputs = inputs_of("franka", batch=1)
    prefix = torch.full((1, HORIZON, 7), 0.3)
    weights = torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0, 0.0])
    with torch.no_grad():
        free = network.predict(inputs)
        network.reset()
        held = network.predict(dataclasses.replace(inputs, prefix=prefix, prefix_weights=weights))
        network.reset()
        unheld = network.predict(dataclasses.replace(inputs, prefix=prefix, prefix_weights=torch.zeros(HORIZON)))
    torch.testing.assert_close(unheld, free)
    assert (held - prefix)[:, :2].abs().mean() < 0.5 * (free - prefix)[:, :2].abs().mean()
    assert not held.requires_grad


def test_it_learns_one_batch_by_heart():
    torch.manual_seed(0)
    network = QwenVla(LAYOUTS, HORIZON, dict(SIZES, expert_width=64, expert_heads=4, draws=4, euler_steps=10))
    batch = batch_of("aloha", batch=4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=180, pct_start=0.1)
    torch.manual_seed(1)
    for _ in range(180):
        optimizer.zero_grad()
        network.loss(batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        error = (
            (network.predict(Inputs(*[getattr(batch, field.name) for field in dataclasses.fields(Inputs)])) - batch.actions).abs().mean()
        )
    assert error < 0.08, error  # of targets uniform in -1 .. 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"expert_width": 50}, "multiple of 2 [*] expert_heads"),
        ({"channels": 8}, "aloha has 14"),
        ({"expert_blocks": 0}, "network.expert_blocks = 0"),
        ({"draws": True}, "network.draws = True"),
        ({"backbone": "convolutionl"}, "did you mean 'convolutional'"),
        ({"keypoint": 4}, "unknown key 'keypoint'; did you mean 'keypoints'"),
        ({"backbone": "os:system"}, "network.backbone = 'os:system'"),
        ({"state_width": 12}, "state_width = 12: aloha has 14"),
        ({"theta": float("nan")}, "network.theta = nan"),
        ({"expert_width": 10**9}, "8 .. 8192"),
    ],
)
def test_wrong_sizes_are_refused(sizes, message):
    with pytest.raises(PolicyError, match=message):
        QwenVla(LAYOUTS, HORIZON, dict(SIZES, **sizes))


def test_missing_sizes_are_named():
    with pytest.raises(PolicyError, match="lacks vocabulary, text_length"):
        QwenVla(LAYOUTS, HORIZON, {key: value for key, value in SIZES.items() if key not in ("vocabulary", "text_length")})


def test_wrong_batches_are_refused(network):
    with pytest.raises(PolicyError, match="did you mean 'franka'"):
        network.predict(dataclasses.replace(inputs_of("franka"), embodiment="frnaka"))
    with pytest.raises(PolicyError, match=r"expected \[B, T, 7\]"):
        network.loss(batch_of("franka", actions=torch.zeros(2, HORIZON, 6)))
    holes = torch.zeros(2, HORIZON, 7)
    holes[0, 2, 3] = float("nan")
    with pytest.raises(DataError, match="finite only in part"):
        network.loss(batch_of("franka", actions=holes))


def test_waypoints_and_their_path():
    path = np.array([[1.0, 2.0, np.pi / 2], [1.0, 3.0, np.pi], [0.0, 3.0, -np.pi + 0.1]])
    steps = waypoints(path)
    np.testing.assert_allclose(steps, [[1, 0, np.pi / 2], [1, 0, 0.1]], atol=1e-12)
    np.testing.assert_allclose(path_along(steps, path[0])[..., :2], path[..., :2], atol=1e-12)
    layout = LAYOUTS["rover"]
    motion = np.random.default_rng(0).normal(size=(50, HORIZON, 3))
    statistics = dataclasses.replace(layout, normalization=layout.measure(np.zeros((50, 0)), motion)).statistics(HORIZON, "test")
    assert statistics[1].low.shape == (HORIZON, 3)
    np.testing.assert_array_equal(layout.absolute(layout.relative(motion[0], np.zeros(0)), np.zeros(0)), motion[0])
